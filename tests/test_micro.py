"""bench/micro without a GPU: rows, the runner on programs that are stand-ins, the arithmetic of the
floors, the baseline on the CPU. Every figure in this file is made up for the test."""

import contextlib
import csv
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.micro import baseline, cases, floors, rows, run

CPU = torch.device("cpu")

# Made up: no machine gave these rows.
MADE_UP = """\
allgather,blocks=128 gather=8192 way=flag,step,2000,cycles,10,5
allgather,blocks=128 gather=8192 way=flag,step,1000,ns,5,5
allgather,blocks=128 gather=8192 way=phase,step,1500,cycles,10,5
allgather,blocks=128 gather=8192 way=phase,step,750,ns,5,5
allgather,blocks=128 gather=8192 way=none,step,400,cycles,10,5
allgather,blocks=128 gather=16384 way=phase,step,1700,cycles,10,5
clusters,cluster=1 kib=200,resident,132,clusters,0,1
clusters,cluster=8 kib=200,resident,14,clusters,0,1
clusters,cluster=16 kib=200,resident,0,clusters,0,1
dsmem_push,cluster=8 clusters=1 gather=8192 way=bulk,step,500,cycles,1,5
dsmem_push,cluster=8 clusters=14 gather=8192 way=bulk,step,900,cycles,1,5
dsmem_push,cluster=8 clusters=14 gather=8192 way=st_async,step,800,cycles,1,5
mma_rate,n=8 warps=8 tiles=1 ksteps=32 b=smem,rate,1000,FLOP/clk/SM,1,7
mma_rate,n=8 warps=16 tiles=2 ksteps=8 b=smem,rate,2000,FLOP/clk/SM,1,7
mma_rate,n=8 warps=8 tiles=4 ksteps=8 b=reg,rate,3000,FLOP/clk/SM,1,7
l2_read,blocks=128 share=none way=bulk,read,7,TB/s,0.1,7
l2_read,blocks=128 share=all way=bulk,read,9,TB/s,0.1,7
boundary,blocks=128 work=2000 way=pdl,boundary,700,ns,9,9
boundary,blocks=128 work=2000 way=plain,boundary,1200,ns,9,9
ceilings,op=product size=8192 dtype=bf16,rate,800,TFLOP/s,5,15
"""


def made_up(*programs: str) -> list[rows.Row]:
    lines = MADE_UP.splitlines()
    return [
        row
        for program in programs or run.PROGRAMS
        for row in rows.parse(program, "\n".join(li for li in lines if li.startswith(program)))
    ]


class TestRows:
    def test_a_row_says_what_was_printed(self):
        (row,) = rows.parse("clusters", "clusters,cluster=8 kib=200,resident,15,clusters,0,1", 2)
        assert row == rows.Row(
            "clusters", "cluster=8 kib=200", "resident", 15, "clusters", 0, 1, run=2
        )
        assert row.get("cluster") == "8"
        with pytest.raises(KeyError):
            row.get("gather")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("Segmentation fault", "not a row"),
            ("clusters,a=1,resident,nan,clusters,0,1", "not finite"),
            ("clusters,a=1,resident,3,clusters,inf,1", "not finite"),
            ("mma_rate,a=1,resident,3,clusters,0,1", "a row of mma_rate"),
            ("clusters,a=1,resident,many,clusters,0,1", "many"),
        ],
    )
    def test_what_is_no_row_is_an_error(self, line, message):
        with pytest.raises(ValueError, match=message):
            rows.parse("clusters", line)

    def test_rows_survive_the_file_with_facts_and_comments(self, tmp_path):
        path = tmp_path / "rows.csv"
        rows.save(made_up(), {"gpu": "none, made up"}, path)
        assert next(csv.DictReader(path.open()))["gpu"] == "none, made up"
        path.write_text("# made up for the test\n" + path.read_text())
        assert rows.load(path) == made_up()

    def test_a_figure_is_the_median_of_its_runs(self):
        (row, *_) = made_up("boundary")
        table = rows.Table(
            replace(row, value=value, run=run) for run, value in enumerate((3.0, 9.0, 4.0))
        )
        assert table.value("boundary", "boundary", "ns", way="pdl") == 4
        assert [row.value for row in table.find("boundary", "boundary", "ns")] == [4]
        assert table.values("boundary", "boundary", "ns", "blocks") == {128: 4}
        assert table.value("boundary", "boundary", "ns", way="plain") is None

    def test_a_figure_of_several_rows_is_an_error(self):
        with pytest.raises(ValueError, match="several"):
            rows.Table(made_up()).value("boundary", "boundary", "ns", blocks=128)


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


