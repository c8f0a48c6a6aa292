"""What a call makes of attributes that somebody has set since the module was made."""

from __future__ import annotations

import pytest
import torch
from torch_pairs import LAYERS, assert_same_results, pair

import fastrnn

# Those that were made, those of now, where the first of the weights are all that is needed.
FEWER = [
    ({"num_layers": 3}, {"num_layers": 2}),
    ({"num_layers": 2, "bidirectional": True, "batch_first": True}, {"num_layers": 1}),
    ({"bidirectional": True}, {"bidirectional": False}),
    ({}, {"bias": False}),
    ({}, {"batch_first": True}),
    ({"num_layers": 2}, {"dropout": 0.4}),
]


def change(module, attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("made, now", FEWER, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_fewer_weights_are_needed(name, made, now):
    """As the plain float32 LSTM of torch.nn does; all its others raise."""
    ours = change(getattr(fastrnn, name)(4, 3, **made), now)
    theirs = getattr(torch.nn, name)(4, 3, **made | now)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(5, 2, 4)
    with torch.no_grad():
        assert_same_results(*same_masks(lambda module: module(x), ours, theirs))
    same_masks(lambda module: module(x)[0].square().sum().backward(), ours, theirs)
    wanted = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert_same_results(parameter.grad, wanted.get(key))


def same_masks(function, *arguments):
    results = []
    for each in arguments:
        torch.manual_seed(0)
        results.append(function(each))
    return results


@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_stream_of_fewer_layers(name, weights):
    """Not of small weights in the first layer: these round."""
    module = change(getattr(fastrnn, name)(4, 3, 2), {"num_layers": 1})
    x = torch.randn(5, 1, 4)
    weights = weights and {"weight_hh_l1": weights}
    y = fastrnn.Streamer(module, weights=weights).steps(x)
    assert_same_results(y, module(x)[0].detach())


@pytest.mark.parametrize("now", [{"num_layers": 0}, {"num_layers": 3}, {"dropout": 2.0}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_as_torch_refuses(name, now):
    """The types of errors; the messages of torch.nn are of the operations that it happens to do."""
    x = torch.randn(5, 2, 4)
    for training in (True, False):
        if training or "dropout" not in now:
            for module in pair(name, 4, 3, 2):
                with pytest.raises(RuntimeError), torch.set_grad_enabled(training):
                    change(module, now)(x)


@pytest.mark.parametrize(
    "made, now, message",
    [
        ({}, {"hidden_size": 7}, "weight_ih_l0 must have shape"),
        ({}, {"hidden_size": 0}, "weight_ih_l0 must have shape"),
        ({"num_layers": 2}, {"bias": False}, "weight_ih_l1 must have shape"),
        ({"num_layers": 2}, {"bidirectional": True}, "2 layers of 2 directions take 4 initial"),
        ({}, {"num_layers": 2}, "2 layers of 1 directions take 2 initial states and 8 weights"),
        ({"bias": False}, {"bias": True}, "1 layers of 1 directions take 1 initial states and 4"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_do_not_fit(name, made, now, message):
    """torch.nn reads other memory here, or ends the process."""
    module = change(getattr(fastrnn, name)(4, 3, **made), now)
    for training in (True, False):
        with pytest.raises(RuntimeError, match=message), torch.set_grad_enabled(training):
            module(torch.randn(5, 2, 4))
