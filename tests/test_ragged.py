"""Batches whose rows end at different steps, trained on several threads: a thread may have no row
left at a step, or none at all. Of weights so large that the next panel is fetched ahead."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import reference_ops
from op_cases import AXES, DTYPES, FORWARD, Case, arguments, assert_gradients, backward, converted
from op_cases import cotangents as cotangents_of
from test_threads import GATES, threads
from torch.nn.utils.rnn import pack_padded_sequence
from torch_pairs import layers, pair

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels to split")
OPS = torch.ops.fastrnn
T = 5
LENGTHS = {
    "ramp": [1, 1, 2, 2, 3, 4, 5, 5, 5],
    "one long": [1, 1, 1, 5, 1, 1, 1, 1],
    "equal": [5, 5, 5, 5, 5],
    "zeros": [0, 4, 0, 0, 3, 0, 1],
    "nothing": [0, 0, 0, 0],
}
FORMS = [(kind, False) for kind in LENGTHS] + [(k, True) for k in LENGTHS if 0 not in LENGTHS[k]]
FAR = 1 << 20  # bytes of weights beyond which panels are fetched ahead


def ragged(kind: str, packed: bool, cell: str, D: int, dtype: torch.dtype) -> tuple[tuple, dict]:
    """Arguments of an op and its keywords."""
    lengths = torch.tensor(LENGTHS[kind])
    gates = GATES[cell.removesuffix("_proj")]
    weights = FAR / dtype.itemsize / (gates if cell != "lstm_proj" else 0.5)
    H = math.isqrt(int(weights)) + 3  # of W_hh; with a projection of its smaller weight too
    case = Case(cell, H=H, N=len(lengths), T=T, I=3, D=D, dtype=dtype)
    input, batch_sizes, *rest = arguments(case)
    smallest = rest[2][-1 if cell == "lstm_proj" else 1]
    assert smallest.numel() * dtype.itemsize > FAR
    if not packed:
        return (input, batch_sizes, *rest), {"lengths": lengths}
    pack = pack_padded_sequence(input, lengths, enforce_sorted=False)
    return (pack.data, pack.batch_sizes, *rest), {}


def results_of(ops, args: tuple, options: dict, cotangents: list) -> tuple[tuple, tuple]:
    results = ops.layer_forward(*args, **options)
    function = functools.partial(ops.layer_backward, **options)
    return results, backward(function, args, results, cotangents)


def flat(results: tuple, gradients: tuple) -> list[torch.Tensor]:
    return [*results, *gradients[:3], *gradients[3]]


@pytest.mark.parametrize(("kind", "packed"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_rows_that_end_early(cell, D, dtype, packed, kind):
    args, options = ragged(kind, packed, cell, D, dtype)
    with threads(1):
        cotangents = cotangents_of(OPS.layer_forward(*args, **options))
        one = results_of(OPS, args, options, cotangents)
    for count in (2, 3, 4):
        with threads(count):
            some = results_of(OPS, args, options, cotangents)
            inference = OPS.layer_inference(*args, **options)
        assert all(map(torch.equal, flat(*one), flat(*some))), f"{count} threads"
        assert all(map(torch.equal, one[0], inference)), f"{count} threads"

    wide = [None if g is None else g.double() for g in cotangents]
    wanted = results_of(reference_ops, converted(args, torch.float64), options, wide)
    for name, actual, value in zip(FORWARD, one[0], wanted[0], strict=True):
        assert_matches(actual, value, name)
    assert_gradients(one[1], wanted[1])


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("D", [1, 2])
@layers
def test_a_packed_batch_trains_as_in_torch(name, D, count):
    ours, theirs = pair(name, 64, 512, num_layers=2, bidirectional=D == 2)
    x = torch.randn(20, 16, 64)
    lengths = torch.linspace(1, 20, 16).long()
    with threads(count):
        for module in (ours, theirs):
            output, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
            h = state[0] if name == "LSTM" else state
            (output.data.square().mean() + h.square().mean()).backward()
    for (key, actual), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_matches(actual.grad, wanted.grad, key)
