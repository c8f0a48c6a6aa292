"""What `fastrnn.tune` measured: what it says of other calls, and what "auto" makes of it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import tuned_gpu
from tuned_gpu import GPU, another_process, asked, call_of, lattice

import fastrnn
from fastrnn import dispatch
from fastrnn.dispatch import choice, cudnn, kept, race, reference, triton, tuned
from fastrnn.dispatch.tuned import Lattice

machine = tuned_gpu.machine  # fixtures
a100 = tuned_gpu.a100


def test_between_points_that_all_won():
    known = lattice({(10, N, H): N < 64 for N in (1, 16, 64) for H in (128, 256)})
    assert known.faster(asked(10, 1, 128)) is known.faster(asked(10, 16, 256)) is True
    assert known.faster(asked(10, 7, 200)) is True
    assert known.faster(asked(10, 64, 128)) is known.faster(asked(10, 17, 128)) is False
    for outside in ((9, 1, 128), (11, 1, 128), (10, 65, 128), (10, 1, 127), (10, 1, 257)):
        assert known.faster(asked(*outside)) is None
    hole = known._replace(times={p: t for p, t in known.times.items() if p != (10, 1, 128)})
    assert hole.faster(asked(10, 7, 200)) is None and hole.faster(asked(10, 16, 128)) is True


def test_every_mode_counts():
    times = {"inference": (1.0, 2.0), "training": (1.0, 1.02)}
    assert not tuned.wins(times, False)  # too near for times that scatter
    times["training"] = (1.0, 1.1)
    assert tuned.wins(times, False) and not tuned.wins(times, True)
    times |= {"inference graph": (1.0, 2.0), "training graph": (2.0, 1.0)}
    assert not tuned.wins(times, True)
    known = lattice({(10, 1, 128): True}, captured=False)
    assert known.faster(asked(10, 1, 128)) is True
    assert known.faster(asked(10, 1, 128, captured=True)) is False


def test_it_wins_over_what_is_known(monkeypatch):
    point = (10, 8, 256)
    row = choice.Row("triton", 8, frozenset({"gru"}), frozenset({"float16"}), False, (1, 1),
                     (1, 100), (1, 100), (1, 1000), True)  # fmt: skip
    for rows, wins in (((), True), ((row,), False)):
        another_process(monkeypatch)
        monkeypatch.setattr(choice, "FASTER", rows)
        assert race.expected(GPU, asked(*point)) is not wins
        tuned.keep(GPU, lattice({point: wins}))
        assert race.expected(GPU, asked(*point)) is wins
        assert race.expected(GPU, asked(10, 9, 256)) is not wins  # not measured
        for other in (
            {"cell": "lstm"}, {"precision": "tf32"}, {"packed": True}, {"layers": 2},
            {"directions": 2}, {"backend": "cuda"},
        ):  # fmt: skip
            assert tuned.faster(GPU, asked(*point, **other)) is None
    # of AMD's nothing is kept
    assert race.expected(GPU, asked(*point, major=0)) is False


def test_the_most_specific_counts():
    tuned.keep(GPU, lattice({(10, 1, 128): True, (10, 1, 256): True}))
    tuned.keep(GPU, lattice({(10, 1, 128): False}, inputs=7))
    assert tuned.faster(GPU, asked(10, 1, 128, inputs=7)) is False
    assert tuned.faster(GPU, asked(10, 1, 128, inputs=8)) is True
    assert tuned.faster(GPU, asked(10, 1, 200, inputs=7)) is True


def test_another_process_reads_it(monkeypatch, machine):
    tuned.keep(GPU, lattice({(10, 1, 128): True}))
    another_process(monkeypatch)
    assert tuned.faster(GPU, asked(10, 1, 128)) is True
    assert tuned.lattices(GPU) == [lattice({(10, 1, 128): True})]
    another_process(monkeypatch)
    machine.name = "A100, another driver"
    assert tuned.faster(GPU, asked(10, 1, 128)) is None
    held = json.loads(tuned.FILE.path.read_text())
    assert held["format"] == kept.FORMAT and len(held["entries"]) == 1


def test_a_later_measurement_of_the_same_counts(monkeypatch):
    both = lattice({(10, 1, 128): True, (10, 1, 256): True})
    tuned.keep(GPU, both)
    times = {(10, 1, 128): dict.fromkeys(tuned.MODES, (2.0, 1.0))}
    tuned.keep(GPU, both._replace(times=times))
    another_process(monkeypatch)
    assert tuned.faster(GPU, asked(10, 1, 128)) is False
    assert tuned.faster(GPU, asked(10, 1, 256)) is True  # from before


@pytest.mark.parametrize(
    "entry",
    [None, 7, [], {}, {"times": 7}, {"times": {"1 2": {}}}, {"times": {}, "steps": ["a"]},
     {"times": {}, "steps": [1], "batch": [1], "hidden": [1], "colour": "red"},
     {"times": {}, "steps": [float("inf")], "batch": [1], "hidden": [1]}],
)  # fmt: skip
def test_a_damaged_entry_is_ignored_with_one_warning(entry, monkeypatch):
    good = lattice({(10, 1, 128): True})
    tuned.keep(GPU, good)
    tuned.FILE.change(lambda entries: entries.update({"something: A100": entry}))
    another_process(monkeypatch)
    with pytest.warns(UserWarning, match="ignores an entry of .*tuned.json"):
        assert tuned.lattices(GPU) == [good]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.faster(GPU, asked(10, 1, 128)) is True


@pytest.mark.parametrize("times", [7, {"1 2": {}}, {"10 1 128": {"inference": ["a", "b"]}}])
def test_a_later_measurement_mends_a_damaged_entry(times, monkeypatch):
    good = lattice({(10, 1, 128): True})
    tuned.keep(GPU, good)
    (key,) = tuned.FILE.read()
    tuned.FILE.change(lambda entries: entries[key].update(times=times))
    tuned.keep(GPU, good)
    another_process(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.lattices(GPU) == [good]


def test_a_damaged_file_is_ignored_with_one_warning(monkeypatch):
    tuned.FILE.path.parent.mkdir()
    tuned.FILE.path.write_text('{"format": 1, "entr')
    with pytest.warns(UserWarning, match="fastrnn ignores .*tuned.json"):
        assert tuned.lattices(GPU) == []
    tuned.keep(GPU, lattice({(10, 1, 128): True}))
    another_process(monkeypatch)
    assert tuned.faster(GPU, asked(10, 1, 128)) is True


def test_a_thread_that_asks_while_another_keeps(monkeypatch):
    """It may get what was true before; nobody gets it after."""
    tuned.keep(GPU, lattice({(10, 1, 128): True}))
    right = Lattice.faster

    def slow(self, asked):
        answer = right(self, asked)
        monkeypatch.setattr(Lattice, "faster", right)
        tuned.keep(GPU, lattice({(10, 1, 128): False}))
        return answer

    monkeypatch.setattr(Lattice, "faster", slow)
    assert tuned.faster(GPU, asked(10, 1, 128)) is True
    assert tuned.faster(GPU, asked(10, 1, 128)) is False


def test_answers_are_not_remembered_without_end():
    tuned.keep(GPU, lattice({(10, 1, 128): True}))
    for N in range(1, 2 * tuned.LIMIT):
        assert tuned.faster(GPU, asked(10, N, 128)) is (True if N == 1 else None)
    assert len(tuned._table(GPU).answers) <= tuned.LIMIT
    assert tuned.faster(GPU, asked(10, 1, 128)) is True


def test_auto_goes_by_it(a100):
    device = torch.device("cpu")
    assert dispatch.choose(call_of()) is cudnn
    assert a100.tests == 0
    tuned.keep(device, lattice({(10, 1, 128): True, (20, 1, 128): False}))
    assert dispatch.choose(call_of()) is triton
    assert dispatch.choose(call_of(20)) is dispatch.choose(call_of(15)) is cudnn
    assert dispatch.choose(call_of(layers=2), 2) is cudnn
    a100.reason = "the self-test failed"
    assert dispatch.choose(call_of()) is cudnn
    with fastrnn.backend("reference"):
        assert dispatch.choose(call_of()) is reference
    assert dispatch.choose(call_of(21)) is cudnn


def test_compiled_graphs_take_no_measured_kernels_where_nobody_tried_them(a100, monkeypatch):
    tuned.keep(torch.device("cpu"), lattice({(10, 1, 128): True}))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert dispatch.choose(call_of()) is cudnn and a100.tests == 0
    monkeypatch.undo()
