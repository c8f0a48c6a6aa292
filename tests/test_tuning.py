"""`fastrnn.tune` with a fake GPU and a clock of the tests; its calls also for real, on the CPU."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_matches

import fastrnn
from fastrnn import __main__, diagnosis, dispatch, tuning
from fastrnn.call import Call
from fastrnn.dispatch import (
    choice,
    cuda,
    cudnn,
    gpu,
    kept,
    race,
    reference,
    selftest,
    triton,
    tuned,
)
from fastrnn.dispatch.choice import Question
from fastrnn.dispatch.tuned import Lattice
from fastrnn.table import weight_names
from fastrnn.tuning import measure, report, shapes
from fastrnn.tuning.shapes import Kind

GPU = torch.device("cuda", 0)
KERNELS = SimpleNamespace(NAME="triton")
MODES = ("inference", "inference graph", "training", "training graph")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """An own file of a GPU without a name."""
    state = SimpleNamespace(name="A100")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "machine", lambda device: state.name)
    another_process(monkeypatch)
    return state


def another_process(monkeypatch) -> None:
    monkeypatch.setattr(tuned, "FILE", kept.File("tuned.json"))
    monkeypatch.setattr(tuned, "_tables", {})


def lattice(ours: dict, packed: bool = False, inputs: int = 0, captured=None) -> Lattice:
    """Of a GRU in float16, with the points and whether ours are faster there."""
    axes = [tuple(sorted({point[k] for point in ours})) for k in range(3)]
    times = {}
    for point, wins in ours.items():
        times[point] = dict.fromkeys(tuned.MODES, (1.0, 2.0 if wins else 0.5))
        graphs = wins if captured is None else captured
        times[point] |= {f"{m} graph": (1.0, 2.0 if graphs else 0.5) for m in tuned.MODES}
    return Lattice("triton", "gru", "float16", packed, 1, 1, inputs, *axes, times)


def asked(T: int, N: int, H: int, **fields) -> Question:
    plain = Question("triton", 8, "gru", "float16", False, 1, T, N, H, False, 1, H)
    return plain._replace(**fields)


# The table.


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
     {"times": {}, "steps": [1], "batch": [1], "hidden": [1], "colour": "red"}],
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


def test_a_damaged_file_is_ignored_with_one_warning(monkeypatch):
    tuned.FILE.path.parent.mkdir()
    tuned.FILE.path.write_text('{"format": 1, "entr')
    with pytest.warns(UserWarning, match="fastrnn ignores .*tuned.json"):
        assert tuned.lattices(GPU) == []
    tuned.keep(GPU, lattice({(10, 1, 128): True}))
    another_process(monkeypatch)
    assert tuned.faster(GPU, asked(10, 1, 128)) is True


# What "auto" does.


@pytest.fixture
def a100(monkeypatch):
    """CPU tensors are taken for those of a GPU that nobody has tried, with the Triton kernels."""
    state = SimpleNamespace(reason=None, tests=0)

    def refused(*_):
        state.tests += 1
        return state.reason

    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(cuda, "_missing", "not compiled")
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    monkeypatch.setattr(selftest, "refused", refused)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return state


def call_of(T: int = 10, N: int = 1, H: int = 128, layers: int = 1, **fields) -> Call:
    x, h0 = (torch.empty(size, dtype=torch.float16) for size in ((T, N, H), (layers, N, H)))
    return Call(x, None, h0, None, [], "gru", weight_names(True, False), **fields)


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


# What is measured.


def test_the_grid():
    kinds = shapes.grid()
    assert {(kind.cell, kind.dtype) for kind in kinds} == {
        (cell, dtype) for cell in ("lstm", "gru") for dtype in shapes.DTYPES
    }
    for kind in kinds:
        assert len(list(kind.points())) == math.prod(map(len, kind[7:]))
        assert kind.question("cuda", 8, (16, 1, 128))[:2] == ("cuda", 8)


def test_spread():
    assert shapes.spread([5]) == (5,) and shapes.spread([3, 5, 3]) == (3, 5)
    assert shapes.spread(range(1, 101)) == (1, 10, 100)
    assert shapes.spread([1, 2, 99, 100]) == (1, 2, 100)


def test_a_model_as_it_runs(a100):
    """Each kind of its layers, with the lengths and batches at the ends and between."""
    device = torch.device("cpu")
    seen = fastrnn.GRU(3, 8, bidirectional=True)
    deep = fastrnn.LSTM(8, 16, num_layers=2, batch_first=True).double()
    projected = fastrnn.LSTM(3, 8, proj_size=2)

    def run():
        with torch.no_grad():
            for T in (5, 9, 7, 100, 3):
                seen(torch.rand(T, 2, 3))
            seen(torch.rand(3, 4, 3))
            packed = [torch.rand(T, 3) for T in (4, 2)]
            seen(torch.nn.utils.rnn.pack_sequence(packed))
            projected(torch.rand(2, 2, 3))  # which no table speaks of
            seen(torch.rand(3, 4, 3), lengths=[1, 2, 3, 3])  # nor of features
            deep(torch.rand(2, 5, 8).double())  # a dtype that our kernels do not take

    found = {kind[:7]: kind[7:] for kind in shapes.met(run, device)}
    gru = ("gru", torch.float32, gpu.precision(torch.float32))
    assert found == {
        (*gru, False, 1, 2, 3): ((3, 9, 100), (2, 4), (8,)),
        (*gru, True, 1, 2, 3): ((3,), (2,), (8,)),
    }
    calls = []
    with race.noting(lambda *_: calls.append(1)), pytest.raises(ZeroDivisionError):
        shapes.met(lambda: 1 / 0, device)
    run()
    assert not calls and race._noted is None
    with pytest.raises(RuntimeError, match="no layer .* ran on cuda:0"):
        shapes.met(run, GPU)


class Clock:
    """Time as the calls of a fake take it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeGpu(measure.Gpu):
    """A GPU on which calls take the seconds that a function gives."""

    major = 8

    def __init__(self, seconds):
        self.device, self._clock, self._seconds = GPU, Clock(), seconds
        self.points, self.waiting, self.why = [], 0.0, None

    def obstacle(self, kernels, kind):
        return self.why

    def contenders(self, kernels, kind, point):
        self.points.append(point)
        for mode in MODES:
            pair = self._seconds(kind, point, mode)

            def run(seconds):
                self.waiting += seconds

            yield mode, tuple((lambda s=s: run(s)) for s in pair)

    def synchronize(self):  # only then is the work done
        self._clock.now += self.waiting
        self.waiting = 0.0