class TestFloors:
    """The constants that are assumed give the sums that were worked out by hand with them."""

    def test_a_cluster_step_by_hand(self):
        # H = 512, 8 sequences in a cluster of 16: 128 rows of gates a block.
        machine = floors.Machine(clusters={16: 1})
        product = 2 * 128 * 512 * 8 / 2617  # 401 > 384 of shared memory
        exchange = 270 + 8 * 512 * 2 * 15 / 16 / 13.2
        cycles = product + 60 + (100 + 5 * 256 / 16) + 80 + exchange
        assert cycles == pytest.approx(1573, abs=1)
        assert floors.clusters(machine, 512, 8) == pytest.approx(cycles / 1900)

    def test_one_block_exchanges_nothing(self):
        # H = 128, 8 sequences: 512 rows of gates, all weights in the registers of one SM.
        machine = floors.Machine(clusters={1: 1}, push={})
        cycles = 2 * 512 * 128 * 8 / 2617 + 60 + (100 + 5 * 1024 / 16) + 80
        assert floors.clusters(machine, 128, 8) == pytest.approx(cycles / 1900)

    def test_a_grid_step_by_hand(self):
        # H = 1024, 32 sequences in two groups of 64 SMs; 0.6 us of synchronisation.
        cycles = 801 + 60 + 180 + 80 + 16 * 1024 * 2 / 35
        machine = floors.Machine()
        assert floors.grid(machine, 1024, 32) == pytest.approx(cycles / 1900 + 0.6, rel=1e-3)

    def test_a_grid_step_where_shared_memory_is_the_limit(self):
        # H = 768, 16 sequences in four groups of 32 SMs: 96 rows, 4 sequences, 144 KiB of weights;
        # in two groups: 48 rows of gates, 8 sequences, and that is faster.
        memory = min((8 / k * 8 * 768 * 2 + 2 * k * 48 * 8 * 4) / 128 for k in (1, 2, 4, 8))
        cycles = max(2 * 48 * 768 * 8 / 2617, memory) + 60 + 100 + 5 * 12 * 8 / 16 + 80
        cycles += 8 * 768 * 2 / 35
        machine = floors.Machine()
        assert floors.grid(machine, 768, 16) == pytest.approx(cycles / 1900 + 0.6)

    def test_a_launch_by_hand(self):
        # H = 1024: 8 MiB of weights at 6 TB/s, or 2^31 operations at 600 TFLOP/s.
        machine = floors.Machine()
        assert floors.launches(machine, 1024, 1, 1) == pytest.approx(1.3 + 8.388608 / 6)
        assert floors.launches(machine, 1024, 256, 2) == pytest.approx(2.6 + 2147.483648 / 600)

    def test_a_backward_cluster_step_by_hand(self):
        # As forward, but the sums are floats, added up by their owner, and there is one tanh.
        machine = floors.Machine(clusters={16: 1})
        exchange = 270 + 8 * 512 * 4 * 15 / 16 / 13.2 + 8 * 512 * 4 / 128
        cycles = 2 * 128 * 512 * 8 / 2617 + 60 + (100 + 256 / 16) + 80 + exchange
        assert floors.clusters(machine, 512, 8, backward=True) == pytest.approx(cycles / 1900)

    def test_backward_through_the_grid_gathers_four_gates(self):
        machine = floors.Machine(gather={128: floors.Curve([(0, 0), (1, 1e6)])})
        forward = floors.grid(machine, 512, 1)
        assert floors.grid(machine, 512, 1, backward=True) == pytest.approx(4 * forward, rel=1e-4)

    def test_a_faster_push_moves_the_border_of_the_clusters(self):
        slow = floors.Machine()
        fast = floors.Machine(push=dict.fromkeys((2, 4, 8, 16), floors.Curve.line(270, 32)))
        assert floors.clusters(slow, 512, 64) > floors.grid(slow, 512, 64)
        assert floors.clusters(fast, 512, 64) < floors.grid(fast, 512, 64)

    def test_what_does_not_fit_is_no_design(self):
        machine = floors.Machine()
        assert floors.clusters(machine, 1024, 8) is None
        assert floors.grid(machine, 4096, 8) is None
        assert set(floors.floors(machine, 4096, 8)) == {"c", "c2"}

    def test_constants_are_taken_from_rows(self):
        machine = floors.measure(rows.Table(made_up()))
        assert machine.clock == 2
        assert machine.mma == {8: 2000, 16: 2617, 32: 2617, 64: 3890}  # b=smem, the best split
        assert machine.clusters == {1: 132, 8: 14}
        assert machine.push[8](7168) == 800  # of all clusters at once, the faster way
        assert machine.gather[128](8192) == 1500  # not `none`, which waits for nothing
        assert machine.gather[128](12288) == 1600
        assert (machine.boundary, machine.l2, machine.matrix) == (700, 7, 600)

    def test_constants_without_rows_stay_and_are_named(self):
        report = floors.report(rows.Table(made_up("boundary")))
        assert floors.measure(rows.Table(made_up("boundary"))).measured == ["boundary"]
        assert "| boundary | 1300 | 700 |" in report
        assert "| l2 | 6 | no row |" in report

    def test_the_report_marks_the_least(self):
        report = floors.report(rows.Table([])).splitlines()
        line = next(line for line in report if line.startswith("| 2048 | b |"))
        # As worked out with the same constants when the designs were first compared.
        assert line.startswith("| 2048 | b | **1.60** | **2.05** | **2.83** | **4.47** | 7.53 |")

    def test_a_curve_is_straight_between_its_points(self):
        curve = floors.Curve([(4, 10), (2, 6), (8, 30)])
        assert [curve(x) for x in (1, 2, 3, 4, 6, 8, 10)] == [6, 6, 8, 10, 20, 30, 40]
        assert floors.Curve([(2, 6)])(9) == 6


