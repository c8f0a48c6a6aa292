"""Input that no one should give: an error in one line, of torch's class where torch has one, no
crash, and a good call after it."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from refusals import BOTH, refused
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch_pairs import (
    CELLS,
    assert_same_results,
    everything,
    example,
    layers,
    outcome,
    pair,
    state,
)

import fastrnn

ROWS = [[-3, 8], [8, -3], [3, 0, 2], [2, 3], [3, 3], [0], [5, 0], [-1], [1 << 40], [1 << 62] * 2,
        [(1 << 63) - 1], [3, 1], [4, 1, -1, 1]]  # fmt: skip


@BOTH
@pytest.mark.parametrize("sizes", ROWS, ids=str)
@layers
def test_batch_sizes_made_by_hand(name, sizes, grad, good):
    ours, theirs = pair(name, 4, 6, bidirectional=True)
    good((name, ours, theirs))
    packed = PackedSequence(torch.randn(5, 4), torch.tensor(sizes))
    for hx in (None, state(name, 2, 3, 6)):
        with torch.set_grad_enabled(grad):
            refused(lambda hx=hx: ours(packed, hx), RuntimeError)


@BOTH
@layers
def test_batch_sizes_of_other_forms(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    rows = torch.randn(5, 4)
    with torch.set_grad_enabled(grad):
        for sizes in (
            torch.tensor([3, 2], dtype=torch.int32),
            torch.tensor([3.0, 2.0]),
            torch.tensor([True] * 5),
            torch.tensor([[3, 2]]),
            torch.tensor(5),
        ):
            refused(lambda s=sizes: ours(PackedSequence(rows, s)), RuntimeError, match="batch_size")
        empty = PackedSequence(rows, torch.tensor([], dtype=torch.int64))
        refused(lambda: ours(empty), IndexError)
        refused(lambda: ours(PackedSequence(rows[None], torch.tensor([3, 2]))), RuntimeError)
        refused(lambda: ours(PackedSequence(rows[0], torch.tensor([3, 2]))), RuntimeError)
        # strides play no part
        wanted = theirs(PackedSequence(rows, torch.tensor([3, 2])))[0].data
        strided = torch.tensor([3, 9, 2, 9])[::2]
        assert_matches(ours(PackedSequence(rows, strided))[0].data, wanted)
        wanted = theirs(PackedSequence(rows, torch.ones(5, dtype=torch.int64)))[0].data
        expanded = torch.ones(1, dtype=torch.int64).expand(5)
        assert_matches(ours(PackedSequence(rows, expanded))[0].data, wanted)


@BOTH
@pytest.mark.parametrize("lengths", [[6, 1, 1], [-1, 1, 1], [1 << 40, 0, 0], [0, 0, -(1 << 63)]])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@layers
def test_lengths_out_of_range(name, lengths, backend, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    with fastrnn.backend(backend), torch.set_grad_enabled(grad):
        refused(lambda: ours(torch.randn(5, 3, 4), lengths=torch.tensor(lengths)),
                RuntimeError, match="lengths must")  # fmt: skip


@BOTH
@everything
def test_tensors_that_are_not_dense(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    hx = state(name, 3, 6) if name in CELLS else state(name, 1, 3, 6)
    with torch.set_grad_enabled(grad):
        refused(lambda: ours(x.to_sparse()), RuntimeError, match="dense")
        refused(lambda: ours(x.to_mkldnn()), RuntimeError, match="dense")
        nested = torch.nested.nested_tensor(list(x))
        refused(lambda: ours(nested), RuntimeError, match="nested")
        sparse = tuple(h.to_sparse() for h in hx) if isinstance(hx, tuple) else hx.to_sparse()
        refused(lambda: ours(x, sparse), RuntimeError, match="dense")
        for key, weight in list(ours.named_parameters()):
            setattr(ours, key, nn.Parameter(weight.detach().to_sparse()))
            refused(lambda: ours(x), RuntimeError, match="dense")
            setattr(ours, key, weight)


@BOTH
@everything
def test_states_that_are_wrong_in_every_way(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    h = torch.randn(3, 6) if name in CELLS else torch.randn(1, 3, 6)
    one = name.startswith("LSTM")
    wrong = [h[..., :-1], h[..., :0], h[..., :1, :], h[None], h[0], h.double(), h.long(), h + 0j,
             h.to("meta"), h.expand(2, *h.shape), torch.zeros(()), None, 3, "ab"]  # fmt: skip
    for bad in wrong:
        for hx in [(bad, h), (h, bad), (bad, bad), [bad]] if one else [bad, (bad, bad)]:
            if hx is None:
                continue
            with torch.set_grad_enabled(grad):
                found, expected = (outcome(lambda m, hx=hx: m(x, hx), m) for m in (ours, theirs))
            if name == "LSTMCell" and hx[0] is h and getattr(hx[-1], "dtype", h.dtype) != h.dtype:
                assert_same_results(found, expected)  # c alone has another dtype
                continue
            assert isinstance(found, tuple) and isinstance(found[0], type), hx
            if isinstance(expected, tuple) and isinstance(expected[0], type):
                assert issubclass(found[0], (expected[0], RuntimeError, ValueError)), found


@BOTH
@everything
def test_views_of_any_strides(name, grad):
    """Expanded from one element, overlapping, in reverse order of dimensions, of one row."""
    ours, theirs = pair(name, 4, 6)
    h_shape = (3, 6) if name in CELLS else (1, 3, 6)
    whole = torch.randn(200)
    base = example(name)
    views = [
        torch.randn(1).expand(base.shape),
        whole.as_strided(base.shape, [1] * base.dim()),
        whole.as_strided(base.shape, [0] * (base.dim() - 1) + [3]),
        base.flip(0).permute(*reversed(range(base.dim()))).contiguous().permute(
            *reversed(range(base.dim()))
        ),
        base[:1].expand(base.shape),
    ]  # fmt: skip
    states = [torch.randn(1).expand(h_shape), whole.as_strided(h_shape, [2] * len(h_shape))]
    with torch.set_grad_enabled(grad):
        for x in views:
            assert_same_results(ours(x), theirs(x))
            for h in states:
                hx = (h, h) if name.startswith("LSTM") else h
                assert_same_results(ours(x, hx), theirs(x, hx))
        for key, weight in list(ours.named_parameters()):
            value = torch.randn(1).expand(weight.shape)
            for module in (ours, theirs):
                setattr(module, key, nn.Parameter(value))
            assert_same_results(ours(base), theirs(base))


@BOTH
@layers
def test_many_steps_of_nothing(name, grad):
    ours, theirs = pair(name, 4, 6)
    with torch.set_grad_enabled(grad):
        for shape in ((1 << 12, 0, 4), (7, 0, 4)):
            assert_same_results(ours(torch.empty(shape)), theirs(torch.empty(shape)))
        x = torch.empty(1 << 12, 0, 4)
        refused(lambda: ours(torch.empty(0, 3, 4)), RuntimeError, match="larger than 0")
        refused(lambda: ours(torch.empty(1 << 40, 0, 0)), RuntimeError, ValueError)
        output = ours(x, lengths=torch.empty(0, dtype=torch.int64))[0]
        assert output.shape == (1 << 12, 0, 6)
