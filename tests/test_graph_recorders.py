"""What records chains of launches, with stand-ins for a GPU's streams, graphs and generators."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from fastrnn.dispatch.gpu import graphs


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(graphs, "_graphs", OrderedDict())
    monkeypatch.setattr(graphs, "_seen", OrderedDict())
    monkeypatch.setattr(graphs, "_recorders", {})


class Stream:
    device_index = 0

    def __init__(self, handle):
        self.cuda_stream, self.waited = handle, []

    def wait_stream(self, other):
        self.waited.append(other)

    def __enter__(self):
        self.before, self.gpu.current = self.gpu.current, self

    def __exit__(self, *_):
        self.gpu.current = self.before


class Generator:
    """As torch's: another that shares its state stands for the state."""

    def __init__(self, state):
        self.state, self.seeded = state, False

    def graphsafe_get_state(self):
        return Generator(self.state)

    def graphsafe_set_state(self, other):
        self.state = other.state

    def seed(self):
        self.seeded = True


@pytest.fixture
def gpu(monkeypatch):
    """Streams and graphs of a GPU that is not there."""
    state = SimpleNamespace(current=Stream(7), own=[], graphs=[], pools=0)
    state.generator = Generator("the user's")
    Stream.gpu = state

    def create(handle, flags):
        assert flags == 1  # else work on the default stream would end the recording
        state.own.append(100 + len(state.own))
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = state.own[-1]
        return 0

    class Graph:
        def __init__(self):
            state.graphs.append(self)

        def capture_begin(self, pool, capture_error_mode):
            self.pool, self.stream, self.mode = pool, state.current.cuda_stream, capture_error_mode
            self.ended, self.numbers = False, state.generator.state
            if state.refuses:
                raise RuntimeError("capture")

        def capture_end(self):
            self.ended = True

        def replay(self):
            return self

    def pool():
        state.pools += 1
        return (0, state.pools)

    driver = SimpleNamespace(cuStreamCreate=create)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if "libcuda" in name else None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", pool)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: state.current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "default_generators", (state.generator,))
    monkeypatch.setattr(torch, "Generator", lambda device: Generator(device))
    state.driver, state.refuses = driver, False
    return state


def test_chains_of_a_stream_are_recorded_on_a_stream_for_them_alone(gpu, monkeypatch):
    ran = []
    replays = [graphs.record(lambda: ran.append(gpu.current.cuda_stream)) for _ in range(3)]
    assert ran == [100] * 3 and gpu.own == [100]
    assert [replay() for replay in replays] == gpu.graphs
    assert {(g.stream, g.pool, g.mode, g.ended) for g in gpu.graphs} == {
        (100, (0, 1), "thread_local", True)
    }
    # as long as chains may come, their memory is kept, though all graphs be forgotten
    (recorder,) = graphs._recorders.values()
    assert recorder._first is gpu.graphs[0]
    # another stream, whose graphs may run at the same time, shares nothing with it
    gpu.current = Stream(8)
    graphs.record(lambda: ran.append(gpu.current.cuda_stream))
    assert (ran[-1], gpu.graphs[-1].pool) == (101, (0, 2))

    def fail():
        raise ValueError

    with pytest.raises(ValueError):
        graphs.record(fail)
    assert gpu.graphs[-1].ended and gpu.current.cuda_stream == 8


def test_without_a_stream_of_its_own(gpu, monkeypatch):
    monkeypatch.setattr(gpu.driver, "cuStreamCreate", lambda *_: 2)
    with pytest.raises(RuntimeError, match="cuStreamCreate failed with error 2"):
        graphs.record(lambda: None)

    def missing(name):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(50))
    ran = []
    graphs.record(lambda: ran.append(gpu.current.cuda_stream))
    assert ran == [50]


@pytest.mark.parametrize("takes", [True, False])
def test_random_numbers_of_others_go_on_while_a_chain_is_recorded(gpu, monkeypatch, takes):
    """Torch before 2.13 marks the state of the default generator that is there as a capture
    begins."""
    monkeypatch.setattr(graphs, "_TAKES_GENERATORS", takes)
    seen = []
    graphs.record(lambda: seen.append(gpu.generator.state))
    assert seen == ["the user's"] == [gpu.generator.state]
    assert gpu.graphs[0].numbers == (torch.device("cuda", 0) if takes else "the user's")
    if takes:
        (recorder,) = graphs._recorders.values()
        assert recorder._numbers._own.seeded
    gpu.refuses = True
    with pytest.raises(RuntimeError, match="capture"):
        graphs.record(lambda: None)
    assert gpu.generator.state == "the user's"


@pytest.mark.parametrize(
    ("version", "takes"), [("2.11.0", True), ("2.12.1+cu130", True), ("2.13.0+cpu", False),
                           ("2.14.0a0+git1234", False), ("3.0.0", False)],
)  # fmt: skip
def test_which_torch_takes_the_default_generator(version, takes):
    assert graphs._takes_generators(version) is takes


def test_streams_have_no_end_of_recorders(gpu):
    """Those of further streams make no graphs, and run as they are."""
    ran = []
    for handle in range(graphs.STREAMS + 5):
        gpu.current = Stream(handle)
        for _ in range(3):
            graphs.repeat(("chain", handle), lambda handle=handle: ran.append(handle))
    assert len(graphs._recorders) == graphs.STREAMS == len(gpu.own)
    for handle in range(graphs.STREAMS):
        assert ran.count(handle) == 2  # as it is and in the recording, then it is replayed
    for handle in range(graphs.STREAMS, graphs.STREAMS + 5):
        assert ran.count(handle) == 3
