"""The runner of bench/micro on programs that are stand-ins. Every figure is made up."""

import json
import os
import stat
from pathlib import Path

import pytest
from test_micro import MADE_UP, made_up

from bench.micro import rows, run


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def log(tmp_path):
    return run.Log(tmp_path / "log.txt")


@pytest.fixture
def build(tmp_path):
    """Every program, compiled by the looks of it: each prints the made-up rows."""
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / "made_up").write_text(MADE_UP)
    for program in run.PROGRAMS:
        script(folder / program, f"grep '^{program},' {folder / 'made_up'} || true")
        (folder / f"{program}.digest").write_text(run.digest(program, "90a"))
    return folder


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    """Neither nvcc nor nvidia-smi; a folder on PATH in which a test may put its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "grep", "sleep", "git", "cp"):
        for place in os.environ["PATH"].split(os.pathsep):
            if (Path(place) / tool).exists():
                (folder / tool).symlink_to(Path(place) / tool)
                break
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    return folder


class TestRunner:
    def test_programs_and_sources_are_the_same(self):
        assert {f"{program}.cu" for program in run.PROGRAMS} == {
            path.name for path in run.FOLDER.glob("*.cu")
        }

    def test_rows_of_every_run(self, build, log):
        *_, found = run.run_programs(("clusters", "boundary"), 60, build, log)
        assert len(found) == run.RUNS * len(made_up("clusters", "boundary"))
        assert {row.run for row in found} == set(range(run.RUNS))

    def test_no_further_run_begins_when_its_time_is_over(self, build, log):
        *_, found = run.run_programs(("clusters", "boundary"), 0, build, log)
        assert found == made_up("clusters", "boundary")

    def test_rows_before_an_error_are_kept(self, build, log, tmp_path):
        line = "clusters,cluster=2 kib=200,resident,66,clusters,0,1"
        script(build / "clusters", f"echo '{line}'; echo two blocks shared an SM >&2; exit 1")
        assert run.run_program("clusters", 0, build, log) == rows.parse("clusters", line)
        said = (tmp_path / "log.txt").read_text()
        assert "status 1" in said
        assert "two blocks shared an SM" in said

    def test_rows_before_a_hang_are_kept(self, build, log, monkeypatch, tmp_path):
        monkeypatch.setattr(run, "PROGRAM_SECONDS", 1)
        line = "clusters,cluster=2 kib=200,resident,66,clusters,0,1"
        script(build / "clusters", f"echo '{line}'; printf clusters,cluster=4; exec sleep 60")
        assert run.run_program("clusters", 0, build, log) == rows.parse("clusters", line)
        assert "killed" in (tmp_path / "log.txt").read_text()

    def test_a_program_that_prints_no_rows_or_does_not_start_gives_none(self, build, log):
        script(build / "clusters", "echo no such device")
        assert run.run_program("clusters", 0, build, log) == []
        (build / "boundary").unlink()
        assert run.run_program("boundary", 0, build, log) == []

    def test_ceilings_is_told_where_cublas_is(self, build, log, monkeypatch, tmp_path):
        monkeypatch.setattr(run, "cublas", lambda: ["/made/up/libcublas.so.13"])
        script(build / "ceilings", f"echo $@ > {tmp_path / 'arguments'}")
        run.run_program("ceilings", 0, build, log)
        assert (tmp_path / "arguments").read_text().strip() == "/made/up/libcublas.so.13"

    def test_only_what_changed_is_compiled(self, build, no_tools):
        programs = ("clusters", "boundary")
        assert run.compile_missing(programs, "90a", build) == []
        (build / "boundary.digest").write_text("of older sources")
        with pytest.raises(FileNotFoundError, match="nvcc"):
            run.compile_missing(programs, "90a", build)
        script(no_tools / "nvcc", f"echo $@ > {build / 'command'}")
        assert run.compile_missing(programs, "90a", build) == ["boundary"]
        command = (build / "command").read_text()
        assert "code=sm_90a" in command
        assert "boundary.cu" in command
        assert run.compile_missing(programs, "90a", build) == []
        assert run.compile_missing(programs, "100a", build) == list(programs)

    def test_the_architecture_is_that_of_the_gpu_at_hand(self, no_tools):
        assert run.architecture() == "90a"
        script(no_tools / "nvidia-smi", "echo 10.3")
        assert run.architecture() == "103a"

    def test_the_baseline_goes_on_behind_the_case_that_ended_it(self, log, monkeypatch, tmp_path):
        calls = tmp_path / "calls"
        script(
            tmp_path / "python",
            f'echo "$@" >> {calls}\n'
            'case "$*" in *--start=0*) echo "case 0 a"; echo "case 1 b"; exit 1;; esac',
        )
        monkeypatch.setattr(run.sys, "executable", str(tmp_path / "python"))
        assert run.run_baseline(tmp_path, 100, log)
        first, second = calls.read_text().splitlines()
        assert "--start=0" in first
        assert "--start=2" in second

    def test_no_baseline_without_time(self, log, monkeypatch, tmp_path):
        monkeypatch.setattr(run.sys, "executable", str(tmp_path / "nothing"))
        assert not run.run_baseline(tmp_path, 10, log)

    def test_a_baseline_that_never_ends_well_is_given_up(
        self, no_tools, log, monkeypatch, tmp_path
    ):
        script(tmp_path / "python", f"echo again >> {tmp_path / 'calls'}; exit 1")
        monkeypatch.setattr(run.sys, "executable", str(tmp_path / "python"))
        assert run.main(["--out", str(tmp_path), "--only", "baseline"]) == 1
        assert len((tmp_path / "calls").read_text().splitlines()) == run.RESTARTS + 1

    def test_everything_lands_in_the_folder(self, build, no_tools, tmp_path, capsys):
        out = tmp_path / "out"
        words = ["--out", str(out), "--build", str(build), "--only"]
        assert run.main([*words, "clusters,allgather"]) == 0
        found = rows.load(out / "micro.csv")
        assert {row.program for row in found} == {"clusters", "allgather"}
        assert json.loads((out / "machine.json").read_text())["gpu"] == "none"
        assert (out / "floors.md").read_text() in capsys.readouterr().out
        script(build / "clusters", "exit 1")
        assert run.main([*words, "clusters,allgather"]) == 1

    def test_what_does_not_compile_does_not_stop_the_rest(self, build, no_tools, tmp_path):
        (build / "boundary.digest").unlink()
        out = tmp_path / "out"
        words = ["--out", str(out), "--build", str(build), "--only", "boundary,clusters"]
        assert run.main(words) == 1
        assert {row.program for row in rows.load(out / "micro.csv")} == {"clusters"}
        script(no_tools / "nvcc", "exit 1")
        assert run.main(words) == 1
        assert "not everything compiled" in (out / "log.txt").read_text()

    def test_arguments(self, monkeypatch, capsys):
        monkeypatch.setenv("OUT", "/made/up")
        assert run.arguments([]).out == Path("/made/up")
        assert run.arguments([]).only == (*run.PROGRAMS, "baseline")
        assert run.arguments(["--only", "baseline"]).only == ("baseline",)
        with pytest.raises(SystemExit):
            run.arguments(["--only", "clusters,typo"])
        assert "typo" in capsys.readouterr().err
