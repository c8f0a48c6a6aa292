"""Arguments of a wrong kind, of every public function: the error names the argument and says what
is expected. What `torch.nn` takes too raises as `torch.nn` does, see test_module_errors.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from program_cells import CELLS

import fastrnn

NOTHING = [5, "a", math.nan, object(), [1, 2], {}, np.zeros((2, 4), np.float32)]
AMBIGUOUS = [np.zeros(2), torch.zeros(2)]  # neither true nor false
NO_NUMBERS = [None, "a", b"1", [0.1], {}, object(), True, math.nan, *AMBIGUOUS]


def plain(g, s, p):
    return torch.tanh(g.a)


def of_two(g, s, p):
    return torch.tanh(g.a) + s.h, s.c + 1


CELL, OF_TWO = fastrnn.Cell(plain, "a"), fastrnn.Cell(of_two, "a", "h c")


def layers():
    lstm, gru = fastrnn.LSTM(4, 5), fastrnn.GRU(4, 5)
    return [lstm, gru, fastrnn.Recurrent(CELL, 4, 5), fastrnn.Recurrent(OF_TWO, 4, 5)]


def refused(error, match, function, *args, **kwargs) -> None:
    """With and without gradients."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=match):
            function(*args, **kwargs)


def kinds(*more):
    given = [*NOTHING, *more]
    return pytest.mark.parametrize("given", given, ids=[type(each).__name__ for each in given])


@kinds()
def test_reset_state(given):
    reset, x = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2, 4)
    for layer in layers():
        said = "reset_state: expected tensors, got "
        for rows, start in ((x, reset), (x[:, 0], reset[:, 0])):
            refused(ValueError, said, layer, rows, reset=start, reset_state=given)
        refused(ValueError, said, layer.step, x[0], None, reset[0], given)
    h = torch.zeros(1, 2, 5)
    with pytest.raises(
        RuntimeError, match=r"one tensor for its state h, got tuple of \(Tensor\) as r"
    ):
        layers()[2](x, reset=reset, reset_state=(h,))
    with pytest.raises(RuntimeError, match="tuple of the states h, c, got Tensor as reset_state"):
        layers()[3](x, reset=reset, reset_state=h)
    for layer, state in zip(layers(), ((h, h), h, h, (h, h)), strict=True):
        assert layer(x, reset=reset, reset_state=state)[0].shape == (3, 2, 5)


@kinds(None, (torch.zeros(1, 2, 5),))
def test_a_step(given):
    x, kind = torch.zeros(2, 4), type(given).__name__
    for layer in layers():
        refused(TypeError, f"^input must be a tensor, got {kind}", layer.step, given)
        if given is not None:
            states = "tuple of (tensors|the states)" if len(layer(x)[1]) == 2 else "a tensor"
            said = f"^state must be .*{states}|expects (a tuple of the states|one tensor)"
            refused((TypeError, RuntimeError), said, layer.step, x, given)
        assert layer.step(x)[0].shape == (2, 5)
    with pytest.raises(TypeError, match=r"^state must be a tuple of tensors \(h, c\), got int"):
        layers()[0].step(x, 5)
    with pytest.raises(TypeError, match="^state must be a tensor, got int"):
        layers()[1].step(x, 5)


def test_a_state_of_a_wrong_shape():
    """A step and a stream name the tensor and its dimensions."""
    x, h = torch.zeros(2, 4), torch.zeros(3, 2, 5)
    due = r"must be \(num_layers=3, batch_size=2, {}\), got {}$"
    peephole = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 4, 5, 3)
    cases = [
        (fastrnn.GRU(4, 5, 3), h[0], "h", "hidden_size=5", r"\(2, 5\)"),
        (fastrnn.GRU(4, 5, 3), h[:1], "h", "hidden_size=5", r"\(1, 2, 5\)"),
        (fastrnn.LSTM(4, 5, 3), (h, h[:, :1]), "c", "hidden_size=5", r"\(3, 1, 5\)"),
        (fastrnn.LSTM(4, 5, 3), (h[0], h), "h", "hidden_size=5", r"\(2, 5\)"),
        (fastrnn.LSTM(4, 5, 3, proj_size=2), (h, h), "h", "proj_size=2", r"\(3, 2, 5\)"),
        (fastrnn.LSTM(4, 5, 3, proj_size=2), (h[..., :2],) * 2, "c", "hidden_size=5", ".*"),
        (peephole, (h, h[..., 1:]), "c", "hidden_size=5", r"\(3, 2, 4\)"),
    ]
    for layer, state, name, width, got in cases:
        said = f"^state {name} {due.format(width, got)}"
        refused(RuntimeError, said, layer.step, x, state)
        refused(ValueError, said, fastrnn.Streamer(layer, 2).load_state, state)


