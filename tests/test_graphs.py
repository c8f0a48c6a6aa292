"""Chains of launches that are recorded and replayed, with stand-ins for a GPU, in many threads."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter, OrderedDict

import pytest

from fastrnn.dispatch.gpu import graphs


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(graphs, "_graphs", OrderedDict())
    monkeypatch.setattr(graphs, "_seen", OrderedDict())
    monkeypatch.setattr(graphs, "_credit", graphs.PRICE * graphs.HELD)


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


def test_graphs_hold_no_more_launches_than_they_may(monkeypatch):
    """Long ones drive out those that were not used since; one alone may not be too long."""
    monkeypatch.setattr(graphs, "_afford", lambda launches: True)
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


def test_what_cannot_be_recorded_drives_out_no_launches(monkeypatch):
    monkeypatch.setattr(graphs, "_afford", lambda launches: True)

    def fail(run):
        raise RuntimeError("capture")

    for k in range(graphs.HELD // graphs.LONGEST):
        for _ in range(2):
            graphs.repeat(k, lambda: None, lambda run: run, graphs.LONGEST)
    before = list(graphs._graphs)
    for _ in range(2):
        graphs.repeat("failing", lambda: None, fail, graphs.LONGEST)
    assert list(graphs._graphs) == [*before, "failing"]


class Loop:
    """Calls of chains, of so many launches each; the launches that were run, recorded, replayed."""

    def __init__(self):
        self.counts = Counter()

    def call(self, chain, launches: int) -> None:
        def record(run):
            self.counts["recorded"] += launches
            return lambda: self.counts.update(replayed=launches)

        graphs.repeat(chain, lambda: self.counts.update(ran=launches), record, launches)


@pytest.mark.parametrize(("longest", "places"), [(400, 1), (400, 8), (900, 1)])
def test_sequences_of_ever_other_lengths_do_not_pay_for_graphs(longest, places):
    """Where chains seldom come again, as many lengths at several addresses do, recordings take no
    longer than replays save, beyond what is given at first."""
    draw, loop = random.Random(0), Loop()
    for _ in range(30_000):
        T = draw.randint(1, longest)
        loop.call((T, draw.randrange(places)), T)
    ran, recorded, replayed = (loop.counts[name] for name in ("ran", "recorded", "replayed"))
    given = graphs.PRICE * graphs.HELD
    assert recorded * graphs.PRICE <= given + replayed + ran / graphs.WAGE
    assert recorded < 0.1 * (ran + replayed)


def test_what_repeats_again_gets_its_graph_again():
    """After lengths that left no credit, and no graph that is of use."""
    draw, loop = random.Random(0), Loop()
    for k in range(6_000):
        T = draw.randint(500, 1000)
        for _ in range(2):  # recorded, and never seen again
            loop.call((T, k), T)
    assert graphs._credit < graphs.PRICE * 1000
    before = loop.counts.copy()
    for _ in range(200):
        loop.call("steady", 100)
    assert loop.counts["recorded"] == before["recorded"] + 100
    assert loop.counts["replayed"] >= 100 * 100


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
