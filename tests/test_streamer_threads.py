"""Threads and a `Streamer`: each may have one of its own; two at one stream get an error."""

import copy
import threading

import pytest
import torch
from conftest import KERNELS, assert_matches

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a Streamer is compiled code")


def in_threads(count, function):
    threads = [threading.Thread(target=function, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_streams_in_several_threads():
    module = fastrnn.LSTM(16, 32)
    x = torch.randn(200, 4, 1, 16)
    expected = torch.stack([module(x[:, k])[0] for k in range(4)])
    got = torch.empty_like(expected)

    def drive(k):
        stream = fastrnn.Streamer(module)
        for t in range(len(x)):
            got[k, t] = stream(x[t, k])

    in_threads(4, drive)
    assert_matches(got, expected)


def counter(**options):
    """A stream whose state is the number of its steps."""
    module = fastrnn.RNN(1, 128, nonlinearity="relu", bias=False)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1)
        module.weight_hh_l0.copy_(torch.eye(128))
    return fastrnn.Streamer(module, **options)


@pytest.mark.parametrize("options", [{}, {"weights": "bfloat16"}], ids=str)
def test_two_threads_at_one_stream(options):
    """A step counts or raises, whoever comes between; the stream serves on."""
    stream, x = counter(**options), torch.ones(400, 1, 1)
    done, begun = [0, 0], threading.Barrier(2)

    def drive(k):
        begun.wait()
        for _ in range(100):
            try:
                stream(x[0]) if k else stream.steps(x)
                done[k] += 1 if k else len(x)
            except RuntimeError as error:
                assert "another thread is using this stream" in str(error)

    in_threads(2, drive)
    assert any(done)
    assert torch.equal(stream.state, torch.full((1, 1, 128), float(sum(done))))


def test_whatever_another_thread_asks_meanwhile():
    """It raises and changes nothing, and works when the thread is done, also after an error."""
    cell = fastrnn.Cell(
        lambda g, s, p: torch.tanh(g.a + s.h * p.dt), gates="a", states="h", inputs="dt"
    )
    stream = fastrnn.Streamer(fastrnn.Recurrent(cell, 3, 5))
    plain = fastrnn.Streamer(fastrnn.LSTM(3, 5))
    x, inputs, state = torch.randn(1, 3), {"dt": 0.5}, torch.randn(1, 1, 5)
    pair = state, state
    calls = [
        (stream, lambda: stream(x, inputs)),
        (stream, lambda: stream(x.numpy(), inputs)),
        (stream, lambda: stream.load_state(state)),
        (plain, lambda: plain(x)),
        (plain, lambda: plain(x.numpy())),
        (plain, lambda: plain.steps(x[None])),
        (plain, lambda: plain.load_state(pair)),
        *((each, each.reset) for each in (stream, plain)),
        *((each, each.refresh) for each in (stream, plain)),
        *((each, lambda each=each: each.state) for each in (stream, plain)),
        *((each, lambda each=each: copy.copy(each)) for each in (stream, plain)),
    ]
    stream.load_state(state)
    plain.load_state(pair)
    for each, call in calls:
        held, over = threading.Event(), threading.Event()

        def hold(_, each=each, held=held, over=over):
            try:
                with each._stack:
                    held.set()
                    over.wait(60)
                    raise ValueError
            except ValueError:
                pass

        thread = threading.Thread(target=hold, args=(0,))
        thread.start()
        held.wait(60)
        planes = [plane.clone() for plane in each._inputs.planes.values()]
        before = each._h.clone(), each._output.clone(), *planes
        with pytest.raises(RuntimeError, match="another thread is using this stream"):
            call()
        after = each._h, each._output, *each._inputs.planes.values()
        assert all(map(torch.equal, before, after))
        over.set()
        thread.join()
        call()


def test_weights_that_another_thread_still_has():
    """`refresh` replaces the layers: who has the old ones in hand must not write to the state."""
    stream, x = counter(), torch.ones(1, 1)
    old = stream._stack
    stream.refresh()
    refused = []

    def drive(_):
        try:
            old.step(x.data_ptr(), stream._address)
        except RuntimeError as error:
            refused.append(str(error))

    in_threads(1, drive)
    assert refused and stream.state.sum() == 0 and stream(x)[0, 0] == 1
