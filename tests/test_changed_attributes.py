"""What a call makes of attributes that somebody has set since the module was made."""

from __future__ import annotations

import pytest
import torch
from torch_pairs import CELLS, LAYERS, assert_same_error, assert_same_results, outcome, pair, state

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


@pytest.mark.parametrize("name", LAYERS)
def test_another_input_size(name):
    """As torch.nn with gradients; without, the weight counts, which docs/differences.md says."""
    x = torch.randn(5, 2, 4)
    ours, theirs = (
        outcome(lambda lib: change(getattr(lib, name)(4, 3), {"input_size": 7})(x), library)
        for library in (fastrnn, torch.nn)
    )
    assert ours == theirs and ours[0] is RuntimeError
    module = getattr(fastrnn, name)(4, 3)
    with torch.no_grad():
        assert torch.equal(module(x)[0], change(module, {"input_size": 7})(x)[0])
    with pytest.raises(RuntimeError, match=r"weight_ih_l0 must have shape \(\d+, 7\)"):
        fastrnn.Streamer(module, 2)


@pytest.mark.parametrize("name", CELLS)
def test_a_hidden_size_that_is_not_that_of_the_weights(name):
    """As of a subclass with a meaning of its own for it: with a state torch.nn does not read it."""
    ours, theirs = (change(each, {"hidden_size": 7}) for each in pair(name, 4, 3))
    x, hx = torch.randn(2, 4), state(name, 2, 3)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert_same_results(ours(x, hx), theirs(x, hx))
            for module in (ours, theirs):
                with pytest.raises(RuntimeError):
                    module(x)
                with pytest.raises(RuntimeError):
                    module(x, state(name, 2, 5))


MODES = ["x", None, 3, [], "gru", "LSTM"]


@pytest.mark.parametrize("form", ["padded", "unbatched", "with a state", "compiled"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_an_lstm_and_a_gru_read_no_mode(name, mode, form):
    """As in torch.nn, so a subclass may have an attribute `mode` of its own."""
    modules = [change(module, {"mode": mode}) for module in pair(name, 4, 3, 2)]
    x = torch.randn(5, 4) if form == "unbatched" else torch.randn(5, 2, 4)
    hx = [torch.randn(2, 2, 3) for _ in "hc"]
    given = ((tuple(hx) if name == "LSTM" else hx[0],) if form == "with a state" else ()) or (None,)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            if form == "compiled":
                ours = torch.compile(modules[0], backend="eager", fullgraph=True)(x)
            else:
                ours = modules[0](x, *given)
            assert_same_results(ours, modules[1](x, *given))
    y = fastrnn.Streamer(modules[0], 2).steps(x) if x.dim() == 3 else None
    if y is not None:
        assert_same_results(y, modules[1](x)[0].detach())
        fastrnn.quantization_error(modules[0], x)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_rnn_of_no_mode(mode):
    def call(library):
        return change(library.RNN(4, 3), {"mode": mode})(torch.randn(5, 2, 4))

    assert_same_error(call)
    with pytest.raises(AssertionError, match="mode must be RNN_TANH or RNN_RELU, got "):
        fastrnn.Streamer(change(fastrnn.RNN(4, 3), {"mode": mode}))


def test_an_rnn_of_its_other_mode():
    ours, theirs = (change(module, {"mode": "RNN_RELU"}) for module in pair("RNN", 4, 3))
    x = torch.randn(5, 2, 4)
    assert_same_results(ours(x), theirs(x))
    with torch.no_grad():
        assert_same_results(ours(x), theirs(x))


def test_a_recurrent_whose_mode_is_taken():
    layer = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 4, 3)
    x = torch.randn(5, 2, 4)
    wanted = layer(x)[0]
    layer.mode = "fast"
    for training in (True, False):
        with torch.set_grad_enabled(training):
            assert torch.equal(layer(x)[0], wanted)
    assert torch.equal(fastrnn.Streamer(layer, 2).steps(x), wanted)
