"""The modules on CUDA tensors: every backend and dtype against float64 on the CPU, streams, graphs,
errors. Skipped only where torch has no CUDA GPU; there, a backend that cannot run is a failure."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from conftest import assert_matches
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn
from fastrnn import dispatch
from fastrnn.call import Call
from fastrnn.dispatch import cuda, cudnn, gpu, triton
from fastrnn.table import weight_names

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA GPU here")

DEVICE = "cuda"
BACKENDS = ["auto", "cuda", "triton", "cudnn", "reference"]
OURS = ["cuda", "triton"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
KINDS = {
    "LSTM": ("LSTM", {}),
    "LSTM-proj": ("LSTM", {"proj_size": 9}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
    "RNN-relu": ("RNN", {"nonlinearity": "relu"}),
}
FORMS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "packed": {"bidirectional": True, "bias": False},
}
I, H = 6, 33


@pytest.fixture(autouse=True)
def exact_products():
    """float32 without TF32, which cuDNN uses unless told otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def skip_unsupported(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels have no float64")


def tensors(results) -> list[Tensor]:
    return [t for t in tree_leaves(results) if torch.is_tensor(t) and t.is_floating_point()]


def module_of(kind: str, dtype: torch.dtype = torch.float32, **form) -> torch.nn.Module:
    """On the GPU; its weights are numbers of `dtype`."""
    name, more = KINDS[kind]
    module = getattr(fastrnn, name)(I, H, **form, **more)
    if kind == "RNN-relu":
        # The derivative jumps at 0, where rounding may choose either side: the first feature, 1 or
        # the first unit of the layer before, drives every unit clearly on or off.
        with torch.no_grad():
            for weight in module.parameters():
                weight *= 0.1
                if weight.dim() == 2 and len(weight) == H and weight.size(1) != H:
                    weight[:, 0] = 3 * weight[:, 0].sign()
                    weight[0, 0] = 3
    return module.to(dtype).to(DEVICE)


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """The same in float64 on the CPU."""
    return copy.deepcopy(module).cpu().double()


def run(module, x, hx=None, train: bool = True, rounded=None, **options) -> list[Tensor]:
    """Results, and unless told otherwise the gradients of the input and of every parameter, for
    gradients of all results that are the same on every device; `rounded` to a dtype or to that of
    the results."""
    packed = isinstance(x, PackedSequence)
    data = (x.data if packed else x).detach().requires_grad_(train)
    with contextlib.nullcontext() if train else torch.no_grad():
        results = tensors(module(x._replace(data=data) if packed else data, hx, **options))
    if not train:
        return results
    generator = torch.Generator().manual_seed(2)
    seeds = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    pairs = [(r, s.to(rounded or r.dtype).to(r)) for r, s in zip(results, seeds, strict=True)]
    outputs, seeds = zip(*((r, s) for r, s in pairs if r.requires_grad), strict=True)
    return [*results, *torch.autograd.grad(outputs, [data, *module.parameters()], seeds)]


def on_cpu(value):
    """Tensors in float64 on the CPU."""
    return tree_map_only(
        Tensor, lambda t: (t.double() if t.is_floating_point() else t).cpu(), value
    )


def example(form: str, dtype: torch.dtype, T: int = 7, N: int = 5):
    sizes = [(n, I) for n in (3, T, 1, 5)] if form == "packed" else [(T, N, I)]
    rows = [torch.randn(size).to(dtype).to(DEVICE) for size in sizes]
    for row in rows:
        row[..., 0] = 1
    return pack_sequence(rows, enforce_sorted=False) if form == "packed" else rows[0]


def expected(module, x, hx=None, **options) -> list[Tensor]:
    """What `run` gives in float64 on the CPU."""
    wide = PackedSequence(*map(on_cpu, x)) if isinstance(x, PackedSequence) else on_cpu(x)
    dtype = next(module.parameters()).dtype
    return run(twin(module), wide, on_cpu(hx), rounded=dtype, **on_cpu(options))


def assert_all_match(actual: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(actual) == len(wanted)
    for k, (a, e) in enumerate(zip(actual, wanted, strict=True)):
        assert_matches(a.cpu(), e, f"result {k}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, kind, form, dtype):
    skip_unsupported(backend, dtype)
    module, x = module_of(kind, dtype, **FORMS[form]), example(form, dtype)
    wanted = expected(module, x)
    with fastrnn.backend(backend):
        actual = run(module, x)
        assert_all_match(actual, wanted)
        count = len(run(module, x, train=False))
        assert_all_match(run(module, x, train=False), wanted[:count])
    assert all(t.dtype == dtype and t.is_cuda for t in actual)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("backend", OURS)
def test_tf32_is_obeyed(backend, tf32):
    """Without it no product of 10 bits is to be seen in the result."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    module, x = module_of("GRU"), torch.randn(3, 64, I, device=DEVICE)
    wanted = run(twin(module), on_cpu(x), train=False)[0]
    with fastrnn.backend(backend):
        output = run(module, x, train=False)[0]
    error = (output.cpu() - wanted).abs().max().item()
    assert error < (2e-3 if tf32 else 2e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("backend", ["auto", *OURS, "reference"])
def test_features(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    lengths = torch.tensor([6, 0, 3, 1])
    reset = torch.rand(6, 4) < 0.3
    for options in (
        {"lengths": lengths, "return_states": True, "return_gates": True},
        {"reset": reset, "detach_every": 2, "grad_clip": 0.01},
    ):
        there = tree_map_only(Tensor, lambda t: t.to(DEVICE), options)
        wanted = expected(module, x, **options)
        with fastrnn.backend(backend):
            assert_all_match(run(module, x, **there), wanted)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cells(backend, kind):
    cell, x = getattr(fastrnn, kind)(I, H, device=DEVICE), torch.randn(5, I, device=DEVICE)
    wanted = expected(cell, x)
    with fastrnn.backend(backend):
        assert_all_match(run(cell, x), wanted)


@pytest.mark.parametrize("kind", ["LSTM-proj", "GRU"])
@pytest.mark.parametrize("backend", OURS)
def test_results_repeat_and_rows_are_their_own(backend, kind):
    module, x = module_of(kind, torch.bfloat16), torch.randn(9, 40, I).bfloat16().to(DEVICE)
    with fastrnn.backend(backend):
        first, second = run(module, x), run(module, x)
        assert all(map(torch.equal, first, second))
        parts = [run(module, x[:, rows], train=False)[0] for rows in (slice(0, 3), slice(3, 40))]
    assert torch.equal(torch.cat(parts, 1), first[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_stream(backend, form):
    """What a call needs is ordered by its stream alone: the default one is kept busy."""
    module, x = module_of("LSTM", **FORMS[form]), example(form, torch.float32)
    stream = torch.cuda.Stream()
    with fastrnn.backend(backend):
        wanted = run(module, x)
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        with torch.cuda.stream(stream):
            for _ in range(3):
                actual = run(module, x)
            finished = torch.cuda.Event()
            finished.record()
            finished.synchronize()
            assert_all_match(actual, on_cpu(wanted))
        torch.cuda.synchronize()


@pytest.mark.parametrize("kind", ["LSTM", "LSTM-proj", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS, "cudnn"])
def test_nothing_waits_for_the_device(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    options = [{}]
    if backend in OURS:
        lengths = torch.tensor([6, 0, 3, 1], device=DEVICE)
        options.append({"lengths": lengths, "reset": lengths > torch.arange(6)[:, None].cuda()})
    with fastrnn.backend(backend):
        for each in options:
            run(module, x, **each)  # compiles, loads, asks the device what it is
            for _ in range(3):
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    data = x.detach().requires_grad_()
                    output = tensors(module(data, **each))[0]
                    torch.autograd.grad(output, [data, *module.parameters()], output)
                finally:
                    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_cuda_graph(backend, kind, form):
    """A training step of the user's, captured and replayed on other numbers."""
    if (backend, form) == ("auto", "packed"):
        pytest.skip("cuDNN is given the lengths of packed input anew in each call")
    module, x = module_of(kind, **FORMS[form]), example(form, torch.float32)
    inputs = [example(form, torch.float32) for _ in range(2)]
    with fastrnn.backend(backend):
        # Without their graphs, whose nodes for the parameters belong to this stream.
        wanted = [[t.detach() for t in run(module, each)] for each in inputs]
        data = (x.data if form == "packed" else x).requires_grad_()

        def step() -> list[Tensor]:
            results = tensors(module(x._replace(data=data) if form == "packed" else data))
            grads = torch.autograd.grad(results, [data, *module.parameters()], seeds(results))
            return [*results, *grads]

        def seeds(results):
            return [seed.to(r) for seed, r in zip(given, results, strict=True)]

        generator = torch.Generator().manual_seed(2)
        shapes = [r.shape for r in tensors(module(x))]
        given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        given = [g.float().to(DEVICE) for g in given]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for _ in range(20):  # what the capture left to the allocator is used again by others
            run(module, inputs[0])
        for each, results in zip(inputs, wanted, strict=True):
            with torch.no_grad():
                data.copy_(each.data if form == "packed" else each)
            graph.replay()
            assert_all_match(captured, on_cpu(results))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_make_graphed_callables(backend, kind):
    module, x = module_of(kind), torch.randn(6, 4, I, device=DEVICE, requires_grad=True)
    other = torch.randn_like(x).requires_grad_()
    with fastrnn.backend(backend):
        wanted = torch.autograd.grad(tensors(module(other))[0].square().sum(), other)[0]
        output = module(other)[0].detach()
        graphed = torch.cuda.make_graphed_callables(module, (x,))
        result = graphed(other)[0]
        assert_matches(result.cpu(), output.cpu().double())
        (actual,) = torch.autograd.grad(result.square().sum(), other)
        assert_matches(actual.cpu(), wanted.cpu().double())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_compile(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    with fastrnn.backend(backend):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_all_match(run(compiled, x), on_cpu(run(module, x)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend, kind):
    module, x = module_of(kind), torch.randn(6, 4, I, device=DEVICE)
    wanted = expected(module, x)
    for dtype in (torch.float16, torch.bfloat16):
        with fastrnn.backend(backend), torch.autocast(DEVICE, dtype):
            results = tensors(module(x))
        assert {t.dtype for t in results} == {dtype}
        assert_all_match(results, wanted[: len(results)])


def call_of(cell: str, x: torch.Tensor, h0: torch.Tensor) -> Call:
    """As much of a call as the choice looks at."""
    return Call(x, None, h0, None, [], cell, weight_names(True, False))


def test_auto_is_not_slower_than_torch_nn_by_construction():
    """It makes the same calls: parameters lie as cuDNN wants them, and a stack is one call."""
    for name in ("LSTM", "GRU", "RNN"):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(I, H, num_layers=2, device=DEVICE)
        ours = getattr(fastrnn, name)(I, H, num_layers=2, device=DEVICE)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(6, 4, I, device=DEVICE)
        assert_all_match(run(ours, x), on_cpu(run(theirs, x)))
        base = ours.weight_ih_l0.untyped_storage().data_ptr()
        assert all(p.untyped_storage().data_ptr() == base for p in ours.parameters())
        assert dispatch.choose(call_of(name.lower(), x, x)) is cudnn


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_auto_takes_what_was_faster(cell):
    """Where it was measured: on a GPU of compute capability 9 with compiled kernels."""
    module = getattr(fastrnn, cell)(I, 128, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(50, 3, I).bfloat16().to(DEVICE)
    hopper = torch.cuda.get_device_capability()[0] == 9
    h0 = x.new_zeros(1, 3, 128)
    assert dispatch.choose(call_of(cell.lower(), x, h0)) is (cuda if hopper else cudnn)
    assert_all_match(run(module, x), expected(module, x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_eval_mode(backend):
    module, x = module_of("LSTM", num_layers=2, dropout=0.5).eval(), example("plain", torch.float32)
    wanted = expected(module, x)
    with fastrnn.backend(backend):
        assert_all_match(run(module, x), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors(backend):
    module = module_of("LSTM")
    x = torch.randn(3, 2, I, device=DEVICE)
    with fastrnn.backend(backend):
        with pytest.raises(RuntimeError, match="on the same device|tensors are on cpu; move them"):
            module(x.cpu())
        with pytest.raises(RuntimeError, match="on the same device"):
            module(x, (torch.zeros(1, 2, H), torch.zeros(1, 2, H, device=DEVICE)))
        with pytest.raises(RuntimeError, match="same device|tensors are on cpu"):
            module.cpu()(x.cpu(), (torch.zeros(1, 2, H, device=DEVICE), torch.zeros(1, 2, H)))


@pytest.mark.parametrize("backend", OURS)
def test_a_gpu_that_is_too_old(backend, monkeypatch):
    module, x = module_of("GRU"), example("plain", torch.float32)
    monkeypatch.setattr(gpu, "capability", lambda _: (7, 5))
    with (
        fastrnn.backend(backend),
        pytest.raises(RuntimeError, match=rf"'{backend}' cannot run: .*\(7, 5\)"),
    ):
        module(x)
    module(x)  # "auto" goes on


def test_everything_can_run_here():
    """On a machine that `make gpu` is meant for nothing is missing."""
    assert cuda.status() is None and triton.status() is None
    assert set(fastrnn.backends().values()) == {"usable"}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", KINDS)
def test_small_layers(kind, dtype):
    """Every kernel of ours once: what compute-sanitizer watches."""
    with fastrnn.backend("cuda"):
        for form in ("stack", "packed"):
            run(module_of(kind, dtype, **FORMS[form]), example(form, dtype, T=3, N=17))
