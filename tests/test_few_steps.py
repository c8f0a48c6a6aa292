"""Calls of a few steps, which read their weights as they lie, and the lengths about them."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from direct_ways import both_ways, long_way
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, cells, compare, exact, layers, state

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
STEPS = (1, 2, 4, 5, 8, 9)


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients(name, dtype, bidirectional, bias):
    """Sizes that are no multiple of a register; one row, and two."""
    options = {"bidirectional": bidirectional, "bias": bias}
    for H, P in ((5, 0), (37, 0), (64, 19)) if name == "LSTM" else ((5, 0), (37, 0)):
        options["proj_size"] = P
        given = {key: value for key, value in options.items() if value or key != "proj_size"}
        ours = getattr(fastrnn, name)(11, H, 2, dtype=dtype, **given)
        theirs = exact(ours, name, 11, H, 2, **given)
        for T in STEPS:
            for N in (1, 2):
                x = torch.randn(T, N, 11, dtype=dtype)
                hx = state(name, 2 * (1 + bidirectional), N, P or H, c_width=H, dtype=dtype)
                compare(ours, theirs, x, hx)


@layers
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_units(name, threads):
    """Of weights that are too large for one thread; bits do not depend on their number."""
    module = getattr(fastrnn, name)(70, 300, bidirectional=True)
    theirs = exact(module, name, 70, 300, bidirectional=True)
    before = torch.get_num_threads()
    for T in STEPS:
        x = torch.randn(T, 1, 70)
        torch.set_num_threads(threads)
        with torch.no_grad():
            output, last = module(x)
        torch.set_num_threads(1)
        with torch.no_grad():
            assert torch.equal(module(x)[0], output)
            assert_matches(output, theirs(x.double())[0])
        torch.set_num_threads(before)


@layers
def test_resets_inside(name):
    """A row that begins anew in a call of a few steps is one that begins there."""
    module = getattr(fastrnn, name)(11, 37)
    for T in STEPS[1:]:
        for at in range(T):
            x = torch.randn(T, 1, 11)
            hx = state(name, 1, 1, 37)
            reset = torch.zeros(T, 1, dtype=torch.bool)
            reset[at] = True
            with torch.no_grad():
                output, last = module(x, hx, reset=reset)
                tail, end = module(x[at:])
                head = module(x[:at], hx)[0] if at else output[:0]
            assert_matches(output, torch.cat([head, tail]))
            for a, e in zip(
                *((s if isinstance(s, tuple) else (s,)) for s in (last, end)), strict=True
            ):
                assert_matches(a, e)


@pytest.mark.parametrize("name", [*LAYERS, "projected", "relu"])
def test_one_step_in_float16(name, isa, taken):
    """The kernels read halves as they lie. Bits are those of a layer that is cast to float32."""
    special = {"projected": {"proj_size": 19}, "relu": {"nonlinearity": "relu"}}.get(name, {})
    kind = {"projected": "LSTM", "relu": "RNN"}.get(name, name)
    for H, layers_, bidirectional, bias in ((37, 2, True, True), (64, 1, False, False)):
        options = {"bidirectional": bidirectional, "bias": bias, "dtype": torch.float16, **special}
        ours = getattr(fastrnn, kind)(21, H, layers_, **options)
        planes = layers_ * (1 + bidirectional)
        for N in (1, 3, 32):
            x = torch.randn(1, N, 21).half()
            hx = state(kind, planes, N, special.get("proj_size", H), c_width=H, dtype=x.dtype)
            with torch.no_grad():
                for given in ((x,), (x, hx)):
                    both_ways(ours, *given)
    assert taken == [True, False] * len(taken[::2]) and len(taken) == 24
    with torch.no_grad():
        many = ours(torch.randn(1, 33, 21).half()), ours(torch.randn(2, 1, 21).half())
    assert taken[-2:] == [False, False] and all(y.dtype is torch.float16 for y, _ in many)


@cells
def test_a_cell_in_float16(name, taken):
    cell = getattr(fastrnn, name)(21, 37, dtype=torch.float16)
    with torch.no_grad():
        for N in (1, 5):
            both_ways(cell, torch.randn(N, 21).half(), state(name, N, 37, dtype=torch.float16))
    assert taken == [True, False] * 2


@layers
@pytest.mark.parametrize("place", ["x", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_numbers_of_float16_that_are_not_finite(name, place):
    module, x = getattr(fastrnn, name)(5, 7, dtype=torch.float16), torch.randn(1, 2, 5).half()
    tensor = x if place == "x" else getattr(module, place).detach()
    with torch.no_grad():
        hx = state(name, 1, 2, 7, dtype=torch.float16)
        for value in (float("inf"), float("nan"), 65504.0, 6e-8):
            tensor.view(-1)[3] = value
            found = tree_leaves(module(x, hx))
            with long_way():
                wanted = tree_leaves(module(x, hx))
            assert all(map(torch.equal, *nans_as_numbers(found, wanted)))


def nans_as_numbers(*several):
    return [[each.nan_to_num(1.5, 2.5, 3.5) for each in tensors] for tensors in several]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, proj_size", [("LSTM", 0), ("LSTM", 37), ("GRU", 0), ("RNN", 0)])
def test_backward_of_one_step_reads_weights_in_two_ways(name, proj_size, dtype, isa):
    """As they lie, or, for more rows, packed. Each row has the same bits in both, and is right."""
    options = {"proj_size": proj_size} if proj_size else {}
    module = getattr(fastrnn, name)(30, 70, dtype=dtype, **options)
    x, width = torch.randn(1, 66, 30, dtype=dtype), proj_size or 70
    hx = state(name, 1, 66, width, c_width=70, dtype=dtype)
    incoming = torch.randn(1, 66, width, dtype=dtype)

    def gradients(module, N):
        """Of the input and of the states."""
        given = [t[:, :N].to(module.weight_ih_l0.dtype).detach() for t in (x, *tree_leaves(hx))]
        given = [t.requires_grad_() for t in given]
        output, _ = module(given[0], tuple(given[1:]) if name == "LSTM" else given[1])
        return torch.autograd.grad(output, given, incoming[:, :N].to(output.dtype))

    theirs = exact(module, name, 30, 70, **options)
    for most, fewer in ((32, (5, 6, 7)), (66, (33, 64, 65))):  # forward has its own limit, 32
        of_all = gradients(module, most)
        for N in fewer:
            for some, whole in zip(gradients(module, N), of_all, strict=True):
                assert torch.equal(some, whole[:, :N])
        for got, wanted in zip(of_all, gradients(theirs, most), strict=True):
            assert_matches(got, wanted)
