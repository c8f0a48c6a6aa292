"""The three ops against the op contract: on every instruction set, in all dtypes of the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import reference_ops
from op_cases import (
    AXES,
    CASES,
    DTYPES,
    FORWARD,
    SMALL,
    TINY,
    Case,
    arguments,
    assert_gradients,
    backward,
    cotangents,
    expected,
    ops_of,
    scattered,
)


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
    backward_args = (*cotangents(results), None, None, output, *saved, *needs, *args)
    torch.library.opcheck(ops_of.layer_inference, args)
    torch.library.opcheck(ops_of.layer_backward, backward_args)
    torch.library.opcheck(ops_of.layer_backward, (*backward_args[:9], False, True, False, *args))
    input, batch_sizes, h0, c0, weights, cell, names = args
    wanted = [t.requires_grad_() for t in (input, h0, *weights)]
    assert all(t.is_leaf for t in wanted)
    torch.library.opcheck(ops_of.layer_forward, args)
