"""The CUDA kernels against float64: every cell, schedule, precision and feature."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import assert_matches
from cuda_kernels import (
    HOW,
    SIZES,
    WAYS,
    as_precise,
    force,
    layer_backward,
    layer_forward,
    layer_inference,
    on_device,
)
from layers import reference, reference_ops
from op_cases import (
    AXES,
    FORMS,
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

from fastrnn.table import weight_names

TENSOR_CORES = ("tf32", "bfloat16", "float16")
RUNS = ["stepwise-float32", "stepwise-tf32", "library-float32"]
RUNS += [f"{way}-{how}" for way in WAYS for how in TENSOR_CORES]


@pytest.fixture(params=RUNS)
def run_of(request, monkeypatch):
    """Each schedule in turn, forced, and how it makes products."""
    schedule, how = request.param.split("-")
    force(monkeypatch, schedule, how)
    return schedule, how


@pytest.fixture
def schedule(run_of):
    return run_of[0]


@pytest.fixture
def how(run_of):
    return run_of[1]


@pytest.fixture
def dtype(how):
    """Of the tensors of a call."""
    return torch.float32 if how == "tf32" else getattr(torch, how)


def cases() -> list:
    """Every cell on every schedule in every precision, in the forms of a layer by turns."""
    forms = itertools.cycle(FORMS)
    values = []
    for (schedule, (N, H)), cell, how in itertools.product(SIZES.items(), AXES["cell"], HOW):
        D, packed, bias = next(forms)
        if (schedule, how) == ("library", "tf32"):  # the kernels of float32, and products of torch
            continue
        if schedule in WAYS and (how in ("float32", "float64") or "proj" in cell):
            continue
        dtype = torch.float32 if how == "tf32" else getattr(torch, how)
        case = Case(cell, T=3, N=N, H=H, D=D, packed=packed, bias=bias, dtype=dtype)
        name = f"{schedule}-{cell}-{how}-D{D}-{'packed' if packed else 'padded'}"
        values.append(pytest.param(schedule, how, case, id=name))
    return values


@pytest.mark.parametrize(("schedule", "how", "case"), cases())
def test_matches_float64(schedule, how, case, monkeypatch):
    force(monkeypatch, schedule, how)
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
def test_features(cell, which, schedule, how, dtype):
    N, H = SIZES[schedule] if schedule in WAYS else (17, 5)
    directions = 1 if which in ("all", "reset") else 2
    case = Case(cell, T=5, N=N, H=H, I=3, D=directions, dtype=dtype)
    options = features(case, reset=True)
    keep = {"all": options, "limits": ("detach_every", "grad_clip")}.get(which, (which,))
    options = {name: options[name] for name in keep}
    args = arguments(case)

    def run(forward, back, args, options, grads):
        results = forward(*args, **options)
        output, _, _, *saved = results
        needs = (True, True, True)
        return results, back(*grads, None, output, *saved, *needs, *args, **options)

    double = converted(args, torch.float64)
    shapes = reference_ops.layer_forward(*double, **options)
    grads = [
        torch.randn_like(t).to(dtype) if t.numel() else None
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
def test_missing_and_unneeded_gradients(cell, how, dtype):
    case = Case(cell, H=3, N=2, T=2, I=2, dtype=dtype)
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
    force(monkeypatch, "stepwise", how)
    for H in (8, 150, 230):
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_special_values_stay_in_their_row(cell, value, how, dtype):
    args = arguments(Case(cell, H=3, N=3, T=2, dtype=dtype))
    plain = layer_inference(*on_device(args))
    args[0][:, 1, 0] = value
    special = layer_inference(*on_device(args))
    for a, b in zip(plain, special, strict=True):
        if a.numel():
            assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    wanted = reference.layer(*converted(args, torch.float64))[0]
    output = special[0].cpu()
    assert_matches(output.bfloat16() if how == "tf32" else output, wanted)


def test_zero_batch(dtype):
    args = on_device(arguments(Case("gru", N=0, T=2, dtype=dtype)))
    results = layer_forward(*args)
    assert results[0].shape == (2, 0, 34)
    grads = [torch.zeros_like(t) if t.numel() else None for t in results[:3]]
    gradients = backward(layer_backward, args, results, grads)
    assert all(not g.any() for g in gradients[3])
