"""The baseline of bench/micro on the CPU, and with stand-ins for a GPU's clock and graphs."""

import contextlib
import csv
from dataclasses import replace

import pytest
import torch

from bench.micro import baseline, cases

CPU = torch.device("cpu")
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
