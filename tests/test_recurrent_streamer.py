"""A Streamer of a cell that is a function: its inputs, its heads, and whose parameters it reads."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy
import pytest
import torch
from conftest import assert_matches
from program_cells import CELLS
from recurrent_calls import EXACT, Example
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import Recurrent, Streamer, zoo

DTYPES = [torch.float32, torch.float64]


def at(inputs: dict, t: int, time: int) -> dict:
    """Those of one step."""
    return {k: v.select(time, t) if v.dim() == 3 else v for k, v in inputs.items()}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_steps_are_those_of_a_call(name, dtype, batch_first):
    """Against the definition in float64: inputs for each unit, row, and unit of each row."""
    time = 1 if batch_first else 0
    for batch, H in ((1, 21), (3, 8)):
        example = Example(name, 6, batch, 4, H, dtype, num_layers=2, batch_first=batch_first)
        wide = example.to_double()
        with torch.no_grad(), fastrnn.backend("reference"):
            wanted, state = wide.module(wide.x, inputs=wide.inputs or None)
        stream = Streamer(example.module, batch)
        for t in range(6):
            if t == 3:
                stream = pickle.loads(pickle.dumps(stream))
            y = stream(example.x.select(time, t), at(example.inputs, t, time) or None)
            assert_matches(y, wanted.select(time, t))
        for a, e in zip(tree_leaves(stream.state), tree_leaves(state), strict=True):
            assert_matches(a, e)
        stream.reset()
        stream.load_state(state)
        for a, e in zip(tree_leaves(stream.state), tree_leaves(state), strict=True):
            assert_matches(a, e)


def test_a_learned_parameter_has_no_rows():
    """The kernels would read past its end."""
    layer = Recurrent(zoo.IndRNN, 4, 64)
    Streamer(layer, 2)
    layer.u_l0 = torch.nn.Parameter(torch.full((2, 1), 0.25))
    with pytest.raises(RuntimeError, match=r"u_l0 must have shape \(64,\), got \(2, 1\)"):
        Streamer(layer, 2)


def test_inputs_broadcast():
    """Everything that broadcasts to (N, H), as numbers, masks, and arrays."""
    module = Recurrent(CELLS["decaying_lstm"], 4, 6)
    x = torch.randn(3, 4)
    shapes = ((), (1,), (6,), (1, 1), (3, 1), (1, 6), (3, 6))
    given = [torch.rand(shape) for shape in shapes]
    given += [2, 0.5, torch.tensor([[True], [False], [True]]), torch.arange(6)]
    given += [torch.rand(6, 3).t(), torch.rand(3, 6).requires_grad_()]
    for dt in given:
        wanted, state = module.step(x, inputs={"dt": dt})
        stream = Streamer(module, 3)
        assert_matches(stream(x, inputs={"dt": dt}), wanted)
        stream.reset()
        if isinstance(dt, torch.Tensor):
            dt = dt.detach().numpy().copy()
            dt.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y = stream(x.numpy(), {"dt": dt})
        assert_matches(torch.from_numpy(y), wanted)
        for a, e in zip(stream.state, state, strict=True):
            assert_matches(a, e)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
def test_a_number_as_input_has_no_dtype(dtype):
    """A number of numpy neither, as in a call; an array has one."""
    module = Recurrent(CELLS["decaying_lstm"], 4, 6, dtype=dtype)
    x = torch.randn(2, 4, dtype=dtype)
    wanted, _ = module.step(x, inputs={"dt": 0.25})
    for make in (float, numpy.float64, numpy.float32, numpy.float16, numpy.longdouble):
        frames = (x,) if dtype.itemsize == 2 else (x, x.numpy())
        for frame in frames:
            y = Streamer(module, 2)(frame, {"dt": make(0.25)})
            assert_matches(torch.as_tensor(y), wanted)
        assert torch.equal(module.step(x, inputs={"dt": make(0.25)})[0], wanted)


def test_inputs_of_a_step_are_its_own():
    """What the caller does to a tensor after the call, and what came before, has no effect."""
    module = Recurrent(CELLS["cfc"], 4, 5, dtype=torch.float64)
    x, dt = torch.randn(2, 1, 4, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    wanted, _ = module(x, inputs={"dt": dt[:, None]})
    stream, given = Streamer(module), dt[0].clone()
    assert_matches(stream(x[0], {"dt": given}), wanted[0])
    given.fill_(torch.nan)
    again = copy.deepcopy(stream)
    for each in (stream, again):
        assert_matches(each(x[1], {"dt": dt[1]}), wanted[1])


def test_refused():
    """Before anything changes: the state is as it was, and a good call follows."""
    module = Recurrent(CELLS["zoneout_lstm"], 4, 5)
    stream, x = Streamer(module, 2), torch.randn(2, 4)
    good = {"keep_h": 0.5, "keep_c": torch.rand(2, 1)}
    stream(x, good)
    before = stream.state
    for inputs, error, text in (
        (None, ValueError, r"zoneout_lstm needs inputs=\{'keep_h', 'keep_c'\}, got none"),
        ({"keep_h": 1.0}, ValueError, r"needs inputs=\{'keep_h', 'keep_c'\}, got 'keep_h'"),
        ([1.0, 2.0], TypeError, "inputs should be a dict of tensors by name, got list"),
        (good | {"keep_c": "1"}, ValueError, "input keep_c: expected a tensor, got str"),
        (good | {"keep_c": torch.ones(2)}, ValueError, r"must broadcast to \(2, 5\), got \(2,\)"),
        (good | {"keep_c": torch.ones(1, 2, 5)}, ValueError, r"keep_c must broadcast to \(2, 5\)"),
        (good | {"keep_c": torch.ones(5).double()}, RuntimeError, "the same dtype as the layer's"),
        (good | {"keep_c": numpy.ones(5)}, RuntimeError, "the same dtype as the layer's"),
        (good | {"keep_c": torch.ones(5, device="meta")}, RuntimeError, "same device"),
    ):
        for frame in (x, x.numpy()):
            with pytest.raises(error, match=text):
                stream(frame, inputs)
    for a, e in zip(stream.state, before, strict=True):
        assert torch.equal(a, e)
    assert_matches(stream(x, good), module.step(x, before, inputs=good)[0])
    lstm = fastrnn.LSTM(4, 5)
    stream = Streamer(lstm, 2)
    for frame in (x, x.numpy()):
        with pytest.raises(ValueError, match=r"LSTM takes no inputs, got 'dt'"):
            stream(frame, {"dt": 1.0})
    assert_matches(stream(x, {}), lstm.step(x)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H, heads", [(256, 4), (192, 3), (128, 1), (20, 4)])
def test_heads(H, heads, dtype):
    """Those of 64 units, which kernels take as they are, and others, which they are filled for."""
    module = Recurrent(zoo.SLSTM, 5, H, num_layers=2, heads=heads, dtype=dtype)
    x = torch.randn(4, 2, 5, dtype=dtype)
    wanted, state = module(x)
    stream = Streamer(module, 2)
    for x_t, y in zip(x, wanted, strict=True):
        assert_matches(stream(x_t), y)
    for a, e in zip(stream.state, state, strict=True):
        assert_matches(a, e)


def test_parameters_are_those_of_the_moment():
    """Learned params are taken as weights are: once, and again by refresh()."""
    module = Recurrent(CELLS["decaying_lstm"], 4, 5)
    x, dt = torch.randn(1, 4), {"dt": 0.7}
    wanted = module.step(x, inputs=dt)[0]
    stream = Streamer(module)
    with torch.no_grad():
        module.rate_l0.add_(3)
        assert_matches(stream(x, dt), wanted)
        module.rate_l0.data = torch.full((5,), -4.0)
    stream.reset()
    assert_matches(stream(x, dt), wanted)
    stream.refresh()
    stream.load_state((torch.zeros(1, 1, 5), torch.ones(1, 1, 5)))
    wanted, _ = module.step(x, (torch.zeros(1, 1, 5), torch.ones(1, 1, 5)), inputs=dt)
    assert_matches(stream(x, dt), wanted)