TINY = cases.Case("tiny", "LSTM", T=5, B=3, I=4, H=6, dtype="fp32")


@pytest.fixture
def flags():
    """Leaves torch's TF32 flags as they were."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("flags")
class TestBaseline:
    def test_cases_are_all_different_and_begin_with_the_headline(self):
        every = cases.cases()
        assert len(set(every)) == len(every)
        assert [(case.name, case.dtype) for case in every[:2]] == [
            ("flashrnn", "fp16"),
            ("flashrnn", "bf16"),
        ]
        for shape in cases.SHAPES:
            assert {case.dtype for case in every if replace(case, dtype="fp16") == shape} == set(
                cases.DTYPES
            )

    @pytest.mark.parametrize(
        "change",
        [{}, {"cell": "GRU"}, {"cell": "RNN"}, {"layers": 2, "directions": 2}, {"packed": True}],
        ids=str,
    )
    def test_figures_of_every_mode(self, change, monkeypatch):
        monkeypatch.setattr(baseline, "CASE_SECONDS", 0.5)
        monkeypatch.setattr(baseline, "MODES", ("training",))
        (row,) = baseline.measure(replace(TINY, **change), CPU)
        assert (row.mode, row.status, row.graph) == ("training", "ok", False)
        assert row.us_per_step == row.us / 5 > 0
        assert row.error_y < 1e-5
        assert row.error_dw < 1e-5
        assert row.launches > 0

    def test_the_reference_is_float64_on_the_same_numbers(self):
        problem = baseline.Problem(replace(TINY, dtype="bf16", packed=True), CPU)
        other = problem.reference()
        assert other.x.dtype == other.dy.dtype == torch.float64
        assert torch.equal(other.x, problem.x.double())
        for mine, its in zip(other.module.parameters(), problem.module.parameters(), strict=True):
            assert torch.equal(mine, its.double())

    def test_tf32_is_allowed_only_where_it_is_asked_for(self):
        baseline.Problem(replace(TINY, dtype="tf32"), CPU)
        assert torch.backends.cudnn.allow_tf32
        baseline.Problem(TINY, CPU)
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32

    def test_a_wrong_answer_gets_no_time(self, monkeypatch):
        right = baseline.Problem.reference

        def wrong(problem):
            other = right(problem)
            with torch.no_grad():
                other.module.weight_hh_l0 *= -9
            return other

        monkeypatch.setattr(baseline.Problem, "reference", wrong)
        (row,) = baseline.measure(TINY, CPU)
        assert (row.status, row.us) == ("wrong", None)

    def test_a_case_that_breaks_says_why(self):
        (row,) = baseline.measure(replace(TINY, B=-1), CPU)
        assert "negative" in row.status

    def test_a_mode_that_breaks_says_why(self, monkeypatch):
        monkeypatch.setattr(baseline, "MODES", ("inference",))

        def breaks(problem):
            raise RuntimeError("no such kernel\nat some place")

        monkeypatch.setattr(baseline.Problem, "inference", breaks)
        (row,) = baseline.measure(TINY, CPU)
        assert (row.status, row.us) == ("no such kernel", None)

    def test_rows_are_appended_under_one_header(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(baseline, "cases", lambda: [TINY, replace(TINY, name="second")])
        monkeypatch.setattr(baseline, "MODES", ("inference",))
        out = tmp_path / "baseline.csv"
        for start in (0, 1):
            baseline.main([f"--out={out}", "--device=cpu", f"--start={start}"])
        records = list(csv.DictReader(out.open()))
        assert [record["name"] for record in records] == ["tiny", "second", "second"]
        assert records[0]["torch"] == torch.__version__
        assert "case 1 " in capsys.readouterr().out

    def test_it_ends_in_time(self, tmp_path, capsys):
        baseline.main([f"--out={tmp_path / 'baseline.csv'}", "--device=cpu", "--seconds=0"])
        assert "out of time" in capsys.readouterr().out
        assert not (tmp_path / "baseline.csv").exists()


class FakeEvent:
    """Stands in for torch.cuda.Event: each record is 2 ms after the one before."""

    now = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self):
        FakeEvent.now += 2
        self.at = FakeEvent.now

    def elapsed_time(self, later):
        return later.at - self.at


class FakeStream:
    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


class TestBaselineOnTheGpu:
    """What needs a GPU, as far as stand-ins for torch.cuda can show it."""

    @pytest.fixture(autouse=True)
    def fakes(self, monkeypatch):
        for name, value in {
            "Event": FakeEvent,
            "Stream": FakeStream,
            "current_stream": FakeStream,
            "synchronize": lambda: None,
            "stream": lambda stream: contextlib.nullcontext(),
            "graph": lambda graph: contextlib.nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def test_calls_lie_between_events(self):
        count = []
        figures = baseline.timed(lambda: count.append(1), torch.device("cuda"), 0)
        assert figures == {"us": 2000, "us_spread": 0, "calls": 5}
        assert len(count) == 2 + 5

    @pytest.mark.parametrize("factor", [1.0, 1.1])
    def test_a_graph_is_taken_if_its_replay_agrees(self, factor, monkeypatch):
        y = torch.empty(3)

        class FakeGraph:
            def replay(self):
                y.copy_(torch.tensor([1.0, 2.0, 3.0]) * factor)

        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)

        def call():
            return [y.copy_(torch.tensor([1.0, 2.0, 3.0]))]

        if factor == 1:
            baseline.capture(call)()
        else:
            with pytest.raises(RuntimeError, match="differ"):
                baseline.capture(call)
