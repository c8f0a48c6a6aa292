"""The stack of layers against torch's own functions over flat lists of weights."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import functional

T, N, I, H = 5, 4, 3, 6
CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]


def flat_weights(cell: str, layers=1, bias=True, bidirectional=False, proj_size=0) -> list[Tensor]:
    module = torch.nn.RNNBase(
        cell.upper(), I, H, layers, bias, bidirectional=bidirectional, proj_size=proj_size
    )
    return [p.detach().double().requires_grad_() for p in module.parameters()]


def states(cell: str, count: int, width: int = H):
    """hx of `count` layers and directions; of an lstm a pair."""
    h = torch.randn(count, N, width, dtype=torch.float64)
    return (h, torch.randn(count, N, H, dtype=torch.float64)) if cell == "lstm" else h


def assert_same(ours, theirs, weights: list[Tensor]) -> None:
    """Two calls give the same results and gradients from the same state of the generator."""
    runs = []
    for call in (ours, theirs):
        torch.manual_seed(1)
        results = call()
        loss = sum(result.square().sum() for result in results)
        runs.append([*results, *torch.autograd.grad(loss, weights)])
    for actual, wanted in zip(*runs, strict=True):
        assert_matches(actual, wanted)


@pytest.mark.parametrize(
    ("layers", "bias", "bidirectional", "batch_first", "dropout"),
    [
        (1, True, False, False, 0.0),
        (2, True, True, True, 0.5),
        (3, False, False, False, 0.2),
        (2, False, True, False, 1.0),
    ],
)
@pytest.mark.parametrize("cell", [*CELLS, "lstm_proj"])
def test_equals_torch(cell, layers, bias, bidirectional, batch_first, dropout):
    proj_size = 2 if cell == "lstm_proj" else 0
    cell = cell.removesuffix("_proj")
    weights = flat_weights(cell, layers, bias, bidirectional, proj_size)
    hx = states(cell, layers * (2 if bidirectional else 1), proj_size or H)
    ours, theirs = getattr(functional, cell), getattr(torch, cell)
    for training in (False, True):
        options = (bias, layers, dropout, training, bidirectional)
        input = torch.randn(T, N, I, dtype=torch.float64)
        args = (input.transpose(0, 1) if batch_first else input, hx, weights, *options, batch_first)
        assert_same(lambda: ours(*args), lambda: theirs(*args), weights)  # noqa: B023

        data, sizes, *_ = pack_padded_sequence(input, [5, 3, 3, 1])
        assert_same(
            lambda: ours(data, hx, weights, *options, batch_sizes=sizes),  # noqa: B023
            lambda: theirs(data, sizes, hx, weights, *options),  # noqa: B023
            weights,
        )


def test_dropout_is_off_by_default():
    weights = flat_weights("gru", 2)
    input, hx = torch.randn(T, N, I, dtype=torch.float64), states("gru", 2)
    plain = functional.gru(input, hx, weights, num_layers=2)
    for actual, wanted in zip(
        functional.gru(input, hx, weights, num_layers=2, dropout=0.5), plain, strict=True
    ):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_bad_arguments_raise(cell):
    function = getattr(functional, cell)
    weights, input = flat_weights(cell, 2), torch.randn(T, N, I, dtype=torch.float64)
    hx = states(cell, 2)
    options = {"num_layers": 2}
    function(input, hx, weights, **options)
    for bad_input, bad_hx, bad_weights, bad_options in [
        (input[:0], hx, weights, options),
        (input, states(cell, 1), weights, options),
        (input, states(cell, 4), weights, options),
        (input, hx, weights[:-1], options),
        (input, hx, weights[:4], options),
        (input, hx, weights, {"num_layers": 1}),
        (input, hx, weights, {"num_layers": 2, "bias": False}),
        (input, hx, weights, {"num_layers": 2, "bidirectional": True}),
        (input, states(cell, 2, H - 1), weights, options),
    ]:
        with pytest.raises(RuntimeError):
            function(bad_input, bad_hx, bad_weights, **bad_options)
    with pytest.raises(RuntimeError, match="larger than 0"):
        function(input[:0].transpose(0, 1), hx, weights, batch_first=True, **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("records", [False, True])
def test_errors_name_the_weight_and_the_batch_sizes(cell, records):
    """Also those of no dimensions, and where tensors without memory hide what is wrong."""
    weights, hx = flat_weights(cell, 2), states(cell, 2)
    packed = pack_padded_sequence(torch.randn(T, N, I, dtype=torch.float64), [T, T, 3, 1])
    function, sizes = getattr(functional, cell), packed.batch_sizes

    def call(weights, sizes):
        return function(packed.data, hx, weights, num_layers=2, batch_sizes=sizes)

    with torch.set_grad_enabled(records):
        call(weights, sizes)
        for k, name in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh") * 2):
            for wrong in (torch.tensor(1.0, dtype=torch.float64), weights[k][1:]):
                bad = [*weights[:k], wrong, *weights[k + 1 :]]
                with pytest.raises(RuntimeError, match=f"{name}_l{k // 4} must have shape"):
                    call(bad, sizes)
        for bad in (sizes.float(), sizes.int(), sizes[None], sizes[0]):
            with pytest.raises(RuntimeError, match="batch_sizes must be a 1-D tensor of dtype"):
                call(weights, bad)
        with pytest.raises(RuntimeError, match="batch_sizes should always be on CPU"):
            call(weights, sizes.to("meta"))
        with pytest.raises(TypeError, match="batch_sizes must be a tensor"):
            call(weights, sizes.tolist())


def test_lstm_needs_a_pair():
    weights, input = flat_weights("lstm"), torch.randn(T, N, I, dtype=torch.float64)
    h, c = states("lstm", 1)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        functional.lstm(input, (h, c, c), weights)


@pytest.mark.parametrize("cell", CELLS)
def test_step_is_a_layer_of_one_time_step(cell):
    weights, input = flat_weights(cell), torch.randn(1, N, I, dtype=torch.float64)
    hx = states(cell, 1)
    _, *wanted = getattr(functional, cell)(input, hx, weights)
    h, c = hx if cell == "lstm" else (hx, None)
    step = (cell, input[0], h[0], None if c is None else c[0], weights, True)
    with fastrnn.backend("cpu" if KERNELS else "reference"):
        forced = functional.step(*step)
    for a, e in zip(forced, wanted, strict=True):
        assert torch.equal(a, e[0])
    for a, e in zip(functional.step(*step), wanted, strict=True):  # perhaps torch's own step
        assert_matches(a, e[0])
