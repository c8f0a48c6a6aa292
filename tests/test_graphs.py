"""Chains of launches that are recorded and replayed, with stand-ins for a GPU, in many threads."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections import Counter, OrderedDict
from types import SimpleNamespace

import pytest
import torch

from fastrnn.dispatch.gpu import graphs


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(graphs, "_graphs", OrderedDict())
    monkeypatch.setattr(graphs, "_seen", OrderedDict())
    monkeypatch.setattr(graphs, "_recorders", {})


def test_graphs_replay_what_repeats():
    done = []

    def record(run):
        done.append("record")
        return lambda: done.append("replay")

    for _ in range(3):
        graphs.repeat("a", lambda: done.append("run"), record)
    assert done == ["run", "record", "replay", "replay"]
    for k in range(graphs.LIMIT):
        twice(k)
        graphs.repeat("a", lambda: done.append("run"), record)
    assert done[4:] == ["replay"] * graphs.LIMIT  # used since, so not the oldest
    assert 0 not in graphs._graphs and len(graphs._graphs) == graphs.LIMIT
    for k in range(graphs.LIMIT):
        twice(("other", k))
    graphs.repeat("a", lambda: done.append("run"), record)
    assert done[4 + graphs.LIMIT :] == ["run"] and len(graphs._graphs) == graphs.LIMIT


def twice(chain) -> None:
    """As often as gets a chain its graph."""
    for _ in range(2):
        graphs.repeat(chain, lambda: None, lambda run: run)


@pytest.mark.parametrize("more", [1, 40, 500])
def test_more_chains_than_graphs_take_turns(more):
    """As many are replayed as there are graphs; the others run as they are."""
    counts = Counter()

    def record(run):
        counts["recorded"] += 1
        return lambda: counts.update(replayed=1)

    for _ in range(10):
        for k in range(graphs.LIMIT + more):
            graphs.repeat(k, lambda: counts.update(ran=1), record)
    assert counts["recorded"] == graphs.LIMIT
    assert counts["replayed"] == 9 * graphs.LIMIT
    assert counts["ran"] == 10 * (graphs.LIMIT + more) - counts["replayed"]


def test_graphs_that_are_not_used_give_way():
    """To chains that repeat, and not to those that come once."""
    for k in range(graphs.LIMIT):
        twice(k)
    for k in range(2 * graphs.SEEN):
        graphs.repeat(("once", k), lambda: None, None)
    assert set(graphs._graphs) == set(range(graphs.LIMIT)) and len(graphs._seen) == graphs.SEEN
    for _ in range(2):
        for k in range(graphs.LIMIT):
            graphs.repeat(("new", k), lambda: None, lambda run: run)
    assert set(graphs._graphs) == {("new", k) for k in range(graphs.LIMIT)}


def test_graphs_hold_no_more_launches_than_they_may():
    """Long ones drive out those that were not used since; one alone may not be too long."""
    done = []

    def repeat(chain, launches):
        def record(run):
            done.append(("record", chain))
            return lambda: done.append(("replay", chain))

        graphs.repeat(chain, lambda: done.append(("run", chain)), record, launches)

    for _ in range(4):
        repeat("endless", graphs.LONGEST + 1)
    assert done == [("run", "endless")] * 4 and not graphs._graphs
    fitting = graphs.HELD // graphs.LONGEST
    for _ in range(2):
        for k in range(fitting):
            repeat(k, graphs.LONGEST)
    assert list(graphs._graphs) == list(range(fitting))
    for _ in range(3):  # in turns: each came since the other came last
        for k in range(fitting + 1):
            repeat(k, graphs.LONGEST)
    assert list(graphs._graphs) == list(range(fitting))
    for _ in range(2):
        repeat("other", 2)
    assert list(graphs._graphs) == [*range(1, fitting), "other"]
    for _ in range(2):
        repeat("long", graphs.LONGEST)
    assert list(graphs._graphs) == [*range(2, fitting), "other", "long"]
    assert sum(each.launches for each in graphs._graphs.values()) <= graphs.HELD


def test_what_cannot_be_recorded_drives_out_no_launches():
    def fail(run):
        raise RuntimeError("capture")

    for k in range(graphs.HELD // graphs.LONGEST):
        for _ in range(2):
            graphs.repeat(k, lambda: None, lambda run: run, graphs.LONGEST)
    before = list(graphs._graphs)
    for _ in range(2):
        graphs.repeat("failing", lambda: None, fail, graphs.LONGEST)
    assert list(graphs._graphs) == [*before, "failing"]


class Chain:
    """A key that lets other threads run while it is hashed: what happens in between is seen."""

    def __init__(self, k):
        self.k = k

    def __eq__(self, other):
        return self.k == other.k

    def __hash__(self):
        time.sleep(0)
        return self.k


@pytest.mark.parametrize("key", [Chain, lambda k: ("chain", "lstm", k)])
def test_threads_with_more_chains_than_are_remembered(key):
    calls, errors, recording = Counter(), [], []
    lock = threading.Lock()

    def work(seed):
        draw = random.Random(seed)
        try:
            for _ in range(1000):
                k = draw.randrange(graphs.LIMIT + 16)

                def run(k=k):
                    with lock:
                        calls[k] += 1

                def record(run):
                    recording.append(seed)
                    assert len(recording) == 1  # one stream, one capture
                    time.sleep(0)
                    recording.remove(seed)
                    return run

                graphs.repeat(key(k), run, record)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors
    assert sum(calls.values()) == 6000  # each call ran once, recorded or not
    assert len(graphs._graphs) == graphs.LIMIT


def test_threads_record_a_chain_once():
    recorded, start = [], threading.Barrier(4)
    graphs.repeat("a", lambda: None, None)

    def record(run):
        recorded.append(run)
        time.sleep(0.05)
        return run

    def work():
        start.wait()
        graphs.repeat("a", lambda: None, record)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorded) == 1


def test_a_graph_that_is_replayed_is_held_while_others_come():
    """Its chain is forgotten meanwhile; when it is destroyed, no lock is held."""
    seen = []

    class Graph:
        def __call__(self):
            for k in range(graphs.LIMIT):
                twice(k)
            assert "a" not in graphs._graphs
            seen.append("replayed")

        def __del__(self):
            seen.append("destroyed")
            graphs.repeat("from the destructor", lambda: None, None)

    graphs.repeat("a", lambda: None, None)
    graphs.repeat("a", lambda: None, lambda run: Graph())
    assert seen == ["replayed", "destroyed"]


def test_a_chain_that_cannot_be_recorded_runs_as_it_is():
    tried, done = [], []

    def fail(run):
        tried.append(run)
        raise RuntimeError("capture")

    for _ in range(4):
        graphs.repeat("a", lambda: done.append(1), fail)
    assert (len(tried), len(done)) == (1, 4)

    def broken():
        raise RuntimeError("launch")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="launch"):
            graphs.repeat("b", broken, fail)


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