KIND = Kind("gru", torch.float16, "float16", False, 1, 1, 0, (10, 20), (1, 8), (128,))


def of_small_batches(kind, point, mode) -> tuple[float, float]:
    return (1e-3, 2e-3) if point[1] == 1 else (2e-3, 1e-3)


def test_times_are_per_call(monkeypatch):
    fake = FakeGpu(lambda *_: (1e-5, 2e-2))
    found = fake.measure(KERNELS, KIND, (10, 1, 128))
    assert found == {mode: pytest.approx((1e-2, 20)) for mode in MODES}
    # each has its turns: one that is disturbed does not count
    slow = iter([1.0] + [0.0] * 10**6)
    clock = Clock()

    def run():
        clock.now += 1e-3 + (next(slow) if clock.now > 0.02 else 0)

    assert measure.alternate((run, run), clock, lambda: None) == pytest.approx((1, 1))


def test_what_is_measured_is_taken_and_said(monkeypatch):
    fake = FakeGpu(of_small_batches)
    found = tuning.measured([KIND], KERNELS, fake)
    assert sorted(fake.points) == sorted(KIND.points())
    assert (found.measured, found.ours) == (4, 2)
    assert [(c.point, c.ours) for c in found.changes] == [
        ((10, 1, 128), True),
        ((20, 1, 128), True),
    ]
    assert [c.factor("inference") for c in found.changes] == [pytest.approx(2.0)] * 2
    text = str(found).splitlines()
    assert text[0] == (
        "4 calls measured; auto takes triton in 2 of them and cudnn in the others; 2 changed"
    )
    assert text[2].split() == [*"layer dtype T N H auto takes inference".split(),
                               *"inference graph training training graph".split()]  # fmt: skip
    assert text[3].split() == ["gru", "float16", "10", "1", "128", "triton", *["2.00"] * 4]
    assert json.loads(json.dumps(found.facts()))["changes"][1]["T"] == "20"
    another_process(monkeypatch)
    assert tuned.faster(GPU, asked(15, 1, 128)) is True
    assert tuned.faster(GPU, asked(15, 4, 128)) is False
    # once more, on a machine that has become another one
    again = tuning.measured([KIND], KERNELS, FakeGpu(lambda *_: (2e-3, 1e-3)))
    assert (again.measured, again.ours, len(again.changes)) == (4, 0, 2)
    assert "cudnn" in str(again).splitlines()[-1] and again.changes[0].factor("training") == 2
    same = tuning.measured([KIND], KERNELS, FakeGpu(lambda *_: (2e-3, 1e-3)))
    assert not same.changes and str(same).count("\n") == 0


