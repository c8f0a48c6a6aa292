"""The command line of the benchmark suite, from options to files."""

import io
import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from multiprocessing import active_children

import pytest
from bench_doubles import SPEC, TINY, altered, row
from rich.console import Console

from bench import __main__ as command
from bench import base, ceilings, facts, jobs, readme, results, timing
from bench.contenders import BASELINE, OURS, Contender
from bench.page import unpacked
from bench.run import Shown
from bench.suites import SUITES, Suite, select

TEST = Suite("tiny", (TINY,), seconds=0.01, table="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A suite that takes no time, on a machine whose ceilings are known."""
    monkeypatch.setitem(SUITES, "quick", TEST)
    monkeypatch.setattr(ceilings, "measure", lambda *place: ceilings.Ceilings(1e11, ((1, 1e10),)))
    monkeypatch.setattr(facts, "matrix_rate", lambda: 50e9)
    monkeypatch.setattr(command, "no_kernels", lambda: None)
    with timing.torch_threads(1):
        yield


def options(**changes) -> Namespace:
    return Namespace(**{"seconds": None, "base": None, "contenders": (), "at_most": None} | changes)


def test_listing(capsys):
    assert command.main(["cpu", "stream", "--list", "--filter", "vad,lm,keyword"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "voice activity" in text and "wake word" in text and "rnnoise" not in text
    assert "LSTM GRU RNN; inference; float32; threads: 1" in text


def test_a_filter_that_matches_nothing_is_an_error():
    assert command.main(["--filter", "nothing"]) == 2


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main(["gpu", "--filter", "vad,odd"]) == 2
    assert "no GPU" in capsys.readouterr().out


def test_a_commit_that_is_not_there_is_an_error(capsys):
    assert command.main(["--base", "no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().out


def test_run_save_compare_and_report(tmp_path, capsys):
    folder, page = tmp_path / "results", tmp_path / "README.md"
    page.write_text("\n".join("\n".join(readme.markers(name)) for name in readme.blocks([])))
    written = ["--results", str(folder)]
    report = ["report", *written, "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert command.main(report) == 2  # nothing to report yet
    chosen = ["--cells", "LSTM,GRU", "--modes", "training", *written]
    assert command.main([*chosen, "--save"]) == 0
    text = capsys.readouterr().out
    assert "mean" in text and "Faster than torch.nn in " in text
    assert "Weakest row: tiny " in text.splitlines()[-1]
    (path,) = folder.glob("*.csv")
    rows = [row for row, _ in results.load(path)]
    assert len(rows) == 4 and {row.suite for row in rows} == {"cpu"}
    assert all(row.floor_ms > 0 for row in rows)
    assert command.main([*chosen, "--compare", str(path)]) == 0
    assert f"since {path.name}" in capsys.readouterr().out
    assert command.main(report) == 0
    assert "| tiny (9, 3, 4, 5, 2) | GRU |" in (tmp_path / "bench" / "RESULTS.md").read_text()
    assert "over 1 models" in page.read_text()
    drawn = {file.suffix for file in (tmp_path / "out" / path.stem).iterdir()}
    assert drawn == {".svg", ".png"}
    html = (tmp_path / "out" / "index.html").read_text()
    inside = unpacked(html)
    assert "<svg" in inside and "<td>tiny</td>" in inside and len(html) < 2e6


def test_a_contender_is_left_out_of_modes_it_does_not_have(monkeypatch):
    infers = Contender("peer", BASELINE.prepare, modes=("inference",))
    monkeypatch.setitem(jobs.JOBS, "layer", (OURS, BASELINE, infers))
    specs = select(TEST, cores=2, cells=("GRU",))
    rows = command.Run(Console(file=io.StringIO()), options(), None)("quick", TEST, specs)
    assert [(one.mode, one.contender) for one in rows] == [
        ("inference", "fastrnn"), ("inference", "torch.nn"), ("inference", "peer"),
        ("training", "fastrnn"), ("training", "torch.nn"),
    ]  # fmt: skip


def test_a_wrong_contender_makes_the_run_fail(monkeypatch, capsys):
    wrong = replace(altered(lambda found: [found[0] * float("nan"), *found[1:]]), name=OURS.name)
    monkeypatch.setitem(jobs.JOBS, "layer", (wrong, BASELINE))
    assert command.main(["--cells", "RNN", "--modes", "inference"]) == 1
    assert "wrong: output is off by nan" in " ".join(capsys.readouterr().out.split())


def test_a_library_that_is_not_there_is_no_failure(monkeypatch, tmp_path):
    def prepare(problem):
        raise ImportError("no module named peer")

    monkeypatch.setitem(jobs.JOBS, "layer", (OURS, BASELINE, Contender("peer", prepare)))
    arguments = ["--cells", "RNN", "--modes", "inference", "--save", "--results", str(tmp_path)]
    assert command.main(arguments) == 0
    (path,) = tmp_path.glob("*.csv")
    assert [row.contender for row, _ in results.load(path)] == ["fastrnn", "torch.nn"]


def test_another_commit_of_ours_is_the_baseline(monkeypatch, tmp_path):
    """A checkout whose modules are torch.nn's own, and which leaves a trace when it is imported."""
    package = tmp_path / "fastrnn"
    package.mkdir()
    code = "from pathlib import Path\nfrom torch.nn import LSTM\nPath(__file__ + '.was').touch()"
    (package / "__init__.py").write_text(code)
    monkeypatch.setattr(base, "checkout", lambda ref: tmp_path)
    run = command.Run(Console(file=io.StringIO()), options(base="v0"), base.checkout("v0"))
    rows = run("quick", TEST, [SPEC])
    assert [(row.contender, row.status, row.baseline) for row in rows] == [
        ("fastrnn", "ok", "fastrnn@v0"), ("fastrnn@v0", "ok", "fastrnn@v0"),
    ]  # fmt: skip
    assert rows[1].ratio == 1 and rows[0].ratio > 0
    assert (package / "__init__.py.was").exists()


def test_ceilings_are_measured_while_no_process_of_a_contender_runs(monkeypatch):
    """One that starts up takes a core, and the ceilings of two would be half of what they are."""
    running = []
    measure = ceilings.measure
    monkeypatch.setattr(
        ceilings, "measure", lambda *place: running.append(active_children()) or measure(*place)
    )
    run = command.Run(Console(file=io.StringIO()), options(contenders=("fastrnn",)), None)
    rows = run("quick", TEST, [replace(SPEC, threads=2)])
    assert running == [[]] and [row.status for row in rows] == ["ok", "ok"]


def test_pytest_bench_runs_the_same_cases():
    command = [sys.executable, "-m", "pytest", "bench", "-q", "--suite", "overhead"]
    done = subprocess.run(
        [*command, "-k", "GRU and not Cell", "--benchmark-disable", "-p", "no:cacheprovider"],
        cwd=facts.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    count = sum(len(jobs.entrants(s)) for s in select(SUITES["overhead"], cores=2, cells=("GRU",)))
    assert f"{count} passed" in done.stdout, done.stdout + done.stderr


def test_rows_for_which_there_is_no_time_are_left_out(capsys):
    quick = ["--cells", "RNN", "--modes", "inference", "--contenders", "fastrnn"]
    assert command.main([*quick, "--at-most", "-1"]) == 2
    assert "1 rows left out" in capsys.readouterr().out
    assert command.main([*quick, "--at-most", "60"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_the_reference_path_is_not_timed_as_fastrnn(monkeypatch, capsys):
    monkeypatch.setattr(command, "no_kernels", lambda: "type this")
    assert command.main(["--cells", "RNN"]) == 2
    assert "no kernels to time: type this" in capsys.readouterr().out
    assert command.main(["--list"]) == 0  # nothing is timed


def test_an_interrupt_keeps_the_rows_that_are_done(tmp_path):
    """A terminal sends it to every process: to those of the contenders, too."""
    arguments = ["overhead", "--cells", "RNN,GRU", "--threads", "2", "--seconds", "0.3", "--save"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bench", *arguments, "--results", str(tmp_path)],
        cwd=facts.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    first = process.stdout.readline()
    if "no kernels" in first:
        pytest.skip("no compiled kernels, without which bench times nothing")
    os.killpg(process.pid, signal.SIGINT)
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in text + errors
    assert first.startswith("1/4 call ") and "float32, 2 threads: " in first
    assert "interrupted" in text
    assert text.splitlines()[-2].startswith("Faster than torch.nn in ")
    (path,) = tmp_path.glob("*.csv")
    assert {row.mode for row, _ in results.load(path)} == {"inference"}


def test_a_suite_after_an_interrupt_is_left_out(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    run = command.Run(Console(file=io.StringIO()), options(), None)
    monkeypatch.setattr(run, "measure", interrupted)
    assert run("quick", TEST, [SPEC, replace(SPEC, cell="GRU")]) == []
    assert run.interrupted
    assert run("quick", TEST, [SPEC]) == [] and run.left_out == 1


def test_progress_fits_a_terminal_of_80_columns():
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    long = replace(SPEC, case=replace(TINY, name="rnnoise-packed-and-more"), cell="LSTMCell")
    with Shown(console, {long: 100.0, SPEC: 1.0}) as shown:
        shown.begin(long)
        shown.done(long, [row(), row("torch.nn", ratio=1.0)])
        shown.begin(SPEC)
        (line,) = [*console.render_lines(shown.bar.get_renderable())]
        text = "".join(part.text for part in line)
    assert "1/2 tiny LSTM training" in text and "left; last 3.00x" in text and "…" not in text
