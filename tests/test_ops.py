"""The three ops against the op contract: on every instruction set, in all dtypes of the kernels."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import names_of, reference_ops
from torch import Tensor

from fastrnn.table import CELLS

FORWARD = ["output", "h_n", "c_n", "gates", "cells", "hidden"]
ops_of = torch.ops.fastrnn
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """A layer call. "lstm_proj" is the cell lstm with a projection."""

    cell: str = "lstm"
    H: int = 17
    N: int = 7
    T: int = 5
    I: int = 6
    D: int = 2
    packed: bool = False
    bias: bool = True
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        sizes = f"T{self.T}-N{self.N}-I{self.I}-H{self.H}-D{self.D}"
        options = "-packed" * self.packed + "-nobias" * (not self.bias)
        return f"{self.cell}-{sizes}{options}-{str(self.dtype)[6:]}"


AXES = {
    "cell": ["lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu"],
    "H": [1, 3, 17, 33, 63, 100, 257],
    "N": [1, 2, 7, 33],
    "T": [1, 2, 50, 513],
    "I": [1, 5, 64],
    "D": [1, 2],
    "packed": [False, True],
    "bias": [False, True],
    "dtype": DTYPES,
}


def covering(axes: dict[str, list]) -> list[Case]:
    """Cases in which every pair of values of two axes appears: greedy, and always the same."""
    choose = random.Random(0)
    names = list(axes)

    def pairs(values: tuple) -> set:
        return set(itertools.combinations(zip(names, values, strict=True), 2))

    def candidate() -> tuple:
        return tuple(choose.choice(axis) for axis in axes.values())

    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(axes[a], axes[b])
    }
    cases = []
    while missing:
        best = max((candidate() for _ in range(50)), key=lambda v: len(pairs(v) & missing))
        if pairs(best) & missing:
            missing -= pairs(best)
            cases.append(Case(**dict(zip(names, best, strict=True))))
    return cases


CASES = covering(AXES)
SMALL = [
    Case(cell, D=D, packed=packed, bias=bias)
    for cell, (D, packed, bias) in itertools.product(
        AXES["cell"], [(1, False, True), (2, True, True), (2, False, False)]
    )
]


TINY = [
    Case(cell, H=3, N=2, T=3, I=2, D=D, packed=packed)
    for cell, (D, packed) in zip(
        AXES["cell"] * 2, itertools.cycle([(1, False), (2, True), (2, False)]), strict=False
    )
]


def arguments(case: Case) -> tuple:
    """(input, batch_sizes, h0, c0, weights, cell, names) of `case`, drawn from its own stream."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * values - 1) * scale).to(case.dtype)

    cell = "lstm" if case.cell == "lstm_proj" else case.cell
    T, N, I, H, D = case.T, case.N, case.I, case.H, case.D
    P = (H + 1) // 2 if case.cell == "lstm_proj" else H
    GH = CELLS[cell].gates * H
    batch_sizes, shape = None, (T, N, I)
    if case.packed:
        lengths = torch.randint(1, T + 1, (N,), generator=generator)
        lengths[0] = T
        batch_sizes = (lengths > torch.arange(T)[:, None]).sum(1)
        shape = (int(batch_sizes.sum()), I)
    scale = H**-0.5
    weights = []
    for _ in range(D):
        weights += [uniform(GH, I, scale=scale), uniform(GH, P, scale=scale)]
        if case.bias:
            weights += [uniform(GH, scale=scale), uniform(GH, scale=scale)]
        if P != H or case.cell == "lstm_proj":
            weights.append(uniform(P, H, scale=scale))
    input, h0 = uniform(*shape), uniform(D, N, P)
    if cell == "rnn_relu":
        # The derivative jumps at 0, where rounding may choose either side: the first feature is
        # constant and drives every unit clearly on or off.
        input[..., 0] = 1
        per_direction = len(weights) // D
        for d in range(0, len(weights), per_direction):
            w_ih, w_hh = weights[d : d + 2]
            w_ih *= 0.1
            w_hh *= 0.1
            w_ih[:, 0] = 3 * w_ih[:, 0].sign()
    c0 = uniform(D, N, H) if cell == "lstm" else None
    return input, batch_sizes, h0, c0, weights, cell, names_of(weights, case.bias, D)


def converted(args: tuple, dtype: torch.dtype) -> tuple:
    """The arguments with every tensor but batch_sizes in `dtype`."""
    input, batch_sizes, h0, c0, weights, cell, names = args
    input, h0, c0 = (None if t is None else t.to(dtype) for t in (input, h0, c0))
    return input, batch_sizes, h0, c0, [w.to(dtype) for w in weights], cell, names