def test_what_cannot_be_measured(monkeypatch):
    fake = FakeGpu(of_small_batches)
    fake.why = "the self-test failed"
    found = tuning.measured([KIND], KERNELS, fake)
    assert not fake.points and found.measured == 0
    assert "4 calls left as they are: the self-test failed" in str(found)
    fake.why = None

    def full(kind, point, mode):
        if point == (20, 8, 128):
            raise torch.OutOfMemoryError
        return of_small_batches(kind, point, mode)

    found = tuning.measured([KIND], KERNELS, FakeGpu(full))
    assert found.measured == 3 and "1 calls left as they are: they do not fit" in str(found)
    assert tuned.faster(GPU, asked(20, 8, 128)) is None
    assert tuned.faster(GPU, asked(10, 8, 128)) is False


def test_an_interrupt_keeps_what_is_done():
    def interrupted(kind, point, mode):
        if point == (20, 1, 128):
            raise KeyboardInterrupt
        return of_small_batches(kind, point, mode)

    with pytest.raises(KeyboardInterrupt):
        tuning.measured([KIND], KERNELS, FakeGpu(interrupted))
    assert tuned.faster(GPU, asked(10, 1, 128)) is True
    assert tuned.faster(GPU, asked(20, 1, 128)) is None


def test_a_folder_that_cannot_be_written_is_said_before(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "file"))
    fake = FakeGpu(of_small_batches)
    with pytest.raises(OSError):
        tuning.measured([KIND], KERNELS, fake)
    assert not fake.points
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "folder"))
    assert tuning.measured([KIND], KERNELS, fake).measured == 4


TUNES = """
import sys, torch
from fastrnn.dispatch import kept, tuned
from fastrnn.dispatch.tuned import Lattice
kept.machine = lambda device: "A100"
for k in range(20):
    point = (k + 1, int(sys.argv[1]), 128)
    times = {point: {mode: (1.0, 2.0) for mode in tuned.MODES}}
    axes = [(n,) for n in point]
    kind = ("triton", "gru", "float16", False, 1, 1, 0)
    tuned.keep(torch.device("cuda", 0), Lattice(*kind, *axes, times))
"""


def test_two_processes_tune_at_once():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    start = [sys.executable, "-W", "ignore", "-c", TUNES]
    both = [subprocess.Popen([*start, str(n)], env=environment) for n in (1, 2)]
    assert [process.wait(300) for process in both] == [0, 0]
    for T in range(1, 21):
        for N in (1, 2):
            assert tuned.faster(GPU, asked(T, N, 128)) is True


