"""fastrnn.Streamer against the module itself, which takes the whole sequence at once."""

import copy
import pickle

import numpy
import pytest
import torch
from conftest import KERNELS, assert_matches

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a Streamer is compiled code")

MODULES = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 5, "num_layers": 2}),
    (fastrnn.LSTM, {"bias": False}),
    (fastrnn.GRU, {"num_layers": 3}),
    (fastrnn.RNN, {}),
    (fastrnn.RNN, {"nonlinearity": "relu"}),
]


def states(state):
    return (state,) if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind, options", MODULES)
def test_steps_equal_the_sequence(isa, kind, options, batch, dtype):
    module = kind(7, 19, dtype=dtype, **options)
    x = torch.randn(9, batch, 7, dtype=dtype)
    expected, final = module.double()(x.double())
    stream = fastrnn.Streamer(module.to(dtype), batch)
    for x_t, y_t in zip(x, expected, strict=True):
        assert_matches(stream(x_t), y_t)
    for got, wanted in zip(states(stream.state), states(final), strict=True):
        assert_matches(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("kind, options", MODULES)
def test_modules_in_half_precision(kind, options, weights, dtype):
    """What the same numbers give in float32, rounded. The state is float32, also that of a copy."""
    module = kind(7, 19, **options).to(dtype)
    wide = copy.deepcopy(module).float()
    stream, other = (fastrnn.Streamer(each, 3, weights=weights) for each in (module, wide))
    frames = torch.randn(6, 3, 7).to(dtype)
    for x in frames:
        got = stream(x)
        assert got.dtype is dtype and torch.equal(got, other(x.float()).to(dtype))
        stream = pickle.loads(pickle.dumps(stream))
    for got, wanted in zip(states(stream.state), states(other.state), strict=True):
        assert got.dtype is dtype and torch.equal(got, wanted.to(dtype))
    assert (stream(x.float().numpy()) == other(x.float().numpy())).all()
    with pytest.raises(ValueError, match=rf"x must be \(batch_size=3, input_size=7\) {dtype} on"):
        stream(x.float())
    stream.reset()
    if weights is None:
        got = torch.stack([stream(x) for x in frames])
        assert_matches(got, wide.double()(frames.double())[0])
    stream = fastrnn.Streamer(module, 3)
    module.float()
    with pytest.raises(ValueError, match=f"the stream is {dtype} on the CPU, a weight of the mo"):
        stream.refresh()


@pytest.mark.parametrize("size", [300, 513])
def test_a_panel_that_is_cut_in_depth(isa, size):
    module = fastrnn.GRU(3, size)
    x = torch.randn(4, 2, 3)
    stream = fastrnn.Streamer(module, 2)
    got = torch.stack([stream(x_t).clone() for x_t in x])
    assert_matches(got, module.double()(x.double())[0])


@pytest.mark.parametrize("as_numpy", [False, True])
def test_input_that_is_not_contiguous(as_numpy):
    module = fastrnn.GRU(4, 6)
    x = torch.randn(4, 3).t()
    strided = x.numpy() if as_numpy else x
    got = torch.as_tensor(fastrnn.Streamer(module, 3)(strided))
    assert_matches(got, module(x.unsqueeze(0))[0][0])


def test_later_weights_arrive_with_refresh_only():
    module = fastrnn.LSTM(4, 6)
    stream = fastrnn.Streamer(module)
    x = torch.randn(1, 4)
    before = stream(x).clone()
    middle = stream.state
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
        module.bias_ih_l0.data.add_(1)
    stream.reset()
    assert torch.equal(stream(x), before)
    stream.refresh()
    assert all(torch.equal(a, b) for a, b in zip(stream.state, middle, strict=True))
    assert_matches(stream(x), module(x.unsqueeze(0), middle)[0][0])


def test_weights_of_a_parametrization():
    module = torch.nn.utils.parametrizations.weight_norm(fastrnn.GRU(4, 6), "weight_hh_l0")
    x = torch.randn(2, 4)
    assert_matches(fastrnn.Streamer(module, 2)(x), module(x.unsqueeze(0))[0][0])


@pytest.mark.parametrize("rows", [None, 1, [0, 2], torch.tensor([True, False, True, False])])
def test_reset(rows):
    module = fastrnn.LSTM(4, 6, num_layers=2)
    stream = fastrnn.Streamer(module, 4)
    x = torch.randn(2, 4, 4)
    stream(x[0])
    h, c = stream.state
    stream.reset(rows)
    h[:, slice(None) if rows is None else rows] = 0
    c[:, slice(None) if rows is None else rows] = 0
    assert_matches(stream(x[1]), module(x[1:], (h, c))[0][0])


def test_a_state_is_a_copy_and_can_be_loaded():
    module = fastrnn.LSTM(4, 6, proj_size=3)
    a, b = fastrnn.Streamer(module, 2), fastrnn.Streamer(module, 2)
    x = torch.randn(3, 2, 4)
    a(x[0])
    saved = a.state
    a(x[1])
    b.load_state(saved)
    b(x[1])
    assert torch.equal(a(x[2]), b(x[2]))


def test_no_gradient_is_recorded():
    x = torch.randn(1, 4, requires_grad=True)
    assert not fastrnn.Streamer(fastrnn.GRU(4, 6))(x).requires_grad


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: fastrnn.Streamer(torch.nn.LSTM(2, 3)), TypeError, r"fastrnn.convert\(module\)"),
        (lambda: fastrnn.Streamer(torch.nn.Linear(2, 3)), TypeError, "got Linear$"),
        (lambda: fastrnn.Streamer(fastrnn.GRU(2, 3, bidirectional=True)), ValueError, "bidirect"),
        (lambda: fastrnn.Streamer(fastrnn.GRU(2, 3), 0), ValueError, "batch_size must be at"),
        (lambda: fastrnn.Streamer(fastrnn.GRU(2, 3, device="meta")), ValueError, "on meta"),
    ],
)
def test_modules_that_cannot_be_streamed(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "x, error",
    [
        (torch.zeros(2, 4), ValueError),
        (torch.zeros(1, 5), ValueError),
        (torch.zeros(4), ValueError),
        (torch.zeros(1, 4, dtype=torch.float64), ValueError),
        (torch.zeros(1, 4, device="meta"), ValueError),
        (numpy.zeros((1, 4)), ValueError),
        (numpy.zeros((4, 1), dtype="f"), ValueError),
        ([[0.0] * 4], TypeError),
    ],
)
def test_input_that_does_not_fit(x, error):
    stream = fastrnn.Streamer(fastrnn.LSTM(4, 6))
    with pytest.raises(error, match="x must be"):
        stream(x)


