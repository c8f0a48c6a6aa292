"""The CUDA kernels against float64: on a GPU if there is one, else emulated on CPU tensors.

The emulation (tests/cpp/emulate.h) runs the same source, thread by thread. It proves arithmetic,
addresses and what waits for what, not what real memory does besides, and not speed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import on_loops, reference, reference_ops
from test_ops import (
    AXES,
    FORWARD,
    Case,
    arguments,
    assert_gradients,
    backward,
    converted,
    cotangents,
    expected,
)
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastrnn.dispatch import cuda, gpu
from fastrnn.table import weight_names

ON_GPU = cuda.status() is None
EMULATED = Path(__file__).parents[1] / "build/emulated.so"


def emulation_loads() -> bool:
    """Whether the emulation is there and, if it needs the address sanitizer, that is too."""
    name = "__asan_init"
    return EMULATED.exists() and (
        name.encode() not in EMULATED.read_bytes() or hasattr(ctypes.CDLL(None), name)
    )


if KERNELS is None or not (ON_GPU or emulation_loads()):
    pytest.skip("there is no GPU; `make emulated` runs the emulation", allow_module_level=True)

from fastrnn.dispatch.cuda import launch  # noqa: E402  (needs the compiled kernels)
from fastrnn.dispatch.cuda.launch import Plan  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
HOW = ["float32", "tf32", "float16", "bfloat16", "float64"]
PLANS = {
    "few": Plan(False, 0),
    "held": Plan(False, 1),
    "tall": Plan(False, 2),
    "library": Plan(True, 0),
}
# No such kernels.
WITHOUT = [*itertools.product(("held", "tall"), ("float32", "float64")), ("library", "tf32")]
# Rows and units that cross the tiles: 16 or 64 rows, 8 or 16 units.
SIZES = {"few": (18, 17), "held": (18, 17), "tall": (66, 17), "library": (3, 5)}
FORMS = [(1, False, True), (2, True, True), (2, False, False), (1, True, False)]


class Emulated:
    """The emulated kernels: what is launched has run when the call returns."""

    def __init__(self, path: Path):
        spec = importlib.util.spec_from_file_location("emulated", path)
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def __getattr__(self, name: str):
        def make(*args):
            loop = getattr(self.module, name)(*args)

            def done(function, *args):
                function(*args)
                self.module.synchronize()

            return SimpleNamespace(run=partial(done, loop.run), step=partial(done, loop.step))

        return make


@pytest.fixture(autouse=True, scope="module")
def kernels():
    if ON_GPU:
        yield
        return
    before, launch.KERNELS = launch.KERNELS, Emulated(EMULATED)
    yield
    launch.KERNELS = before


_ops = on_loops(launch)
layer_inference, layer_forward, layer_backward = (
    _ops.layer_inference, _ops.layer_forward, _ops.layer_backward
)  # fmt: skip


def on_device(value):
    """Tensors in it moved to the device under test, but for batch sizes, which stay on the CPU."""
    move = tree_map_only(Tensor, lambda t: t.to(DEVICE), value)
    if isinstance(value, tuple) and len(value) > 1 and isinstance(value[1], Tensor):
        return (move[0], value[1], *move[2:])
    return move


def force(monkeypatch, plan: str, how: str = "") -> None:
    """Makes every loop run by this plan, and float32 products in TF32 if `how` says so."""
    monkeypatch.setattr(launch, "choose", lambda *_: PLANS[plan])
    if how == "tf32":
        monkeypatch.setattr(launch, "precision", lambda _: "tf32")


@pytest.fixture(params=PLANS)
def how(request, monkeypatch):
    """How products of float32 are made: by each plan in turn, forced."""
    how = "tf32" if (request.param, "float32") in WITHOUT else "float32"
    force(monkeypatch, request.param, how)
    return how


def as_precise(how: str, value):
    """TF32 rounds factors as float16 does, and is held to its tolerance."""
    narrow = tree_map_only(Tensor, lambda t: t.half() if how == "tf32" else t, value)
    return tree_map_only(Tensor, Tensor.cpu, narrow)


def cases() -> list:
    """Every cell on every plan in every precision, in the forms of a layer by turns."""
    forms = itertools.cycle(FORMS)
    values = []
    for (plan, (N, H)), cell, how in itertools.product(SIZES.items(), AXES["cell"], HOW):
        D, packed, bias = next(forms)
        if (plan, how) in WITHOUT:
            continue
        dtype = torch.float32 if how == "tf32" else getattr(torch, how)
        case = Case(cell, T=3, N=N, H=H, D=D, packed=packed, bias=bias, dtype=dtype)
        name = f"{plan}-{cell}-{how}-D{D}-{'packed' if packed else 'padded'}"
        values.append(pytest.param(plan, how, case, id=name))
    return values


@pytest.mark.parametrize(("plan", "how", "case"), cases())
def test_matches_float64(plan, how, case, monkeypatch):
    force(monkeypatch, plan, how)
    args = arguments(case)
    wanted, wanted_gradients = expected(case)
    results = layer_forward(*on_device(args))
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert actual.dtype == case.dtype and actual.is_contiguous()
        assert_matches(as_precise(how, actual), value, name)
    inference = layer_inference(*on_device(args))
    for name, actual, value in zip(FORWARD, inference, results, strict=False):
        assert torch.equal(actual, value), name
    grads = on_device(cotangents(wanted))
    grads = [None if g is None else g.to(case.dtype) for g in grads]
    gradients = backward(layer_backward, on_device(args), results, grads)
    assert_gradients(as_precise(how, gradients), wanted_gradients)


def features(case: Case, reset: bool) -> dict:
    """Lengths, not sorted, with 0 and T among them, limits that bind, and resets if asked for."""
    lengths = torch.arange(case.N) * 3 % (case.T + 1)
    limits = {"detach_every": 2, "grad_clip": 0.05}
    flags = {"reset": torch.rand(case.T, case.N) < 0.4} if reset else {}
    return {"lengths": lengths, **limits, **flags}


@pytest.mark.parametrize("which", ["all", "lengths", "reset", "limits"])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_features(cell, which, how):
    case = Case(
        cell, T=5, N=17, H=5, I=3, D=1 if which in ("all", "reset") else 2, dtype=torch.float32
    )
    options = features(case, reset=True)
    keep = {"all": options, "limits": ("detach_every", "grad_clip")}.get(which, (which,))
    options = {name: options[name] for name in keep}
    args = arguments(case)

    def run(forward, back, args, options, grads):
        results = forward(*args, **options)
        output, _, _, *saved = results
        needs = (True, True, True)
        return results, back(*grads, output, *saved, *needs, *args, **options)

    double = converted(args, torch.float64)
    shapes = reference_ops.layer_forward(*double, **options)
    grads = [
        torch.randn_like(t).float() if t.numel() else None
        for t in (*shapes[:3], shapes[4] if case.D == 1 else torch.empty(0))
    ]
    wide = [None if g is None else g.double() for g in grads]
    plain = (reference_ops.layer_forward, reference_ops.layer_backward)
    wanted, wanted_gradients = run(*plain, double, options, wide)
    given = on_device(args), on_device(options), on_device(grads)
    results, gradients = run(layer_forward, layer_backward, *given)
    for name, actual, value in zip(FORWARD, as_precise(how, results), wanted, strict=True):
        assert_matches(actual, value, name)
    assert_gradients(as_precise(how, gradients), wanted_gradients)


@pytest.mark.parametrize("cell", AXES["cell"])
def test_missing_and_unneeded_gradients(cell, how):
    case = Case(cell, H=3, N=2, T=2, I=2, dtype=torch.float32)
    args = on_device(arguments(case))
    results = layer_forward(*args)
    grads = on_device(cotangents(results))
    for k in range(3):
        some = [g if i == k else None for i, g in enumerate(grads)]
        wide = tree_map_only(Tensor, lambda t: t.cpu().double(), (args, results, some))
        wanted = backward(reference_ops.layer_backward, *wide)
        actual = backward(layer_backward, args, results, some)
        assert_gradients(as_precise(how, actual), wanted)
        needs = [i == k for i in range(3)]
        *few, weights = backward(layer_backward, args, results, some, needs)
        for need, a, e in zip((needs[0], needs[1], needs[1]), few, actual[:3], strict=True):
            assert torch.equal(a, e) if need else a.shape == (0,)
        assert all(map(torch.equal, weights, actual[3])) if needs[2] else weights == []


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("P", [5, 8, 24])
def test_depths(P, how, monkeypatch):
    """Sizes for which weights are used as they lie and for which they are padded; many stages."""
    dtype = torch.float32 if how == "tf32" else getattr(torch, how)
    for plan, H in (("few", 8), ("few", 150), ("held", 8), ("held", 230), ("tall", 150)):
        if (plan, how) in WITHOUT:
            continue
        force(monkeypatch, plan, how)
        args = arguments(Case("lstm", T=2, N=3, H=H, D=1, dtype=dtype))
        h0, weights = args[2].new_ones(1, 3, P) / 2, list(args[4])
        weights[1] = weights[1][:, :1] * torch.linspace(-1, 1, P, dtype=dtype)
        weights.append(torch.linspace(-1, 1, P * H, dtype=dtype).view(P, H) / H)
        args = (args[0], None, h0, args[3], weights, "lstm", weight_names(True, True))
        double = converted(args, torch.float64)
        wanted = reference_ops.layer_forward(*double)
        results = layer_forward(*on_device(args))
        for name, actual, value in zip(FORWARD, results, wanted, strict=True):
            assert_matches(as_precise(how, actual), value, name)
        grads = [g.to(dtype) for g in cotangents(wanted)]
        wide = [g.double() for g in grads]
        wanted_gradients = backward(reference_ops.layer_backward, double, wanted, wide)
        gradients = backward(layer_backward, on_device(args), results, on_device(grads))
        assert_gradients(as_precise(how, gradients), wanted_gradients)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_is_kept_in_float32(cell):
    # Each step changes the state by less than half a unit in the last place of bfloat16, so that a
    # rounded state stands still: an lstm adds 1/8 to a c of 64, a gru leaves 1 for 0 by 1/1000.
    T, H, zero = 32, 1, torch.zeros
    x = torch.ones(T, 1, 1, dtype=torch.bfloat16)
    h0, c0 = zero(1, 1, H), None
    if cell == "lstm":
        c0 = torch.full((1, 1, H), 64.0)
        w_ih = torch.tensor([[-1.9375], [100.0], [100.0], [0.0]])  # sigmoid(-1.9375) is 0.126
    else:
        h0 = torch.ones(1, 1, H)
        w_ih = torch.tensor([[0.0], [6.9], [0.0]])  # sigmoid(6.9) is 0.999
    args = (x, None, h0, c0, [w_ih, zero(len(w_ih), H)], cell, weight_names(False, False))
    args = converted(args, torch.bfloat16)
    _, h_n, c_n = layer_inference(*on_device(args))
    _, h, c = reference.layer(*converted(args, torch.float64))
    begin, actual, wanted = (64.0, c_n, c) if cell == "lstm" else (1.0, h_n, h)
    change = (wanted - begin).item()
    assert abs(actual.item() - begin - change) < 0.25 * abs(change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_special_values_stay_in_their_row(cell, value, how):
    args = arguments(Case(cell, H=3, N=3, T=2, dtype=torch.float32))
    plain = layer_inference(*on_device(args))
    args[0][:, 1, 0] = value
    special = layer_inference(*on_device(args))
    for a, b in zip(plain, special, strict=True):
        if a.numel():
            assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    wanted = reference.layer(*converted(args, torch.float64))[0]
    output = special[0].cpu()
    assert_matches(output.bfloat16() if how == "tf32" else output, wanted)


@pytest.mark.parametrize(
    ("plan", "dtype"),
    [("few", torch.float32), ("held", torch.bfloat16), ("tall", torch.bfloat16)],
)
def test_rows_do_not_depend_on_their_batch(plan, dtype, monkeypatch):
    force(monkeypatch, plan)
    input, _, h0, c0, *rest = on_device(arguments(Case(N=70, H=20, T=2, dtype=dtype)))
    input.zero_()  # torch's product of the inputs may depend on their number
    whole = layer_inference(input, None, h0, c0, *rest)
    for rows in ([0], [69, 3, 64], list(range(1, 18))):
        part = layer_inference(input[:, rows], None, h0[:, rows], c0[:, rows], *rest)
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[:, rows])


def test_zero_batch(how):
    args = on_device(arguments(Case("gru", N=0, T=2, dtype=torch.float32)))
    results = layer_forward(*args)
    assert results[0].shape == (2, 0, 34)
    grads = [torch.zeros_like(t) if t.numel() else None for t in results[:3]]
    gradients = backward(layer_backward, args, results, grads)
    assert all(not g.any() for g in gradients[3])


def test_any_order_of_threads():
    """What other blocks and threads do first changes no bit."""
    if ON_GPU:
        pytest.skip("a GPU chooses its own order")
    case = Case("lstm_proj", T=3, N=18, H=17, dtype=torch.bfloat16)
    args = arguments(case)
    runs = []
    for seed in range(4):
        launch.KERNELS.module.seed(seed)
        results = layer_forward(*args)
        grads = [g.to(case.dtype) for g in cotangents(results)]
        gradients = backward(layer_backward, args, results, grads)
        runs.append([*results, *gradients[:3], *gradients[3]])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_graphs_and_streams():
    """A loop that repeats is replayed; a user may capture the call in a graph of their own."""
    if not ON_GPU:
        pytest.skip("there is no GPU")
    args = on_device(arguments(Case("lstm", N=33, dtype=torch.bfloat16)))
    wanted = layer_inference(*args)
    for _ in range(3):
        for a, b in zip(layer_inference(*args), wanted, strict=True):
            assert torch.equal(a, b)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer_inference(*args)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        results = layer_inference(*args)
    for result in results:
        result.zero_()
    graph.replay()
    for a, b in zip(results, wanted, strict=True):
        assert torch.equal(a, b)


def test_wrong_calls_of_the_kernels_raise():
    make = launch.KERNELS.CudaForward
    for cell, how, values in (
        ("elman", "float32", {}),
        ("gru", "int8", {}),
        ("gru", "float32", {}),
    ):
        with pytest.raises(ValueError, match="fastrnn: no (cell|dtype|T)"):
            make(cell, how, False, 0, values)


def test_reasons(monkeypatch):
    if not ON_GPU:
        assert cuda.status() is not None
    monkeypatch.setattr(cuda, "_missing", None)
    if not torch.cuda.is_available():
        assert cuda.status() == "there is no GPU that torch can use"
    on_cpu = SimpleNamespace(input=torch.empty(0))
    assert cuda.obstacle(on_cpu) == "tensors are on cpu; move them and the module to 'cuda'"
    gpu_tensor = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float32)
    call = SimpleNamespace(input=gpu_tensor)
    capability = (7, 5)
    monkeypatch.setattr(gpu, "capability", lambda _: capability)
    assert "the GPU has compute capability (7, 5), the kernels need (8, 0)" in cuda.obstacle(call)
    capability = (9, 0)
    assert cuda.obstacle(call) is None
    gpu_tensor.dtype = torch.complex64
    assert cuda.obstacle(call).startswith("dtype is torch.complex64; convert to one of")
