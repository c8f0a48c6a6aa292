"""fastrnn.quantization_error: what each weight costs, and its warning."""

import warnings

import pytest
import torch
from conftest import KERNELS

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a stream of small weights is compiled")


@pytest.mark.parametrize(
    "kind, options",
    [
        (fastrnn.LSTM, {"num_layers": 2, "proj_size": 5}),
        (fastrnn.GRU, {"num_layers": 2, "batch_first": True}),
        (fastrnn.RNN, {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_a_row_for_each_weight(kind, options):
    module, x = kind(8, 20, **options), torch.randn(30, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastrnn.quantization_error(module, x)
    names = [name for name, _ in module.named_parameters() if name.startswith("weight_")]
    assert sorted(row.weight for row in found.weights) == sorted(names)
    assert all(row.format == "int8" and 1e-5 < row.error < 0.05 for row in found.weights)
    stream = fastrnn.Streamer(module, 3, weights="int8")
    got = torch.stack([stream(frame).clone() for frame in x])
    wanted = module(x.transpose(0, 1))[0].transpose(0, 1) if module.batch_first else module(x)[0]
    whole = (got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    assert found.whole == pytest.approx(whole.item(), rel=1e-3)
    lines = str(found).splitlines()
    assert len(lines) == len(names) + 2 and lines[1].startswith("weight_ih_l0  int8")


def test_only_what_is_small_has_a_row():
    module, x = fastrnn.LSTM(8, 20, num_layers=2), torch.randn(30, 1, 8)
    asked = {"weight_hh_l1": "int8", "weight_ih_l0": "float16"}
    found = fastrnn.quantization_error(module, x, weights=asked)
    assert [row[:2] for row in found.weights] == [
        ("weight_ih_l0", "float16"),
        ("weight_hh_l1", "int8"),
    ]
    assert found.weights[0].error < found.weights[1].error
    narrow = fastrnn.quantization_error(module, x, weights=asked, activations="int8")
    assert narrow.weights[0] == found.weights[0]
    assert narrow.weights[1].error > found.weights[1].error


def test_a_warning_of_inputs_that_are_badly_scaled():
    """One input of many is large, and its weights are small beside the others'."""
    module, x = fastrnn.LSTM(8, 20), torch.randn(30, 1, 8)
    x[..., 3] *= 1e4
    with torch.no_grad():
        module.weight_ih_l0[:, 3] *= 1e-4
    with pytest.warns(UserWarning, match="weight_ih_l0: its input reaches .* leave it in float"):
        found = fastrnn.quantization_error(module, x)
    assert found.weights[0].error > 10 * found.weights[1].error > 10 * found.whole / 2


@pytest.mark.parametrize("large, activations", [(1e4, "int8"), (1e6, None)])
def test_a_warning_of_an_input_that_leaves_no_digits_to_others(large, activations):
    """One that no weight reads: none of them is rounded badly, but the row beside it is."""
    module, x = fastrnn.LSTM(8, 20), torch.randn(30, 1, 8)
    x[..., 3] = large
    with torch.no_grad():
        module.weight_ih_l0[:, 3] = 0
    with pytest.warns(UserWarning, match="weight_ih_l0: its input reaches 1e.* leave it in float"):
        found = fastrnn.quantization_error(module, x, activations=activations)
    assert found.weights[0].error > 0.5 and found.whole < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.quantization_error(module, x, weights="bfloat16")


def test_what_it_refuses():
    module, x = fastrnn.GRU(4, 6), torch.randn(5, 2, 4)
    with pytest.raises(ValueError, match="no weight is small"):
        fastrnn.quantization_error(module, x, weights=None)
    with pytest.raises(ValueError, match=r"frames must be \(T, N, input_size\)"):
        fastrnn.quantization_error(module, x[0])
    with pytest.raises(ValueError, match="with T > 0"):
        fastrnn.quantization_error(module, x[:0])
    with pytest.raises(TypeError, match="Streamer takes"):
        fastrnn.quantization_error(torch.nn.GRU(4, 6), x)
    assert fastrnn.quantization_error(module, x).whole > 0
