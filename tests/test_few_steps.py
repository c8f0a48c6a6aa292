"""Calls of a few steps, which read their weights as they lie, and the lengths about them."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch_pairs import compare, exact, layers, state

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
