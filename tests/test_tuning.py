"""`fastrnn.tune` with a fake GPU and a clock of the tests."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tuned_gpu
from tuned_gpu import (
    GPU,
    KERNELS,
    KIND,
    MODES,
    Clock,
    FakeGpu,
    another_process,
    asked,
    of_small_batches,
)

import fastrnn
from fastrnn import __main__, diagnosis, tuning
from fastrnn.dispatch import choice, cuda, cudnn, gpu, race, selftest, triton, tuned
from fastrnn.tuning import measure, report, shapes

machine = tuned_gpu.machine  # fixtures
a100 = tuned_gpu.a100


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
            seen(torch.rand(3, 0, 3))  # which has nothing to measure
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
