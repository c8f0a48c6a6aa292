"""Several time steps of a stream in one call: the bits of as many calls of one."""

import pytest
import torch
from conftest import KERNELS, assert_matches
from small_weight_steps import ALL_INT8

import fastrnn
from fastrnn import Streamer

needs_kernels = pytest.mark.skipif(KERNELS is None, reason="small weights are compiled")
MODULES = [
    (fastrnn.LSTM, {"num_layers": 2}),
    (fastrnn.LSTM, {"proj_size": 5, "num_layers": 3}),
    (fastrnn.GRU, {"num_layers": 2, "batch_first": True}),
    (fastrnn.RNN, {"nonlinearity": "relu", "bias": False}),
    (fastrnn.RNN, {"num_layers": 2}),
]


def assert_the_same(module, T: int, N: int, **options) -> None:
    x = torch.randn(T, N, module.input_size).to(module.weight_ih_l0.dtype)
    one, many = Streamer(module, N, **options), Streamer(module, N, **options)
    first = torch.randn(N, module.input_size).to(x)
    one(first), many(first)
    wanted = [one(frame).clone() for frame in x]
    got = many.steps(x)
    assert got.shape == (T, N, module.proj_size or module.hidden_size) and got.dtype == x.dtype
    assert torch.equal(got, torch.stack(wanted) if wanted else got)
    states = [s if isinstance(s, tuple) else (s,) for s in (one.state, many.state)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    kept = got.clone()
    assert torch.equal(many(first), one(first)) and torch.equal(got, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("T, N", [(0, 2), (1, 3), (7, 1), (21, 5), (26, 1), (3, 14)])
@pytest.mark.parametrize("kind, options", MODULES)
def test_floats(isa, kind, options, T, N, dtype):
    assert_the_same(kind(6, 19, **options).to(dtype), T, N)


@needs_kernels
@pytest.mark.parametrize(
    "small",
    [{"weights": "float16"}, {"weights": "int8"}, {"weights": ALL_INT8, "activations": "int8"}],
    ids=str,
)
@pytest.mark.parametrize("T, N", [(1, 2), (16, 1), (37, 1), (9, 3), (4, 20)])
@pytest.mark.parametrize("kind, options", MODULES)
def test_small_weights(isa, kind, options, T, N, small):
    assert_the_same(kind(6, 37, **options), T, N, **small)


@pytest.mark.parametrize("zoo_cell", [fastrnn.zoo.LiGRU, fastrnn.zoo.PeepholeLSTM])
def test_a_cell_that_is_a_function(zoo_cell):
    assert_the_same(fastrnn.Recurrent(zoo_cell, 6, 10, num_layers=2), 5, 3)


def test_inputs_in_another_order():
    module, x = fastrnn.GRU(4, 6), torch.randn(3, 7, 4)
    wanted = Streamer(module, 3).steps(x.transpose(0, 1).contiguous())
    got = Streamer(module, 3).steps(x.transpose(0, 1).requires_grad_())
    assert torch.equal(got, wanted) and not got.requires_grad


def test_what_steps_refuses():
    module = fastrnn.LSTM(4, 6)
    stream, x = Streamer(module, 2), torch.randn(5, 2, 4)
    for wrong in (x[0], x[:, :1], x.double(), x[None]):
        with pytest.raises(
            ValueError, match=r"x must be \(T, batch_size=2, input_size=4\) torch.float32"
        ):
            stream.steps(wrong)
    with pytest.raises(TypeError, match="x must be a tensor, got ndarray; see torch.from_numpy"):
        stream.steps(x.numpy())
    for _ in range(2):  # before any array came, and after
        with pytest.raises(TypeError, match="must be a torch tensor or a numpy array, got list"):
            stream.step(x[0].tolist())
        stream.step(x[0].numpy())
        stream.reset()
    with pytest.raises(RuntimeError, match="does not work inside grad, vmap"):
        torch.func.grad(lambda x: stream.steps(x).sum())(x)
    assert all((s == 0).all() for s in stream.state)

    def leaky(g, s, p):
        return s.h + p.dt * (torch.tanh(g.z) - s.h)

    timed = Streamer(fastrnn.Recurrent(fastrnn.Cell(leaky, "z", "h", inputs="dt"), 4, 6), 2)
    with pytest.raises(TypeError, match="steps takes no cell that has inputs"):
        timed.steps(x)
    assert timed(x[0], {"dt": 0.5}).isfinite().all()
    assert_matches(stream.steps(x), module(x)[0])
