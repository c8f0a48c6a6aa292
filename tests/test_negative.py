"""Tensors stored negated, such as the imaginary part of a conjugate: memory is not the numbers."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch_pairs import CELLS, assert_same_results, everything, pair, state

import fastrnn
from fastrnn.dispatch import triton
from fastrnn.trees import tensors


def negated(t: torch.Tensor, dense: bool) -> torch.Tensor:
    """Equal to t, stored with the other sign: dense, or as PyTorch's own functions make it."""
    if not t.is_floating_point() or dense:
        view = torch._neg_view(t.detach().neg())
    else:
        view = torch.complex(torch.zeros_like(t), t.detach().neg()).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


SIZES = [(3, 4, 5, 7), (1, 1, 1, 1), (1, 2, 1, 1)]
WHERE = [("auto", sizes) for sizes in SIZES] + [("triton", (2, 2, 1, 3))] * triton.INTERPRETED


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("backend, sizes", WHERE)
@everything
def test_input_states_and_weights(name, sizes, dense, backend):
    """One after the other, without gradients, where a call passes the dispatcher, and with."""
    T, N, I, H = sizes
    ours, theirs = pair(name, I, H)
    x = torch.randn(N, I) if name in CELLS else torch.randn(T, N, I)
    hx = state(name, N, H) if name in CELLS else state(name, 1, N, H)
    wanted = theirs(x, hx)

    def hx_with(k: int):
        if isinstance(hx, tuple):
            return tuple(negated(h, dense) if j == k else h for j, h in enumerate(hx))
        return negated(hx, dense)

    with fastrnn.backend(backend):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                assert_same_results(ours(x, hx), wanted)
                assert_same_results(ours(negated(x, dense), hx), wanted)
                for k in range(1 + isinstance(hx, tuple)):
                    assert_same_results(ours(x, hx_with(k)), wanted)
            for key, weight in list(ours.named_parameters()):
                with contextlib.ExitStack() as back:
                    back.callback(setattr, ours, key, weight)
                    setattr(ours, key, torch.nn.Parameter(negated(weight, dense)))
                    with torch.set_grad_enabled(grad):
                        results = assert_same_results(ours(x, hx), wanted)
                    if grad:
                        changed = getattr(ours, key)
                        (found,) = torch.autograd.grad(sum(r.sum() for r in results), changed)
                        old = dict(theirs.named_parameters())[key]
                        total = sum(r.sum() for r in tensors(theirs(x, hx)))
                        (right,) = torch.autograd.grad(total, old)
                        assert_matches(found, right)
                with torch.set_grad_enabled(grad):
                    assert_same_results(ours(x, hx), wanted)


@pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
@pytest.mark.parametrize("dense", [True, False])
def test_a_weight_whose_data_is_exchanged(dense):
    module, x = fastrnn.GRU(3, 4), torch.randn(2, 1, 3)
    with torch.no_grad():
        wanted = module(x)
        module.weight_hh_l0.data = negated(module.weight_hh_l0, dense)
        assert_same_results(module(x), wanted)


@pytest.mark.skipif(KERNELS is None, reason="a Streamer is compiled code")
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("I", [1, 5])
def test_streamer(I, dense):
    module, x = fastrnn.LSTM(I, 4), torch.randn(1, I)
    wanted = module(x[None])[0][0]
    assert_matches(fastrnn.Streamer(module)(negated(x, dense)), wanted)
    for key, weight in list(module.named_parameters()):
        setattr(module, key, torch.nn.Parameter(negated(weight, dense)))
    stream = fastrnn.Streamer(module)
    stream.load_state(tuple(negated(s, dense) for s in stream.state))
    assert_matches(stream(x), wanted)


def test_batch_sizes():
    module, rows, sizes = fastrnn.GRU(3, 4), torch.randn(5, 3), torch.tensor([3, 2])
    packed = torch.nn.utils.rnn.PackedSequence
    with torch.no_grad():
        wanted = module(packed(rows, sizes))[0].data
        assert torch.equal(module(packed(rows, negated(sizes, True)))[0].data, wanted)
