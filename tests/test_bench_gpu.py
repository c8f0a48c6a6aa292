"""`make gpu` where there is no GPU: which commands it runs, and what becomes of those that fail."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from bench_doubles import FACTS, Clock, row

from bench import choose, cuda, gpu, plans, predictions, results
from bench.contenders import OURS
from bench.gpu import Stage
from bench.measure import measure

ROOT = Path(__file__).parent.parent


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def test_a_failing_stage_keeps_no_other_from_running(tmp_path, capsys):
    stages = [
        Stage("one", 60, (python("print('first')"), python("import sys; sys.exit(3)"))),
        Stage("two", 60, (("no-such-command",),)),
        Stage("three", 60, (), skipped="there is nothing to do"),
        Stage("four", 60, (python("import os; print(os.environ['MARK'])"),), {"MARK": "last"}),
    ]
    assert gpu.run_all(stages, tmp_path) == 2
    text = (tmp_path / "summary.txt").read_text()
    assert "exit status 3" in text and "not started" in text and "last" in text
    assert "skipped: there is nothing to do" in text
    assert [line.split()[0] for line in text.splitlines() if line[0] != " "] == [
        "one", "two", "three", "four"
    ]  # fmt: skip
    assert "first" in (tmp_path / "one.log").read_text()
    assert "No such file" in (tmp_path / "two.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "four.log", "one.log", "summary.txt", "two.log"
    ]  # fmt: skip
    assert "last" in capsys.readouterr().out


@pytest.mark.parametrize("deaf", [False, True])
def test_a_stage_that_hangs_is_ended_with_its_children(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 2 if deaf else 30)  # which only a deaf one uses up
    script = (
        "import signal, subprocess, sys, time; print('begun', flush=True);"
        # and so do its children; a shell may have started all of this with the signal ignored
        f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if deaf else 'default_int_handler'});"
        + "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    begin = time.monotonic()
    log = tmp_path / "log"
    assert gpu.run(Stage("hangs", 3, (python(script), python(""))), log) == "out of time"
    assert time.monotonic() - begin < 60
    assert "begun" in log.read_text()
    assert ("KeyboardInterrupt" in log.read_text()) != deaf
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    if Path("/proc/self").exists():
        for _ in range(100):
            if not child.exists() or child.read_text().split()[2] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("its child lives on")


def test_the_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/sanitizer" if "/" in name else None)
    monkeypatch.setattr(gpu, "sanitizers", lambda tool: [(tool,)] * 4)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found = {stage.name: stage for stage in gpu.stages(tmp_path, False, None)}
    assert list(found) == ["facts", "build", "report", "tests", "sanitize", "bench"]
    assert sum(stage.seconds for stage in found.values()) < 480
    assert found["build"].environment["FASTRNN_BUILD"] == "cuda"
    assert not any(stage.skipped for stage in found.values())
    assert len(found["sanitize"].commands) == 4
    assert str(tmp_path) in found["bench"].commands[0]
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    found = {stage.name: stage for stage in gpu.stages(tmp_path, True, None)}
    assert found["build"].skipped == "SKIP_BUILD"
    assert found["sanitize"].skipped == "there is no compute-sanitizer"


@pytest.mark.parametrize(
    ("xdist", "wheel", "parallel"), [(1, 0, True), (0, 1, True), (0, 0, False)]
)
def test_without_plugins_of_pytest(xdist, wheel, parallel, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: xdist or None)
    if wheel:
        (tmp_path / "pytest_xdist-3-py3-none-any.whl").touch()
    found = {stage.name: stage for stage in gpu.stages(tmp_path, True, tmp_path)}
    assert ("-n" in found["tests"].commands[0]) == parallel
    assert "-n" not in gpu.tests(*gpu.SMALL)


def test_what_the_tests_import():
    """Nothing but pytest, torch and what stands beside them."""
    known = {"pytest", "torch", "fastrnn"} | set(sys.stdlib_module_names)
    paths = [ROOT / path for path in (*gpu.TESTS, "tests/conftest.py")]
    for path in paths:
        for line in path.read_text().splitlines():
            if not line.startswith(("import ", "from ")):
                continue
            top = line.split()[1].split(".")[0]
            beside = ROOT / "tests" / f"{top}.py"
            if beside.exists():
                paths += [beside] * (beside not in paths)
            else:
                assert top in known, (path, line)


def test_every_test_of_kernels_for_gpus_is_run():
    """By `make gpu`, and by `make emulated` those of the CUDA kernels."""

    def importers(module: str) -> set[str]:
        files = (ROOT / "tests").glob("test_*.py")
        return {f"tests/{f.name}" for f in files if f"\nfrom {module} import" in f.read_text()}

    assert importers("gpu_modules") | importers("cuda_kernels") <= set(gpu.TESTS)
    (emulated,) = re.findall("^CUDA_TESTS := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert importers("cuda_kernels") == set(emulated.split())


@pytest.mark.parametrize("option", ["--kernel-regex", "--filter", ""])
def test_sanitizers(option, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '  {option}  which kernels'\n")
    tool.chmod(0o755)
    commands = gpu.sanitizers(str(tool))
    assert [command[2] for command in commands] == list(gpu.TOOLS)
    for command in commands:
        filtered = bool(option) and command[2] != "initcheck"
        assert (command[command.index("all") + 1] == option) == filtered
        assert command[-3:] == gpu.SMALL


def test_the_command(tmp_path, monkeypatch, capsys):
    seen = []

    def stages(out, skip_build, wheels):
        seen.append((out, skip_build, wheels))
        script = "import extra; print('found', extra.__file__)" if wheels else "print('none')"
        return [
            Stage("one", 60, (python(script),)),
            Stage("two", 60, (python("raise SystemExit(1)"),)),
        ]

    monkeypatch.setattr(gpu, "stages", stages)
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "extra-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("extra.py", "")
        wheel.writestr(
            "extra-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: extra\nVersion: 1\n"
        )
        wheel.writestr("extra-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("extra-1.dist-info/RECORD", "")
    monkeypatch.setenv("PYTHONPATH", "")
    assert gpu.main(["--out", str(out), "--skip-build", "--wheels", str(wheels)]) == 1
    assert seen == [(out, True, wheels)]
    assert "found" in (out / "one.log").read_text() and not (out / "site").exists()
    assert "1 of 2 stages failed" in capsys.readouterr().out
    assert gpu.main(["--out", str(out), "--only", "one"]) == 0
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(out), "--only", "three"])


def test_make_needs_a_folder():
    run = subprocess.run(["make", "gpu"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode and "OUT=folder" in run.stderr
    command = ["make", "-n", "gpu", "OUT=results", "SKIP_BUILD=1", "PYTHON=py"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert 'py -m bench.gpu --out "results" --skip-build' in " ".join(text.split())


def test_names_of_kernels():
    events = [("short", 1.0), ("long", 5.0), ("short", 1.0)]
    assert cuda.summary(events) == "1x long; 2x short"
    assert cuda.summary(events, 1) == "1x long; 1 others"


def test_the_grid_of_schedules():
    specs = plans.specs()
    assert len(set(specs)) == len(specs) == 600
    keys = {(spec.case.name, spec.cell, spec.mode, spec.dtype) for spec in specs}
    assert len(keys) == 600
    late = [
        spec.cell == "RNN" or spec.dtype == "float32" or spec.case.hidden_size > 1024
        for spec in specs
    ]
    assert not any(late[:40]) and all(late[-40:])
    assert all(one.takes(specs[0]) for one in plans.CONTENDERS)
    assert [one.name for one in plans.CONTENDERS] == [
        *(one.name for one in plans.PLAIN),
        *(f"{one.name} graph" for one in plans.PLAIN),
    ]


@pytest.mark.parametrize("schedule", plans.SCHEDULES)
def test_a_schedule_is_forced_only_while_it_is_timed(schedule, monkeypatch):
    launch = pytest.importorskip("fastrnn.dispatch.cuda.launch", reason="needs the kernels")
    entered = []

    @contextlib.contextmanager
    def around():
        entered.append("cuda")
        yield

    monkeypatch.setattr(plans, "forced", lambda name: replace(OURS, name=name, around=around))
    before, one = launch.schedule, plans.scheduled(schedule)
    with pytest.raises(KeyError), one.around():
        assert launch.schedule == schedule and entered == ["cuda"]
        raise KeyError
    assert launch.schedule == before and one.name == f"cuda {schedule}"


def test_what_only_a_gpu_has_stands_in_the_row():
    session = Mock()
    session.open.return_value, session.sample.return_value = 0.002, [0.002]
    session.kernels.return_value, session.host.return_value = "3x cell", 0.0005
    spec = plans.specs()[0]
    (found,) = measure(spec, {"torch.nn": session}, 0.01)
    assert (found.kernels, found.host_ms, found.ms) == ("3x cell", 0.5, 2.0)
    (found,) = measure(replace(spec, device="cpu"), {"torch.nn": session}, 0.01)
    assert (found.kernels, found.host_ms) == ("", None)


def test_the_time_of_the_host_begins_when_the_gpu_is_idle(monkeypatch):
    clock, stream = Clock(), []

    def call():
        stream.append("call")
        clock.now += (1, 7, 2)[stream.count("call") - 1]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stream.append("wait"))
    assert cuda.host(call, clock) == 2
    assert stream == ["wait", "call"] * 3 + ["wait"]


def test_the_table_of_schedules():
    """That of RESULTS.md is of the rows that are kept."""
    _, (kept,) = results.kept(results.FOLDER)
    assert plans.table(kept) in (ROOT / "bench" / "RESULTS.md").read_text()
    assert {one.contender for one, _ in kept} <= {one.name for one in plans.CONTENDERS}
    specs = {(s.case.name, s.cell, s.mode, s.dtype) for s in plans.specs()}
    assert {(r.case, r.cell, r.mode, r.dtype) for r, _ in kept} <= specs
    place = {"T": 100, "N": 16, "hidden_size": 64, "cell": "GRU", "mode": "training"}
    place |= {"dtype": "tf32", "device": "cuda"}
    times = {"torch.nn": 30.0, "fastrnn cuda stepwise": 20.0, "fastrnn cuda library": 10.0}
    rows = [row(name, ms=ms, **place) for name, ms in times.items()]
    rows.append(row("fastrnn triton", ms=None, **place | {"status": "failed: broken"}))
    text = plans.table((one, FACTS) for one in rows)
    assert text.splitlines()[-1] == "| training | tf32 | GRU | 16 | 3.0 / - |"


@pytest.mark.skipif(choose.COMPILER is None, reason="there is no C++ compiler")
def test_the_table_of_predictions():
    """That of RESULTS.md is what choose.h says today, beside the rows that are kept."""
    _, (kept,) = results.kept(results.FOLDER)
    text = predictions.table(kept)
    assert text in (ROOT / "bench" / "RESULTS.md").read_text()
    lines = {tuple(line.split(" | ")[:4]): line.split(" | ")[4:] for line in text.splitlines()}
    assert len(lines) == 2 + 2 * 3 * 3 * 4
    row = lines["| training", "float16", "LSTM", "16"]
    assert row[2].split(" / ")[1:] == ["8.4", "5.2"] and row[4] == "- / - / - |"
    forward, backward = (choose.plan(4, 512, 16, "float16", backward=b) for b in (False, True))
    time = forward.time + backward.time + 2 * forward.input
    assert row[2].split(" / ")[0] == f"{time / 1e3:.1f}"
    assert any("*" in entry for entries in lines.values() for entry in entries)
