"""What is asked wrongly of reset, lengths and the like: of modules, of steps and of the ops."""

from __future__ import annotations

import pytest
import torch
from feature_calls import FEATURES, each_backend, layer_arguments, using
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch_pairs import layers, state

import fastrnn


@layers
def test_step_errors(name):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(2, 4)
    for wrong in (x[0], x[None]):
        with pytest.raises(ValueError, match="step: Expected input to be 2D"):
            module.step(wrong)
    with pytest.raises(ValueError, match="expected bool"):
        module.step(x, reset=torch.zeros(2))
    for shape in ((3,), (1, 2), ()):
        with pytest.raises(RuntimeError, match="Expected reset size"):
            module.step(x, reset=torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(RuntimeError):
        module.step(x, state(name, 1, 3, 3))
    if name == "LSTM":
        module = fastrnn.LSTM(4, 3, num_layers=2)
        with pytest.raises(
            RuntimeError, match=r"state must be \(h, c\), got one tensor \(2, 2, 3\)"
        ):
            module.step(x, torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="bidirectional"):
        getattr(fastrnn, name)(4, 3, bidirectional=True).step(x)


def flags(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@each_backend
@layers
@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"reset": torch.zeros(5, 3)}, ValueError, "reset: expected bool, got torch.float32"),
        ({"reset": flags(3, 5)}, RuntimeError, r"Expected reset size \(5, 3\), got \(3, 5\)"),
        ({"reset": flags(5)}, RuntimeError, "Expected reset size"),
        ({"reset": flags(5, 3).to("meta")}, RuntimeError, "on the same device"),
        ({"reset_state": torch.ones(1, 3, 3)}, ValueError, "reset_state needs reset"),
        (
            {"reset": flags(5, 3), "reset_state": (None, None)},
            ValueError,
            "reset_state: expected tensors, got NoneType, NoneType",
        ),
        ({"lengths": torch.ones(3)}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": flags(3)}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": torch.tensor([1, 2])}, RuntimeError, r"Expected lengths size \(3,\)"),
        ({"lengths": [2**70, 1, 1]}, TypeError, "lengths must be a tensor, or .*verflow"),
        ({"reset": [[True], [True, False]]}, TypeError, "reset must be a tensor, or .* length"),
        ({"lengths": torch.tensor(2)}, RuntimeError, "Expected lengths size"),
        ({"lengths": torch.tensor([1, 6, 2])}, RuntimeError, "lengths"),
        ({"lengths": torch.tensor([1, -1, 2])}, RuntimeError, "lengths"),
        ({"detach_every": 0}, ValueError, "detach_every must be an integer of at least 1, got 0"),
        ({"detach_every": -2}, ValueError, "detach_every"),
        ({"detach_every": 2.0}, ValueError, "detach_every"),
        ({"grad_clip": 0.0}, ValueError, r"grad_clip must be greater than 0, got 0\.0"),
        ({"grad_clip": "a"}, ValueError, "grad_clip must be greater than 0, got 'a'"),
        ({"grad_clip": -1.0}, ValueError, "grad_clip"),
        ({"grad_clip": float("nan")}, ValueError, "grad_clip"),
    ],
)
def test_errors(name, asked, error, message, backend):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(5, 3, 4)
    for call in (
        lambda: module(x, **asked),
        lambda: module(x.requires_grad_(), return_gates=True, **asked),
    ):
        with pytest.raises(error, match=message), using(backend):
            call()


@layers
def test_what_does_not_go_together(name):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(5, 3, 4)
    packed = pack_padded_sequence(x, [5, 3, 2])
    for feature in FEATURES:
        with pytest.raises(ValueError, match="need padded input, got packed"):
            module(packed, **FEATURES[feature](5, 3))
    with pytest.raises(ValueError, match="lengths need batched input"):
        module(x[:, 0], lengths=torch.tensor([2]))
    with pytest.raises(RuntimeError, match="For unbatched input, reset should be 1-D but got 2-D"):
        module(x[:, 0], reset=flags(5, 1))
    with pytest.raises(ValueError, match="reset needs a network of one direction"):
        getattr(fastrnn, name)(4, 3, bidirectional=True)(x, reset=flags(5, 3))
    with pytest.raises(TypeError):
        module(x, None, flags(5, 3))


def test_the_ops_check_what_python_did_not():
    *args, reset, lengths, _, _ = layer_arguments("gru")
    packed = [args[0].flatten(0, 1), torch.tensor([3, 3, 3, 3]), *args[2:]]
    for op in (torch.ops.fastrnn.layer_inference, torch.ops.fastrnn.layer_forward):
        for call, features in (
            (packed, {"reset": reset}),
            (packed, {"lengths": lengths}),
            (args, {"reset": reset[1:]}),
            (args, {"reset": reset.int()}),
            (args, {"lengths": lengths[1:]}),
            (args, {"lengths": lengths.int()}),
            (args, {"lengths": lengths + 3}),
            (args, {"lengths": lengths - 3}),
        ):
            with pytest.raises(RuntimeError):
                op(*call, **features)
