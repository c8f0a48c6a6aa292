"""fastrnn.Streamer against the module itself, which takes the whole sequence at once."""

import copy
import pickle
import threading

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


@pytest.mark.parametrize("size", [300, 513])
def test_a_panel_that_is_cut_in_depth(isa, size):
    module = fastrnn.GRU(3, size)
    x = torch.randn(4, 2, 3)
    stream = fastrnn.Streamer(module, 2)
    got = torch.stack([stream(x_t).clone() for x_t in x])
    assert_matches(got, module.double()(x.double())[0])


def test_numpy_goes_in_and_out_without_copies():
    module = fastrnn.LSTM(4, 6)
    a, b = fastrnn.Streamer(module), fastrnn.Streamer(module)
    x = torch.randn(3, 1, 4)
    for x_t in x:
        from_numpy, from_torch = a(x_t.numpy()), b(x_t)
        assert isinstance(from_numpy, numpy.ndarray)
        assert torch.equal(torch.from_numpy(from_numpy), from_torch)
    # One piece of memory, call after call, whatever asks.
    assert a(x[0].numpy()).ctypes.data == from_numpy.ctypes.data == a(x[0]).data_ptr()


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


def test_streams_in_several_threads():
    module = fastrnn.LSTM(16, 32)
    x = torch.randn(200, 4, 1, 16)
    expected = torch.stack([module(x[:, k])[0] for k in range(4)])
    got = torch.empty_like(expected)

    def drive(k):
        stream = fastrnn.Streamer(module)
        for t in range(len(x)):
            got[k, t] = stream(x[t, k])

    threads = [threading.Thread(target=drive, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_matches(got, expected)


def test_no_memory_is_allocated_by_a_step():
    stream = fastrnn.Streamer(fastrnn.LSTM(16, 32))
    x = torch.randn(1, 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(3):
            stream(x)
    assert not [event for event in profile.events() if event.cpu_memory_usage]


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
        (
            lambda: fastrnn.Streamer(fastrnn.GRU(2, 3).bfloat16()),
            ValueError,
            r"torch.bfloat16 on cpu: give it module.cpu\(\).float\(\)$",
        ),  # fmt: skip
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


def test_states_and_weights_that_do_not_fit():
    module = fastrnn.LSTM(4, 6)
    stream = fastrnn.Streamer(module)
    with pytest.raises(ValueError, match="has 2 parts"):
        stream.load_state(torch.zeros(1, 1, 6))
    with pytest.raises(ValueError, match="expected a state"):
        stream.load_state((torch.zeros(1, 1, 6), torch.zeros(1, 2, 6)))
    with pytest.raises(IndexError):
        stream.reset(7)
    module.double()
    with pytest.raises(ValueError, match="a weight of the module is torch.float64"):
        stream.refresh()


def test_weights_of_another_shape_are_not_read():
    """The kernels see memory without its size."""
    module = fastrnn.LSTM(4, 6, num_layers=2)
    stream, x = fastrnn.Streamer(module), torch.randn(1, 4)
    whole = dict(module.named_parameters())
    for name, weight in whole.items():
        setattr(module, name, torch.nn.Parameter(weight[:1].detach()))
        with pytest.raises(RuntimeError, match="must have shape"):
            stream.refresh()
        setattr(module, name, None)
        with pytest.raises(ValueError, match=f"the module has no {name}"):
            stream.refresh()
        with pytest.raises(ValueError, match=f"the module has no {name}"):
            fastrnn.Streamer(module)
        setattr(module, name, weight)
    stream.refresh()
    assert_matches(stream(x), module(x[None])[0][0])


def share(y):
    y.share_memory_()


def send(y):
    torch.multiprocessing.get_context("spawn").SimpleQueue().put(y)


def resize(y):
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(1, 5000)
    with pytest.raises(RuntimeError, match="not resizable"):
        y.untyped_storage().resize_(0)


def reshape(y):
    y.squeeze_()
    y.unsqueeze_(-1)


def empty(y):
    y.set_()


def replace(y):
    y.data = torch.zeros(3)


def differentiate(y):
    y.mul_(torch.ones(1, requires_grad=True))
    y.sum().backward()


def freeze(y):
    y.numpy().flags.writeable = False


def lend_on(y):
    torch.from_dlpack(y).numpy().fill(7)


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize(
    "change", [share, send, resize, reshape, empty, replace, differentiate, freeze, lend_on]
)
def test_what_is_done_to_a_result_does_not_reach_the_stream(change, as_numpy):
    module, x = fastrnn.LSTM(8, 64), torch.randn(4, 1, 8)
    expected = module(x)[0].detach()
    stream = fastrnn.Streamer(module)
    for x_t, y_t in zip(x, expected, strict=True):
        y = stream(x_t.numpy() if as_numpy else x_t)
        if as_numpy:
            y = torch.from_numpy(y)
        assert not y.requires_grad and y.shape == (1, 64)
        assert_matches(y, y_t)
        kept = [torch.zeros(64) for _ in range(100)]  # where memory would be that is given back
        change(y)
        del y
        assert not any(t.any() for t in kept)
    stream.refresh()
    assert repr(stream) == "Streamer(LSTM(8, 64), batch_size=1)"


def test_what_is_done_to_an_array_does_not_reach_the_stream():
    module, x = fastrnn.GRU(4, 6), torch.randn(5, 1, 4)
    stream, expected = fastrnn.Streamer(module), module(x)[0].detach()
    for x_t, y_t in zip(x.numpy(), expected, strict=True):
        y = stream(x_t)
        assert_matches(torch.tensor(y), y_t)
        with pytest.raises(ValueError, match="resize"):
            y.resize(100, refcheck=False)
        y.shape = (6,)
        y.dtype = numpy.int32
        y.flags.writeable = False


def test_a_result_outlives_its_stream():
    stream = fastrnn.Streamer(fastrnn.LSTM(4, 6))
    y, array = stream(torch.randn(1, 4)), stream(numpy.zeros((1, 4), "f"))
    kept = y.clone()
    del stream
    _ = [torch.ones(6) for _ in range(100)]
    assert torch.equal(y, kept) and (array == kept.numpy()).all()


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


def test_another_default_device():
    with torch.device("meta"):
        stream = fastrnn.Streamer(fastrnn.GRU(4, 6, device="cpu"))
        x = torch.zeros(1, 4, device="cpu")
        share(stream(x))
        assert stream(x).is_cpu


def test_results_in_inference_mode_are_like_all_others():
    stream, x = fastrnn.Streamer(fastrnn.GRU(4, 6)), torch.randn(1, 4)
    with torch.inference_mode():
        share(stream(x))
        y = stream(x)
    assert not y.is_inference()
    y.requires_grad_().sum().backward()


def test_input_without_memory():
    stream, x = fastrnn.Streamer(fastrnn.GRU(4, 6)), torch.randn(1, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x must be a tensor with memory"):
        stream(x)