def test_tensors_that_are_not_dense_or_without_memory():
    stream, x = fastrnn.Streamer(fastrnn.LSTM(4, 6)), torch.zeros(2, 1, 4)
    for wrong in (x[0].to_sparse(), torch.nested.nested_tensor([x[0, 0]])):
        with pytest.raises((RuntimeError, ValueError), match="x must be"):
            stream(wrong)
        with pytest.raises((RuntimeError, ValueError), match="x must be"):
            stream.steps(wrong)
    h = torch.zeros(1, 1, 6)
    for wrong in (h.to("meta"), h.to_sparse()):
        for state in ((wrong, h), (h, wrong)):
            with pytest.raises(
                RuntimeError, match="state [hc] must (be a dense tensor|have memory)"
            ):
                stream.load_state(state)


def test_rows_of_any_integer_type():
    stream = fastrnn.Streamer(fastrnn.GRU(4, 6), batch_size=3)
    stream(torch.randn(3, 4))
    stream.reset(torch.tensor([1], dtype=torch.uint64))
    assert stream.state.count_nonzero(2).tolist() == [[6, 0, 6]]
    for row in (2**70, -(2**70), 3, torch.tensor([3], dtype=torch.uint64)):
        with pytest.raises(IndexError, match="rows must be between -3 and 2"):
            stream.reset(row)


def test_more_layers_than_weights():
    module = fastrnn.LSTM(4, 6)
    stream = fastrnn.Streamer(module)
    module.num_layers = 2
    for call in (lambda: fastrnn.Streamer(module), stream.refresh):
        with pytest.raises(RuntimeError, match="2 layers of 1 directions take .* 8 weights"):
            call()


def test_states_and_weights_that_do_not_fit():
    module = fastrnn.LSTM(4, 6)
    stream = fastrnn.Streamer(module)
    with pytest.raises(ValueError, match=r"state has 2 parts \(h, c\), got 1"):
        stream.load_state(torch.zeros(1, 1, 6))
    with pytest.raises(
        ValueError, match=r"c must be \(num_layers=1, batch_size=1, hidden_size=6\), got"
    ):
        stream.load_state((torch.zeros(1, 1, 6), torch.zeros(1, 2, 6)))
    with pytest.raises(IndexError):
        stream.reset(7)
    module.double()
    with pytest.raises(ValueError, match="a weight of the module is torch.float64"):
        stream.refresh()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("kind, options", MODULES)
def test_copies(kind, options, copied):
    module, x = kind(4, 6, **options), torch.randn(3, 2, 4)
    stream = fastrnn.Streamer(module, 2)
    stream(x[0])
    other = copied(stream)
    wanted = [stream(x_t).clone() for x_t in x[1:]]  # each has its own state
    assert all(torch.equal(other(x_t), y_t) for x_t, y_t in zip(x[1:], wanted, strict=True))
    for a, b in zip(module.parameters(), other._module.parameters(), strict=True):
        assert a is not b and torch.equal(a, b)