def test_an_error_of_a_step_that_is_not_the_state():
    layer = fastrnn.GRU(4, 5)
    layer.register_forward_pre_hook(lambda *_: {}["of a hook"])
    for state in (None, torch.zeros(1, 2, 5)):
        with pytest.raises(KeyError, match="of a hook"):
            layer.step(torch.zeros(2, 4), state)


@kinds(None)
def test_calls_of_recurrent(given):
    x, kind = torch.zeros(3, 2, 4), type(given).__name__
    for layer in layers()[2:]:
        said = f"^input must be a tensor or PackedSequence, got {kind}"
        refused(TypeError, said, layer, given)
        if given is not None:
            said = f"(expects .*, got {kind}.* as hx|hx must hold tensors, got {kind})"
            refused((TypeError, RuntimeError), said, layer, x, given)


def test_arguments_of_recurrent():
    def make(**changed):
        return fastrnn.Recurrent(**{"cell": CELL, "input_size": 4, "hidden_size": 6} | changed)

    for given in NO_NUMBERS:
        for layers in (1, 2):
            with pytest.raises(ValueError, match=r"^dropout must be a number in \[0, 1\]"):
                make(dropout=given, num_layers=layers)
        for name in ("input_size", "proj_size", "heads"):
            with pytest.raises(TypeError, match=f"^{name} must be an integer, got"):
                make(**{name: given})
        for name in ("hidden_size", "num_layers"):
            with pytest.raises(ValueError, match=f"^{name} must be a positive integer, got"):
                make(**{name: given})
    with pytest.raises(ValueError, match="^input_size must be at least 0, got -1"):
        make(input_size=-1)
    for given in AMBIGUOUS:
        for name in ("bias", "batch_first", "bidirectional"):
            with pytest.raises(TypeError, match=f"^{name} must be True or False, got"):
                make(**{name: given})
    made = make(
        dropout=np.float32(0.5), num_layers=2, proj_size=np.int64(3), input_size=np.int64(4)
    )
    assert made(torch.zeros(3, 2, 4))[0].shape == (3, 2, 3) and made.dropout == 0.5


def test_arguments_of_a_cell():
    for given in NO_NUMBERS:
        if not isinstance(given, str):
            with pytest.raises(TypeError, match="^step must be a function, got"):
                fastrnn.Cell(given, "a")
        for name in ("recurrent", "output", "name"):
            if given is not None and not isinstance(given, str):
                with pytest.raises(TypeError, match=f"^{name} must be a string, got"):
                    fastrnn.Cell(plain, "a", **{name: given})
        if given is not None and not isinstance(given, dict):
            with pytest.raises(TypeError, match="^init must be a dict"):
                fastrnn.Cell(plain, "a", init=given)
        if given is not None and not isinstance(given, (bool, float)):
            with pytest.raises(TypeError, match="^init of 'w' must be a number or a function, got"):
                fastrnn.Cell(plain, "a", params="w", init={"w": given})
        with pytest.raises(TypeError, match="^H must be an integer, got"):
            CELL.program(given)
    with pytest.raises(ValueError, match="^H must be at least 1, got 0"):
        CELL.program(0)


LISTED = ["input", "weights", "num_layers", "batch_sizes", "dropout"]


@pytest.mark.parametrize("name", ["lstm", "gru"])
@kinds()
def test_functions(name, given):
    module = getattr(fastrnn, name.upper())(4, 5, 2)
    x, h = torch.zeros(3, 2, 4), torch.zeros(2, 2, 5)
    hx = (h, h) if name == "lstm" else h
    good = {"input": x, "hx" if name == "lstm" else "h0": hx, "weights": list(module.parameters())}
    good |= {"num_layers": 2, "training": True}

    def run(**changed):
        return getattr(fastrnn.functional, name)(**good | changed)

    for argument in LISTED:
        fits = (argument == "num_layers" and type(given) is int) or type(given) is dict
        if not fits:
            named = TypeError, ValueError, RuntimeError
            refused(named, argument, run, **{argument: given})
    weights = [given, *good["weights"][1:]]
    refused(TypeError, r"^weights\[0\] must be a tensor, got", run, weights=weights)
    for flag in ("bias", "training", "bidirectional", "batch_first", "return_states"):
        for value in AMBIGUOUS:
            refused(TypeError, f"^{flag} must be True or False", run, **{flag: value})
    for wrong in (given, None):
        if name == "gru":
            refused(TypeError, "^h0 must be a tensor, got", run, h0=wrong)
        else:
            refused(TypeError, "^h0 must be a tensor, got", run, hx=(wrong, h))
            refused(TypeError, "^c0 must be a tensor, got", run, hx=(h, wrong))
            refused(TypeError, r"^hx must be a pair of tensors \(h0, c0\), got N", run, hx=None)
    assert run()[0].shape == (3, 2, 5)