def test_progress(monkeypatch, capsys):
    assert list(report.progress([1, 2], quiet=True)) == [1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(report.progress([1, 2], quiet=False)) == [1, 2]  # tqdm, or lines without it
    assert report.TITLE in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(report.progress(range(45), quiet=False)) == list(range(45))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{report.TITLE} 2 of 45" and lines[-1] == f"{report.TITLE} 45 of 45"
    assert len(lines) <= report.LINES + 3


# The calls themselves, on the CPU.


@pytest.mark.parametrize(
    "kind",
    [
        KIND._replace(dtype=torch.float32, inputs=5),
        KIND._replace(dtype=torch.float32, cell="lstm", layers=2, directions=2),
        KIND._replace(dtype=torch.float32, cell="rnn_relu", packed=True),
    ],
)
def test_both_make_the_same_call(kind, monkeypatch):
    monkeypatch.setattr(cudnn, "takes_whole", lambda what: True)
    what = measure.layers_of(kind, (4, 3, 8), torch.device("cpu"))
    assert what.call.mean_steps() == 4 and what.call.h0.shape[1:] == (3, 8)
    for call in (measure.inference, measure.training):
        found = call(triton if triton.INTERPRETED else reference, what)
        wanted = call(cudnn, what)
        assert len(found) == len(wanted) >= 2
        assert len(found) == (
            2 + len(what.call.weights) if call is measure.training else len(found)
        )
        for a, b in zip(found, wanted, strict=True):
            assert_matches(a, b.detach().double())
    assert not measure.inference(reference, what)[0].requires_grad
    alone = measure.layers_of(kind, (4, 1, 8), torch.device("cpu"))
    assert alone.call.mean_steps() == 4


@pytest.mark.parametrize("packed", [False, True])
def test_calls_by_themselves_and_from_a_graph(packed, monkeypatch):
    """Of packed input, which cuDNN cannot have in a graph, by themselves alone."""
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    machine = measure.Gpu(torch.device("cpu"))
    ran, recorded = [], []
    for mode in tuned.MODES:
        monkeypatch.setattr(measure, mode, lambda backend, what, m=mode: ran.append((m, backend)))

    def replayed(run):
        recorded.append(run)
        return lambda: (ran.append("graph"), run())

    monkeypatch.setattr(machine, "replayed", replayed)
    kind = KIND._replace(dtype=torch.float32, packed=packed)
    for _, pair in (found := list(machine.contenders(KERNELS, kind, (4, 3, 8)))):
        for run in pair:
            run()
    names = tuned.MODES if packed else MODES
    assert [name for name, _ in found] == list(names)
    wanted = []
    for name in names:
        for backend in (KERNELS, cudnn):
            wanted += ["graph"] * name.endswith(" graph") + [(name.split()[0], backend)]
    assert ran == wanted and len(recorded) == (0 if packed else 4)


def test_a_graph_is_recorded_on_a_stream_of_its_own(monkeypatch):
    """Which waits for what the call needs, and for which the replays wait."""
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            events.append(f"on {self.name}")

        def __exit__(self, *_):
            events.append(f"off {self.name}")

    class Graph:
        def replay(self):
            events.append("replay")

    def graph(_, stream):
        return Stream(f"graph of {stream.name}")

    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"own of {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    replay = measure.Gpu(GPU).replayed(lambda: events.append("run"))
    replay()
    own = "own of cuda:0"
    assert events == [
        f"{own} waits for current", f"on {own}", *["run"] * measure.WARM, f"off {own}",
        f"current waits for {own}", f"on graph of {own}", "run", f"off graph of {own}", "replay",
    ]  # fmt: skip


def test_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    machine = measure.Gpu(torch.device("cpu"))
    monkeypatch.setattr(cudnn, "obstacle", lambda call: None)
    kernels = SimpleNamespace(NAME="triton", obstacle=lambda call: None)
    monkeypatch.setattr(selftest, "refused", lambda *_: "failed")
    assert machine.obstacle(kernels, KIND) == "failed"
    monkeypatch.setattr(choice, "TRIED", {("triton", 8)})
    assert machine.obstacle(kernels, KIND) is None
    kernels.obstacle = lambda call: f"{call.input.dtype}"
    assert machine.obstacle(kernels, KIND) == "torch.float16"


def test_tune_and_the_command(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no NVIDIA GPU"):
        fastrnn.tune()
    assert __main__.main(["tune"]) == 1
    assert "fastrnn cannot tune: there is no NVIDIA GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for each in (cuda, triton):
        monkeypatch.setattr(each, "status", lambda: "broken")
    with pytest.raises(RuntimeError, match="nothing to tune: cuda: broken; triton: broken"):
        fastrnn.tune()
    monkeypatch.setattr(triton, "status", lambda: None)
    with pytest.raises(RuntimeError, match="for GPUs, got the device cpu"):
        fastrnn.tune(device="cpu")
    seen, current = [], []

    def machine(device):
        seen.append(device)
        assert current == [device]
        return FakeGpu(of_small_batches)

    @contextlib.contextmanager
    def on(device):
        current.append(device)
        yield
        current.remove(device)

    monkeypatch.setattr(gpu, "current", on)
    monkeypatch.setattr(tuning, "Gpu", machine)
    monkeypatch.setattr(tuning, "grid", lambda: [KIND])
    monkeypatch.setattr(tuning, "met", lambda run, device: [run()])
    assert fastrnn.tune(quiet=True).measured == 4
    assert fastrnn.tune(lambda: KIND._replace(steps=(7,)), device="cuda:2", quiet=True).ours == 1
    assert fastrnn.tune(device="cuda:3", quiet=True).changes == []
    assert seen == [torch.device("cuda", index) for index in (1, 2, 3)]
    assert __main__.main(["tune"]) == 0
    assert "4 calls measured; auto takes triton in 2" in capsys.readouterr().out
    assert __main__.main(["tune", "--json", "--device", "cuda:1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["measured"] == 4 and not err
    assert diagnosis._tuned() == 6


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
