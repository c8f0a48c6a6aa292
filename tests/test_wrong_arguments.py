"""Arguments of a wrong kind: the error names the argument, and a good call works after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from program_cells import CELLS
from torch import nn
from torch.autograd import forward_ad

import fastrnn

WRONG = {
    "None": None,
    "float": 1.5,
    "str": "a",
    "object": object(),
    "list": [1.5],
    "array": np.zeros((2, 4), np.float32),
    "meta": torch.zeros(2, 4, device="meta"),
}


def wrong(*allowed: str):
    return pytest.mark.parametrize("kind", [kind for kind in WRONG if kind not in allowed])


def streams():
    return [fastrnn.Streamer(getattr(fastrnn, name)(4, 3), 2) for name in ("LSTM", "GRU")]


def hidden(stream) -> torch.Tensor:
    return stream.state[0] if isinstance(stream.state, tuple) else stream.state


@wrong()
def test_batch_size(kind):
    with pytest.raises(TypeError, match="^batch_size must be an integer"):
        fastrnn.Streamer(fastrnn.GRU(4, 3), WRONG[kind])
    assert fastrnn.Streamer(fastrnn.GRU(4, 3), np.int64(2))(torch.zeros(2, 4)).shape == (2, 3)


def test_a_state_that_does_not_fit_changes_nothing():
    stream = fastrnn.Streamer(fastrnn.LSTM(4, 3), 2)
    ones = torch.ones(1, 2, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        stream.load_state((ones, ones.to("meta")))
    with pytest.raises(ValueError, match="state c must be of torch.float32, got torch.complex64"):
        stream.load_state((ones, ones + 1j))
    assert not stream.state[0].any()
    stream.load_state((ones.double(), ones))
    assert stream.state[0].eq(1).all()


def test_ranks_of_functions():
    gru = fastrnn.GRU(4, 5)
    x, h, weights = torch.randn(3, 2, 4), torch.zeros(1, 2, 5), list(gru.parameters())
    for wrong, state, said in (
        (x[0], h, "input must have 3 dimensions, got 2"),
        (x, h[0], "h0 must have 3 dimensions, got 2"),
    ):
        with pytest.raises(RuntimeError, match=said):
            fastrnn.functional.gru(wrong, state, weights)
    sizes = torch.tensor([2, 2, 2])
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        fastrnn.functional.gru(x, h, weights, batch_sizes=sizes)
    assert fastrnn.functional.gru(x, h, weights)[0].shape == (3, 2, 5)


def test_limits_beyond_an_integer_and_a_float():
    lstm, x = fastrnn.LSTM(4, 5), torch.randn(3, 2, 4)
    lstm(x, detach_every=2**70)[0].sum().backward()
    with pytest.raises(ValueError, match="grad_clip must be greater than 0"):
        lstm(x, grad_clip=10**400)


def test_names_of_parameters():
    with pytest.raises(ValueError, match="a parameter cannot be named 'bias_hh'"):
        fastrnn.Cell(lambda g, s, p: torch.tanh(g.a) * p.bias_hh, "a", params="bias_hh")


@wrong("None")
def test_rows(kind):
    for stream in streams():
        with pytest.raises(TypeError, match="^rows must be integers or a bool mask"):
            stream.reset(WRONG[kind])


def test_rows_that_are_not_there():
    for stream in streams():
        for rows in (2, -3, [0, 2], torch.tensor([5])):
            with pytest.raises(IndexError, match="^rows must be between -2 and 1"):
                stream.reset(rows)
        for mask in ([True], torch.ones(2, 1, dtype=torch.bool), True):
            with pytest.raises(IndexError, match=r"^a mask of rows must have shape \(2,\)"):
                stream.reset(mask)
        with pytest.raises(TypeError, match="uint8"):
            stream.reset(torch.ones(2, dtype=torch.uint8))


def test_rows_of_every_form():
    first = [0, -2, [0], (0,), np.array([0]), torch.tensor([0], dtype=torch.int32), slice(1)]
    first += [[True, False], np.array([True, False]), torch.tensor([True, False])]
    for stream in streams():
        for rows in first:
            stream.reset()
            stream.step(torch.ones(2, 4))
            h = hidden(stream)
            stream.reset(rows)
            now = hidden(stream)
            assert not now[:, 0].any() and torch.equal(now[:, 1], h[:, 1])
            stream.reset([])
            assert torch.equal(hidden(stream), now)


@wrong("list", "meta")
def test_state(kind):
    for stream in streams():
        with pytest.raises(TypeError, match="^state must be a tensor or a pair"):
            stream.load_state(WRONG[kind])
        parts = 2 if isinstance(stream.state, tuple) else 1
        with pytest.raises(TypeError, match="^each part of state must be a tensor"):
            stream.load_state((WRONG[kind],) * parts)
        stream.load_state(stream.state)


@wrong("meta")
def test_quantization_error(kind):
    with pytest.raises(TypeError, match="^frames must be a tensor"):
        fastrnn.quantization_error(fastrnn.GRU(4, 3), WRONG[kind])


@wrong()
def test_convert(kind):
    for convert in (fastrnn.convert, fastrnn.to_torch):
        with pytest.raises(TypeError, match=r"^module must be a torch\.nn\.Module"):
            convert(WRONG[kind])
    if kind != "None":
        model = nn.Sequential(nn.LSTM(4, 3))
        with pytest.raises(TypeError, match="^filter must be a function"):
            fastrnn.convert(model, WRONG[kind])
        assert type(model[0]) is nn.LSTM
        assert type(fastrnn.convert(model)[0]) is fastrnn.LSTM


@wrong()
def test_backend(kind):
    for choose in (fastrnn.backend, fastrnn.set_backend):
        with pytest.raises(ValueError, match="^unknown backend"):
            choose(WRONG[kind])


@pytest.mark.parametrize("name", ["reset", "lengths", "grad_clip"])
@wrong("None", "float")
def test_features(kind, name):
    gru, x = fastrnn.GRU(4, 3), torch.randn(5, 2, 4)
    for given in (True, False):
        with (
            torch.set_grad_enabled(given),
            pytest.raises((TypeError, ValueError), match=f"^{name}"),
        ):
            gru(x, **{name: WRONG[kind]})
    assert gru(x, grad_clip=np.float32(0.5))[0].shape == (5, 2, 3)
    assert gru(x, grad_clip=torch.tensor(0.5))[0].shape == (5, 2, 3)


@pytest.mark.parametrize("name, dtype", [("LSTM", torch.float32), ("GRU", torch.bfloat16)])
def test_tangents(name, dtype):
    """A Streamer would lose them: of a step, of several, of a state and of a weight."""
    module = getattr(fastrnn, name)(4, 3, dtype=dtype)
    stream, x = fastrnn.Streamer(module, 2), torch.randn(2, 4, dtype=dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        h = hidden(stream)
        h = forward_ad.make_dual(h, torch.ones_like(h))
        state = (h, h) if isinstance(stream.state, tuple) else h
        for call, given in (
            (stream.step, dual),
            (stream.steps, dual.unsqueeze(0)),
            (stream.load_state, state),
        ):
            with pytest.raises(RuntimeError, match="has a tangent of forward-mode AD"):
                call(given)
        assert not hidden(stream).any()
        stream(x)
        weight = module.weight_hh_l0.detach()
        del module.weight_hh_l0
        module.weight_hh_l0 = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(RuntimeError, match="a weight has a tangent"):
            stream.refresh()


def test_tangents_of_inputs():
    stream = fastrnn.Streamer(fastrnn.Recurrent(CELLS["decaying_lstm"], 4, 6), 2)
    x, dt = torch.randn(2, 4), torch.rand(2, 6)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(dt, torch.ones_like(dt))
        with pytest.raises(RuntimeError, match="input dt has a tangent"):
            stream(x, {"dt": dual})
        assert not hidden(stream).any()
        stream(x, {"dt": dt})
