"""The Triton kernels against float64: on a GPU if there is one, else in Triton's interpreter.

The interpreter runs the programs of a launch one after the other, on one thread each. It proves
arithmetic and addresses, not what threads of a GPU see of each other's memory, and not speed.
"""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from conftest import assert_matches
from layers import layer, on_loops, reference, reference_ops
from op_cases import (
    AXES,
    FORMS,
    FORWARD,
    Case,
    arguments,
    assert_gradients,
    assert_state_in_float32,
    backward,
    converted,
    cotangents,
    expected,
    moved,
    ops_of,
    scattered,
)
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fastrnn
from fastrnn.dispatch import triton
from fastrnn.dispatch.triton import cells, launch
from fastrnn.dispatch.triton.choose import Plan
from fastrnn.table import CELLS

# numpy warns where an exponential overflows, which the cells expect.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cpu" if triton.INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Tiles so small that little sizes have several, and a tail in the last.
PLANS = {"step": Plan(False, 16, 16, 16, 4, 2), "persistent": Plan(True, 16, 32, 16, 4, 2)}
on_device = partial(moved, DEVICE)


def force(monkeypatch, schedule: str) -> None:
    monkeypatch.setattr(launch, "choose", lambda *_: PLANS[schedule])


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Each schedule in turn, forced."""
    force(monkeypatch, request.param)


@pytest.fixture(autouse=True)
def chosen():
    with fastrnn.backend("triton"):
        yield


def cases() -> list:
    """Every cell in every dtype on every schedule, in the forms of a layer by turns."""
    forms = itertools.cycle(FORMS)
    return [
        pytest.param(
            schedule,
            Case(cell, T=T, N=N, H=17, D=D, packed=packed, bias=bias, dtype=dtype),
            id=f"{schedule}-{cell}-{str(dtype)[6:]}-D{D}-{'packed' if packed else 'padded'}",
        )
        for (schedule, T, N), cell, dtype in itertools.product(
            [("step", 2, 3), ("persistent", 3, 18)], AXES["cell"], DTYPES
        )
        for D, packed, bias in [next(forms)]
    ]


@pytest.mark.parametrize(("schedule", "case"), cases())
def test_matches_float64(schedule, case, monkeypatch):
    force(monkeypatch, schedule)
    args = arguments(case)
    wanted, wanted_gradients = expected(case)
    results = ops_of.layer_forward(*on_device(args))
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert actual.dtype == case.dtype and actual.is_contiguous()
        assert_matches(actual.cpu(), value, name)
    inference = ops_of.layer_inference(*on_device(args))
    for name, actual, value in zip(FORWARD, inference, results, strict=False):
        assert torch.equal(actual, value), name
    grads = on_device(cotangents(wanted))
    grads = [None if g is None else g.to(case.dtype) for g in grads]
    gradients = backward(ops_of.layer_backward, on_device(args), results, grads)
    assert_gradients(tree_map_only(Tensor, Tensor.cpu, gradients), wanted_gradients)


def features(case: Case, reset: bool) -> dict:
    """Lengths with 0 and T among them, limits that bind, and resets if asked for."""
    lengths = torch.tensor([3, 0, case.T, 2, 1])[: case.N]
    limits = {"detach_every": 2, "grad_clip": 0.05}
    flags = {"reset": torch.rand(case.T, case.N) < 0.4} if reset else {}
    return {"lengths": lengths, **limits, **flags}


@pytest.mark.parametrize("which", ["all", "lengths", "reset", "limits"])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_features(cell, which, plan):
    case = Case(
        cell, T=5, N=5, H=5, I=3, D=1 if which in ("all", "reset") else 2, dtype=torch.float32
    )
    options = features(case, reset=True)
    keep = {"all": options, "limits": ("detach_every", "grad_clip")}.get(which, (which,))
    options = {name: options[name] for name in keep}
    args = arguments(case)

    def run(ops, args, options, grads):
        results = ops.layer_forward(*args, **options)
        output, _, _, *saved = results
        needs = (True, True, True)
        return results, ops.layer_backward(*grads, None, output, *saved, *needs, *args, **options)

    double = converted(args, torch.float64)
    shapes = reference_ops.layer_forward(*double, **options)
    grads = [
        torch.randn_like(t).float() if t.numel() else None
        for t in (*shapes[:3], shapes[4] if case.D == 1 else torch.empty(0))
    ]
    wide = [None if g is None else g.double() for g in grads]
    wanted, wanted_gradients = run(reference_ops, double, options, wide)
    results, gradients = run(ops_of, on_device(args), on_device(options), on_device(grads))
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert_matches(actual.cpu(), value, name)
    assert_gradients(tree_map_only(Tensor, Tensor.cpu, gradients), wanted_gradients)


@pytest.mark.parametrize("cell", AXES["cell"])
def test_missing_and_unneeded_gradients(cell, plan):
    case = Case(cell, H=3, N=2, T=2, I=2, dtype=torch.float32)
    args = on_device(arguments(case))
    results = ops_of.layer_forward(*args)
    grads = on_device(cotangents(results))
    for k in range(3):
        some = [g if i == k else None for i, g in enumerate(grads)]
        wide = tree_map_only(Tensor, lambda t: t.cpu().double(), (args, results, some))
        wanted = backward(reference_ops.layer_backward, *wide)
        actual = backward(ops_of.layer_backward, args, results, some)
        assert_gradients(tree_map_only(Tensor, Tensor.cpu, actual), wanted)
        needs = [i == k for i in range(3)]
        *few, weights = backward(ops_of.layer_backward, args, results, some, needs)
        for need, a, e in zip((needs[0], needs[1], needs[1]), few, actual[:3], strict=True):
            assert torch.equal(a, e) if need else a.shape == (0,)
        assert all(map(torch.equal, weights, actual[3])) if needs[2] else weights == []


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_modules(name):
    # two layers and directions, the plans that `choose` makes, autograd
    module = getattr(fastrnn, name)(3, 4, num_layers=2, bidirectional=True, device=DEVICE)
    x = torch.randn(2, 3, 3, device=DEVICE, requires_grad=True)
    results = module(x, lengths=torch.tensor([2, 1, 0], device=DEVICE), return_states=True)
    loss = sum(t.square().sum() for t in (results[0], *results[2].h))
    actual = torch.autograd.grad(loss, [x, *module.parameters()])
    module.double()
    x = x.detach().double().requires_grad_()
    with fastrnn.backend("reference"):
        wanted = module(x, lengths=torch.tensor([2, 1, 0], device=DEVICE), return_states=True)
    assert_matches(results[0], wanted[0], "output")
    loss = sum(t.square().sum() for t in (wanted[0], *wanted[2].h))
    wanted = torch.autograd.grad(loss, [x, *module.parameters()])
    for a, e in zip(actual, wanted, strict=True):
        assert_matches(a, e)


def test_compile():
    module = fastrnn.LSTM(3, 4, device=DEVICE)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 3, device=DEVICE, requires_grad=True)
    results = [f(x)[0] for f in (module, compiled)]
    assert torch.equal(*results)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in results]
    assert_matches(*grads)
    if DEVICE == "cpu":  # on an H200 two products of cuBLAS differed
        assert torch.equal(*grads)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_is_kept_in_float32(cell):
    assert_state_in_float32(cell, ops_of.layer_inference, DEVICE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu"])
def test_special_values_stay_in_their_row(cell, value):
    args = arguments(Case(cell, H=3, N=3, T=2, dtype=torch.float32))
    plain = ops_of.layer_inference(*on_device(args))
    args[0][:, 1, 0] = value
    special = ops_of.layer_inference(*on_device(args))
    for a, b in zip(plain, special, strict=True):
        if a.numel():
            assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    wanted = reference.layer(*converted(args, torch.float64))[0]
    assert_matches(special[0].cpu(), wanted)


@pytest.mark.parametrize("case", [Case("lstm_proj", dtype=torch.float32, T=2, D=1)], ids=str)
def test_any_strides(case):
    input, _, h0, c0, weights, cell, names = args = arguments(case)
    strided = [scattered(t) for t in (input, h0, c0)], [scattered(w) for w in weights]
    (input, h0, c0), weights = on_device(strided)
    wanted, wanted_gradients = expected(case)
    results = ops_of.layer_forward(input, None, h0, c0, weights, cell, names)
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert_matches(actual.cpu(), value, name)
    grads = on_device([scattered(g) for g in cotangents(wanted)])
    grads = [g.float() for g in grads]
    args = (input, None, h0, c0, weights, cell, names)
    gradients = backward(ops_of.layer_backward, args, results, grads)
    assert_gradients(tree_map_only(Tensor, Tensor.cpu, gradients), wanted_gradients)


def test_zero_batch(plan):
    args = on_device(arguments(Case("gru", N=0, T=2, dtype=torch.float32)))
    results = ops_of.layer_forward(*args)
    assert results[0].shape == (2, 0, 34)
    grads = [torch.zeros_like(t) if t.numel() else None for t in results[:3]]
    gradients = backward(ops_of.layer_backward, args, results, grads)
    assert all(not g.any() for g in gradients[3])


def test_lengths_out_of_range():
    args = arguments(Case("gru", T=2, N=2, D=1, dtype=torch.float32))
    for lengths in ([3, 1], [-1, 1]):
        with pytest.raises(RuntimeError, match="lengths must be between 0 and 2"):
            on_loops(launch).layer_inference(*args, lengths=torch.tensor(lengths))


def test_other_backends_inside():
    args = on_device(arguments(Case("gru", T=2, dtype=torch.float64)))
    for name in ("auto", "reference"):
        with fastrnn.backend(name):
            output = layer(*args)[0]
        assert output.dtype == torch.float64
    output = layer(*on_device(arguments(Case("gru", T=2, dtype=torch.bfloat16))))[0]
    assert output.dtype == torch.bfloat16


def test_what_cannot_run_says_so():
    args = arguments(Case("gru", dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: dtype is torch.float64; convert"):
        layer(*on_device(args))
    args = [a.to("meta") if isinstance(a, Tensor) else a for a in converted(args, torch.float32)]
    args[4] = [w.to("meta") for w in args[4]]
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: tensors are on meta; move them"):
        layer(*args)
    args = arguments(Case("gru", dtype=torch.float32))
    args = (args[0], args[1], args[2], args[3], [w.double() for w in args[4]], *args[5:])
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        on_loops(launch).layer_inference(*args)


def test_cells_are_those_of_the_table():
    assert list(cells.STEPS) == list(CELLS)