def cotangents(results: tuple) -> list[Tensor | None]:
    """A random gradient for each of output, h_n and c_n; None for an empty c_n."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)
        if r.numel()
        else None
        for r in results[:3]
    ]


@functools.cache
def expected(case: Case) -> tuple[tuple, tuple]:
    """What layer_forward and layer_backward must give, from the reference in float64."""
    args = converted(arguments(case), torch.float64)
    results = reference_ops.layer_forward(*args)
    # the gradients are rounded as the kernel receives them
    grads = [None if g is None else g.to(case.dtype).double() for g in cotangents(results)]
    return results, backward(reference_ops.layer_backward, args, results, grads)


def backward(function, args: tuple, results: tuple, grads, needs=(True, True, True)) -> tuple:
    """Calls a layer_backward with what belongs to one forward call."""
    output, _, _, *saved = results
    return function(*grads, None, output, *saved, *needs, *args)


def assert_gradients(actual: tuple, wanted: tuple) -> None:
    names = ["input", "h0", "c0"]
    for name, a, e in zip(names, actual[:3], wanted[:3], strict=True):
        assert_matches(a, e, f"gradient of {name}")
    for k, (a, e) in enumerate(zip(actual[3], wanted[3], strict=True)):
        assert_matches(a, e, f"gradient of weight {k}")


def test_cases_cover_every_value():
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in CASES} == set(values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case, isa):
    args = arguments(case)
    wanted, wanted_gradients = expected(case)
    results = ops_of.layer_forward(*args)
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert actual.dtype == case.dtype and actual.is_contiguous()
        assert_matches(actual, value, name)
    for name, actual, value in zip(FORWARD, ops_of.layer_inference(*args), wanted, strict=False):
        assert actual.is_contiguous()
        assert_matches(actual, value, f"{name} of inference")
    grads = cotangents(results)
    assert_gradients(backward(ops_of.layer_backward, args, results, grads), wanted_gradients)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_missing_gradients_are_zero(case, isa):
    args = arguments(case)
    results = ops_of.layer_forward(*args)
    grads = cotangents(results)
    for present in itertools.product([False, True], repeat=3):
        some = [g if p else None for g, p in zip(grads, present, strict=True)]
        wanted = backward(reference_ops.layer_backward, args, results, some)
        assert_gradients(backward(ops_of.layer_backward, args, results, some), wanted)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_not_needed_are_empty(case, isa):
    args = arguments(case)
    results = ops_of.layer_forward(*args)
    grads = cotangents(results)
    full = backward(ops_of.layer_backward, args, results, grads)
    for needs in itertools.product([False, True], repeat=3):
        some = backward(ops_of.layer_backward, args, results, grads, needs)
        state = needs[1], needs[1] and args[3] is not None
        for need, a, e in zip((needs[0], *state), some[:3], full[:3], strict=True):
            assert torch.equal(a, e) if need else a.shape == (0,)
        assert len(some[3]) == (len(full[3]) if needs[2] else 0)
        assert all(map(torch.equal, some[3], full[3]))


def scattered(tensor: Tensor | None) -> Tensor | None:
    """The same values with every stride larger than it need be, the last dimension outermost."""
    if tensor is None or not tensor.dim():
        return tensor
    wide = torch.full((*tensor.shape[::-1], 3), float("nan"), dtype=tensor.dtype)
    view = wide[..., 1].permute(*reversed(range(tensor.dim())))
    return view.copy_(tensor)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_any_strides(case, isa):
    input, batch_sizes, h0, c0, weights, cell, names = args = arguments(case)
    if batch_sizes is not None:
        batch_sizes = torch.stack([batch_sizes, batch_sizes * 0], 1)[:, 0]
    strided = (
        scattered(input),
        batch_sizes,
        scattered(h0),
        scattered(c0),
        [scattered(w) for w in weights],
        cell,
        names,
    )
    wanted, wanted_gradients = expected(case)
    results = ops_of.layer_forward(*strided)
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert_matches(actual, value, name)
    for name, actual, value in zip(FORWARD, ops_of.layer_inference(*strided), wanted, strict=False):
        assert_matches(actual, value, name)
    grads = [scattered(g) for g in cotangents(results)]
    gradients = backward(ops_of.layer_backward, strided, results, grads)
    assert_gradients(gradients, wanted_gradients)
    assert all(map(torch.equal, weights, args[4]))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_expanded_state_and_gradients(case, isa):
    """Stride 0: an hx made by expand, and the gradient of a sum."""
    input, batch_sizes, h0, c0, weights, cell, names = arguments(case)
    h0 = h0[:, :1].expand_as(h0)
    c0 = None if c0 is None else c0[:, :1].expand_as(c0)
    args = (input, batch_sizes, h0, c0, weights, cell, names)
    results = ops_of.layer_forward(*args)
    for actual, value in zip(results, reference_ops.layer_forward(*args), strict=True):
        assert_matches(actual, value)
    grads = [None if g is None else g.new_ones(()).expand_as(g) for g in cotangents(results)]
    wanted = backward(reference_ops.layer_backward, args, results, grads)
    assert_gradients(backward(ops_of.layer_backward, args, results, grads), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", AXES["cell"])
def test_zero_batch(cell, dtype, isa):
    args = arguments(Case(cell, N=0, dtype=dtype))
    results = ops_of.layer_forward(*args)
    wanted = reference_ops.layer_forward(*args)
    assert [r.shape for r in results] == [r.shape for r in wanted]
    inference = ops_of.layer_inference(*args)
    assert [r.shape for r in inference] == [r.shape for r in wanted[:3]]
    grads = [torch.zeros_like(r) for r in results[:2]] + [None]
    gradients = backward(ops_of.layer_backward, args, results, grads)
    assert_gradients(gradients, backward(reference_ops.layer_backward, args, results, grads))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_special_values_stay_in_their_row(cell, value, isa):
    """NaN, inf and huge numbers give what the formulas give, in the rows they belong to."""
    for dtype in DTYPES:
        args = arguments(Case(cell, D=1, dtype=dtype))
        args[0][2, 3, 1] = value
        args[2][0, 5, 0] = value
        wanted = reference_ops.layer_forward(*args)
        for name, actual, target in zip(FORWARD, ops_of.layer_forward(*args), wanted, strict=True):
            assert_matches(actual, target, name)
        for name, actual, target in zip(
            FORWARD, ops_of.layer_inference(*args), wanted, strict=False
        ):
            assert_matches(actual, target, name)
        clean = [row for row in range(7) if row not in (3, 5)]
        assert wanted[0][:, clean].isfinite().all()


@pytest.mark.parametrize("case", [case for case in CASES if case.T <= 50][:12], ids=str)
def test_results_do_not_depend_on_threads(case, isa):
    if KERNELS is None:  # torch's own products promise no such thing
        return
    args = arguments(case)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results = ops_of.layer_forward(*args)
            gradients = backward(ops_of.layer_backward, args, results, cotangents(results))
            inference = ops_of.layer_inference(*args)
            runs.append([*results, *inference, *gradients[:3], *gradients[3]])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", AXES["cell"])
def test_rows_do_not_depend_on_their_batch(cell, dtype, isa):
    if KERNELS is None:  # torch's own products promise no such thing
        return
    input, _, h0, c0, weights, *options = args = arguments(Case(cell, N=33, H=100, dtype=dtype))
    whole = ops_of.layer_forward(*args)
    assert all(map(torch.equal, ops_of.layer_inference(*args), whole))
    for rows in ([0], [3, 4], [7, 5, 6], list(range(1, 18))):
        c = None if c0 is None else c0[:, rows]
        part = (input[:, rows], None, h0[:, rows], c, weights, *options)
        for op in (ops_of.layer_forward, ops_of.layer_inference):
            output, h_n, _, *_ = op(*part)
            assert torch.equal(output, whole[0][:, rows])
            assert torch.equal(h_n, whole[1][:, rows])


@pytest.mark.parametrize("case", TINY[:5], ids=str)
def test_opcheck(case):
    args = arguments(case)
    results = ops_of.layer_forward(*args)
    needs = (True, True, True)
    output, _, _, *saved = results
    backward_args = (*cotangents(results), None, output, *saved, *needs, *args)
    torch.library.opcheck(ops_of.layer_inference, args)
    torch.library.opcheck(ops_of.layer_backward, backward_args)
    torch.library.opcheck(ops_of.layer_backward, (*backward_args[:8], False, True, False, *args))
    input, batch_sizes, h0, c0, weights, cell, names = args
    wanted = [t.requires_grad_() for t in (input, h0, *weights)]
    assert all(t.is_leaf for t in wanted)
    torch.library.opcheck(ops_of.layer_forward, args)
