"""Whose memory a fastrnn.Streamer reads and lends, and that nobody can move what is its own."""

import numpy
import pytest
import torch
from conftest import KERNELS, assert_matches

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a Streamer is compiled code")


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


def test_no_memory_is_allocated_by_a_step():
    stream = fastrnn.Streamer(fastrnn.LSTM(16, 32))
    x = torch.randn(1, 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(3):
            stream(x)
    assert not [event for event in profile.events() if event.cpu_memory_usage]


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
        with pytest.raises(TypeError, match=f"{name} is None"):
            stream.refresh()
        with pytest.raises(TypeError, match=f"{name} is None"):
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
