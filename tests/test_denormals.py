"""Denormal numbers are zeros to the kernels of a CPU, on every thread, and to nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from conftest import KERNELS
from op_cases import Case, arguments, backward, cotangents
from test_threads import threads
from torch import Tensor

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
OPS = torch.ops.fastrnn
CELLS = ["lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu"]
# What is far from denormal before a layer and denormal after some steps of it.
SMALL = {torch.float32: 1e-33, torch.float64: 1e-300, torch.bfloat16: 1e-33}


def denormals(tensor: Tensor) -> int:
    """How many, counted without arithmetic on them."""
    bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])
    least = torch.tensor(torch.finfo(tensor.dtype).tiny, dtype=tensor.dtype).view(bits.dtype)
    magnitude = bits & torch.iinfo(bits.dtype).max
    return int(((magnitude > 0) & (magnitude < least)).sum())


def kept_by_torch() -> bool:
    """Whether torch's arithmetic has denormal numbers, on this thread and on those of its pool."""
    found = [
        torch.full((count,), tiny, dtype=dtype).mul(0.5).ne(0)
        for count in (1, 1 << 20)
        for dtype, tiny in ((torch.float32, 1e-39), (torch.float64, 1e-309))
    ]
    assert all(one.all() or not one.any() for one in found)
    return all(bool(one.all()) for one in found)


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    """On this thread, to which torch then keeps."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormal numbers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def faded(case: Case) -> tuple:
    """The arguments of a layer with silent input, whose state and gradients fade away."""
    input, batch_sizes, h0, c0, weights, *rest = arguments(case)
    small = SMALL[case.dtype]
    weights = [w * 0.3 if w.dim() == 2 else torch.zeros_like(w) for w in weights]
    c0 = None if c0 is None else c0 * small
    return torch.zeros_like(input), batch_sizes, h0 * small, c0, weights, *rest


def everything(args: tuple, small: float = 1.0) -> list[Tensor]:
    """All results of the three ops."""
    results = OPS.layer_forward(*args)
    grads = [None if g is None else g * small for g in cotangents(results)]
    grads[0] = torch.zeros_like(grads[0])
    gradients = backward(OPS.layer_backward, args, results, grads)
    return [*results, *OPS.layer_inference(*args), *gradients[:3], *gradients[3]]


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("N, H", [(12, 40), (1, 330)], ids=["rows", "units"])
def test_no_thread_leaves_a_denormal_number(cell, dtype, N, H, isa):
    """Threads share rows, or units; and one does all of it, with the same bits. Backward starts
    from states near 1, so that a gradient is what becomes small."""
    steps = 60
    fades = faded(Case(cell, T=steps, N=N, I=40, H=H, D=2, dtype=dtype))
    stays = arguments(Case(cell, T=steps, N=N, I=40, H=H, D=2, dtype=dtype))
    for args, small in ((fades, 1.0), (stays, SMALL[dtype])):
        with threads(1):
            wanted = everything(args, small)
        assert not any(map(denormals, wanted))
        with threads(3):
            assert all(map(torch.equal, wanted, everything(args, small)))
            assert kept_by_torch()
    with threads(1):
        output = OPS.layer_inference(*fades)[0]
    assert 0 < output.count_nonzero() < output.numel(), "nothing was flushed"


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_every_way_to_call_flushes_and_gives_back(cell):
    """A module with gradients and without, step by step, and a Streamer; after an error, too."""
    module = getattr(fastrnn, cell)(16, 16, bias=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.3)
    x, h = torch.zeros(100, 2, 16), torch.full((1, 2, 16), 1e-36)
    state = (h, h.clone()) if cell == "LSTM" else h

    def stepped() -> Tensor:
        outputs, now = [], state
        for step in x:
            output, now = module.step(step, now)
            outputs.append(output)
        return torch.stack(outputs)

    def streamed() -> Tensor:
        stream = fastrnn.Streamer(module, batch_size=2)
        stream.load_state(state)
        return torch.stack([stream(step).clone() for step in x])

    def outputs() -> list[Tensor]:
        recorded = module(x, state)[0].detach()
        with torch.no_grad():
            return [recorded, module(x, state)[0], stepped(), streamed()]

    found = outputs()
    for output in found:
        assert not denormals(output)
        assert output[0].count_nonzero() and not output[-1].count_nonzero()
    assert kept_by_torch()
    with pytest.raises(RuntimeError):
        module(torch.zeros(3, 2, 5))
    assert kept_by_torch()
    with flushing():
        assert all(map(torch.equal, found, outputs()))
        assert not kept_by_torch()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_limit_that_is_a_denormal_number_is_one(name, dtype):
    least = torch.finfo(dtype).tiny
    module, x = getattr(fastrnn, name)(3, 4, dtype=dtype), torch.randn(5, 2, 3, dtype=dtype)
    for limit in (least / 2, least):
        state = torch.ones(1, 2, 4, dtype=dtype, requires_grad=True)
        hx = (state, torch.zeros(1, 2, 4, dtype=dtype)) if name == "LSTM" else state
        (found,) = torch.autograd.grad(module(x, hx, grad_clip=limit)[0].sum(), state)
        assert found.abs().max() <= least


def ones(steps: int, rows: int) -> tuple[fastrnn.RNN, Tensor]:
    """A layer of one unit, which adds the input to its biases, and an input of ones."""
    module = fastrnn.RNN(1, 1, nonlinearity="relu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(parameter is module.weight_ih_l0)
    return module, torch.ones(steps, rows, 1)


def test_no_denormal_number_comes_of_sums_of_several_blocks(isa):
    """A layer of few units adds up what blocks of rows give to a weight's gradient."""
    module, x = ones(3, 64)
    dy = torch.zeros(3, 64, 1)
    dy[2, 0], dy[2, 16] = 1.5e-38, -1.4e-38
    wanted = torch.autograd.grad(module(x)[0], list(module.parameters()), dy)
    assert not any(map(denormals, wanted))
    with flushing():
        found = torch.autograd.grad(module(x)[0], list(module.parameters()), dy)
    assert all(map(torch.equal, wanted, found))


def test_a_bias_that_is_a_denormal_number_is_zero(isa):
    """Both biases are added up once a call; in a call of one step, at each step."""
    module, x = ones(12, 1)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.bias_ih_l0.fill_(1.17e-38)
        module.bias_hh_l0.fill_(1e-39)
        assert not module(x[:1])[0].count_nonzero()
        assert not module(x)[0].count_nonzero()
        assert not fastrnn.Streamer(module)(x[0]).count_nonzero()
