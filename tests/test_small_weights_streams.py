"""Streams of small weights as objects: their errors, threads, copies, and what they refuse."""

import copy
import pickle
import threading

import pytest
import torch
from conftest import KERNELS
from small_weight_steps import ALL_INT8, assert_steps

import fastrnn
from fastrnn import Streamer

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a stream of small weights is compiled")


def error(module, x, **options) -> float:
    stream = Streamer(module, x.size(1), **options)
    got = torch.stack([stream(frame).clone() for frame in x])
    wanted = module(x)[0]
    return ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def test_errors_are_small():
    module, x = fastrnn.LSTM(64, 256), torch.randn(50, 1, 64)
    assert error(module, x, weights="float16") <= 3e-4
    assert error(module, x, weights="bfloat16") <= 2.5e-3
    assert error(module, x, weights="int8") <= 1e-2
    narrow = error(module, x, weights=ALL_INT8, activations="int8")
    assert error(module, x, weights=ALL_INT8) < narrow <= 2e-2


def test_streams_in_several_threads():
    module, x = fastrnn.LSTM(16, 96), torch.randn(200, 4, 1, 16)
    alone = Streamer(module, 4, weights="int8")
    expected = torch.stack([alone(frame.flatten(0, 1)).clone() for frame in x])
    got = torch.empty_like(expected)

    def drive(k):
        stream = Streamer(module, weights="int8")
        for t in range(len(x)):
            got[t, k] = stream(x[t, k])[0]

    threads = [threading.Thread(target=drive, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_refresh_rounds_again(weights):
    module, x = fastrnn.LSTM(4, 6), torch.randn(1, 4)
    stream = Streamer(module, weights=weights)
    before = stream(x).clone()
    with torch.no_grad():
        module.weight_hh_l0.mul_(5)
        module.weight_ih_l0.mul_(-3)
    stream.reset()
    assert torch.equal(stream(x), before)
    stream.reset()
    stream.refresh()
    assert torch.equal(stream(x), Streamer(module, weights=weights)(x))
    assert not torch.equal(stream(x), before)
    with torch.no_grad():
        module.weight_hh_l0[2, 3] = float("nan")
    with pytest.raises(ValueError, match="weight_hh_l0 has NaN, infinity or a number beyond"):
        stream.refresh()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_keep_what_was_asked(copied):
    module, x = fastrnn.GRU(4, 6, num_layers=2), torch.randn(3, 2, 4)
    stream = Streamer(module, 2, weights=ALL_INT8, activations="int8")
    stream(x[0])
    other = copied(stream)
    wanted = [stream(frame).clone() for frame in x[1:]]
    assert all(torch.equal(other(frame), y) for frame, y in zip(x[1:], wanted, strict=True))
    said = (
        "Streamer(GRU(4, 6, num_layers=2), batch_size=2, weights={'*': 'int8'}, activations='int8')"
    )
    assert repr(other) == repr(stream) == said
    assert repr(Streamer(module, weights="int8")).endswith("batch_size=1, weights='int8')")


def test_all_floats_is_the_stream_of_floats():
    module, x = fastrnn.LSTM(4, 6), torch.randn(1, 4)
    wanted = Streamer(module)(x)
    assert torch.equal(Streamer(module, weights={"*": None})(x), wanted)
    assert torch.equal(
        Streamer(module.double(), weights={})(x.double()), Streamer(module)(x.double())
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int4"}, "weights must be None, 'float16', .* got 'int4'"),
        ({"weights": {"*": 8}}, "weights must be None, 'float16', .* got 8"),
        ({"weights": ["int8"]}, "weights must be None"),
        ({"weights": {"weight_ih_l7": "int8"}}, "has 'weight_ih_l7', the module has weight_ih_l0"),
        ({"weights": {"bias_ih_l0": "int8"}}, "has 'bias_ih_l0', the module has weight_ih_l0"),
        ({"weights": "int8", "activations": "int4"}, "activations must be None or 'int8'"),
        ({"activations": "int8"}, "with weights of int8, there are none"),
        ({"weights": "float16", "activations": "int8"}, "with weights of int8, there are none"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    module = fastrnn.LSTM(4, 6)
    with pytest.raises(ValueError, match=message):
        Streamer(module, **options)
    assert_steps(module, 1, "int8")


def test_modules_and_numbers_that_do_not_fit():
    module = fastrnn.LSTM(4, 6, num_layers=2)
    with pytest.raises(ValueError, match="a module in torch.float32, got torch.float64"):
        Streamer(copy.deepcopy(module).double(), weights="float16")
    with torch.no_grad():
        module.weight_hh_l1[2, 3] = -65520
    with pytest.raises(ValueError, match="weight_hh_l1 has NaN, .* beyond 65504, which .float16"):
        Streamer(module, weights="float16")
    assert_steps(module, 2, "bfloat16")
    with torch.no_grad():
        module.weight_hh_l1[2, 3] = 65504
    assert_steps(module, 2, "float16")
    with pytest.raises(ValueError, match="small weights are for LSTM, GRU and RNN, not for"):
        Streamer(fastrnn.Recurrent(fastrnn.zoo.LiGRU, 4, 6), weights="float16")