def test_masks_of_the_zoo():
    layer, x = fastrnn.Recurrent(fastrnn.zoo.ZoneoutLSTM, 4, 5), torch.zeros(3, 2, 4)
    zoneout, dropout = fastrnn.zoo.zoneout, fastrnn.zoo.recurrent_dropout
    for draw in (zoneout, dropout):
        for given in (None, *NOTHING):
            for training in (True, False):
                layer.train(training)
                with pytest.raises(TypeError, match="^layer must be a Recurrent, got"):
                    draw(given, x)
                with pytest.raises(TypeError, match="^input must be a tensor or a PackedSequence"):
                    draw(layer, given)
    for given in (*NO_NUMBERS, 1, -0.1):
        for draw, names in ((zoneout, "hc"), (dropout, "p")):
            for name in names:
                with pytest.raises(ValueError, match=rf"^{name} must be a number in \[0, 1\), got"):
                    draw(layer, x, **{name: given})
    for given in AMBIGUOUS:
        with pytest.raises(ValueError, match="^per must be"):
            dropout(layer, x, per=given)
    assert zoneout(layer, x, h=np.float32(0.5))["keep_h"].dim() == 0
    assert dropout(layer.train(), x)["mask"].shape == (1, 2, 5)


def test_layer_norm_of_the_zoo():
    norm, x = fastrnn.zoo.layer_norm, torch.zeros(2, 4)
    for given in (None, *NOTHING):
        with pytest.raises(TypeError, match="^planes must be tensors, got"):
            norm(x, given)
    with pytest.raises(TypeError, match="^planes must be at least one"):
        norm()
    for given in (*NO_NUMBERS, -1.0):
        with pytest.raises(ValueError, match="^eps must be a number of at least 0, got"):
            norm(x, eps=given)


def test_formats_of_a_stream():
    gru, frames = fastrnn.GRU(4, 3), torch.zeros(3, 2, 4)
    array = np.array(["int8", "int8"])
    for given in ({"weights": array}, {"weights": {"weight_hh_l0": array}}):
        with pytest.raises(ValueError, match="^weights must be None"):
            fastrnn.Streamer(gru, 2, **given)
    with pytest.raises(ValueError, match="^activations must be None or 'int8'"):
        fastrnn.Streamer(gru, 2, weights="int8", activations=array)
    for wrong in (frames.long(), frames[..., :3], frames.double()):
        with pytest.raises(
            ValueError, match=r"^frames must be \(T, batch_size=2, input_size=4\) torch.float32"
        ):
            fastrnn.quantization_error(gru, wrong)
        with pytest.raises(
            ValueError, match=r"^x must be \(T, batch_size=2, input_size=4\) torch.float32"
        ):
            fastrnn.Streamer(gru, 2).steps(wrong)


def test_inputs_of_a_stream():
    plain, with_dt = fastrnn.GRU(4, 3), fastrnn.Recurrent(CELLS["decaying_lstm"], 4, 6)
    for stream in (fastrnn.Streamer(plain, 2), fastrnn.Streamer(with_dt, 2)):
        for given in [*AMBIGUOUS, 5, "a"]:
            for x in (torch.zeros(2, 4), np.zeros((2, 4), np.float32)):
                with pytest.raises(
                    TypeError, match="^inputs should be a dict of tensors by name, got"
                ):
                    stream(x, given)
    assert fastrnn.Streamer(plain, 2)(torch.zeros(2, 4), {}).shape == (2, 3)


def test_what_tune_runs():
    for given in NOTHING:
        with pytest.raises(TypeError, match="^run must be a function, got"):
            fastrnn.tune(given)
