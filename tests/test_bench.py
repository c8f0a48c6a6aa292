"""The command line of the benchmark suite, from options to files."""

import io
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from multiprocessing import active_children

import pytest
from bench_doubles import SPEC, TINY, altered
from rich.console import Console

from bench import __main__ as command
from bench import base, ceilings, facts, jobs, readme, results, timing
from bench.contenders import BASELINE, OURS, Contender
from bench.suites import SUITES, Suite, select

TEST = Suite("tiny", (TINY,), seconds=0.01, table="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A suite that takes no time, on a machine whose ceilings are known."""
    monkeypatch.setitem(SUITES, "quick", TEST)
    monkeypatch.setattr(ceilings, "measure", lambda *place: ceilings.Ceilings(1e11, ((1, 1e10),)))
    monkeypatch.setattr(facts, "matrix_rate", lambda: 50e9)
    with timing.torch_threads(1):
        yield


def options(**changes) -> Namespace:
    return Namespace(**{"seconds": None, "base": None, "contenders": (), "at_most": None} | changes)


def test_listing(capsys):
    assert command.main(["cpu", "stream", "--list", "--filter", "vad,lm,keyword"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "voice activity" in text and "wake word" in text and "rnnoise" not in text
    assert "LSTM GRU; inference; float32; threads: 1" in text


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
    begin, end = readme.markers()
    page.write_text(f"{begin}\n{end}\n")
    written = ["--results", str(folder)]
    report = ["report", *written, "--readme", str(page), "--out", str(tmp_path / "out")]
    assert command.main(report) == 2  # nothing to report yet
    chosen = ["--cells", "LSTM,GRU", "--modes", "training", *written]
    assert command.main([*chosen, "--save"]) == 0
    assert "mean" in capsys.readouterr().out
    (path,) = folder.glob("*.csv")
    rows = [row for row, _ in results.load(path)]
    assert len(rows) == 4 and {row.suite for row in rows} == {"cpu"}
    assert all(row.floor_ms > 0 for row in rows)
    assert command.main([*chosen, "--compare", str(path)]) == 0
    assert f"since {path.name}" in capsys.readouterr().out
    assert command.main(report) == 0
    assert "| tiny (9, 3, 4, 5, 2) | GRU |" in page.read_text()
    drawn = {file.suffix for file in (tmp_path / "out" / path.stem).iterdir()}
    assert drawn == {".svg", ".png"}
    assert (tmp_path / "out" / "index.html").stat().st_size > 1e6


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
