"""The baseline of bench/micro on the CPU, and what it asks of a GPU."""

import time
from dataclasses import replace

import pytest
import torch
from bench_doubles import FACTS, SPEC, TINY, altered, row

from bench import facts, jobs, results, series
from bench.cases import DTYPES
from bench.micro import baseline, cases


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A machine whose rate is known; torch's number of threads stays as it was."""
    monkeypatch.setattr(facts, "matrix_rate", lambda: 50e9)
    monkeypatch.setattr(baseline, "SECONDS", 0.01)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_specs_are_all_different_and_begin_with_the_headline():
    every = cases.specs()
    keys = [(one.case.name, one.cell, one.mode, one.dtype) for one in every]
    assert len(set(keys)) == len(keys)
    assert len({(one.case, one.cell, one.mode, one.dtype) for one in every}) == len(keys)
    assert keys[:4] == [
        *(("flashrnn", "LSTM", mode, "float16") for mode in cases.MODES),
        ("flashrnn", "LSTM", "inference", "bfloat16"),
    ]
    for case in cases.SHAPES:
        for cell in ("LSTM", "GRU"):
            if case.has(cell):
                found = {one.dtype for one in every if one.case == case and one.cell == cell}
                assert found == set(DTYPES) - {"float64"}
    assert all(one.case.has(one.cell) for one in every)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    "change",
    [{}, {"layers": 1, "bidirectional": True}, {"job": "packed"}],
    ids=["plain", "bi", "packed"],
)
def test_figures_of_every_mode(cell, change):
    for mode in cases.MODES:
        spec = replace(SPEC, case=replace(TINY, **change), cell=cell, mode=mode)
        (found,) = baseline.rows(spec)
        assert (found.contender, found.mode, found.status) == ("torch.nn", mode, "ok")
        assert found.suite == "baseline" and found.ms > 0 and found.ratio == 1


def test_a_graph_takes_part_on_a_gpu(monkeypatch):
    asked = []

    def measured(spec, sessions, seconds, **more):
        asked.append((spec, list(sessions), more["memory"]))
        return []

    monkeypatch.setattr(series, "measure", measured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("done"))
    spec = replace(SPEC, device="cuda")
    assert baseline.rows(spec) == []
    assert asked == [(spec, ["torch.nn", "torch.nn graph"], True), "done"]


def test_a_wrong_answer_gets_no_time(monkeypatch):
    wrong = altered(lambda found: [2 * one for one in found])
    monkeypatch.setattr(jobs, "baseline", lambda job: wrong)
    (found,) = baseline.rows(SPEC)
    assert found.status.startswith("wrong: output") and found.ms is None
    monkeypatch.undo()
    assert baseline.rows(SPEC)[0].status == "ok"


def test_a_case_that_breaks_says_why(monkeypatch):
    def breaks(found):
        raise RuntimeError("no such kernel\nat some place")

    monkeypatch.setattr(jobs, "baseline", lambda job: altered(breaks))
    (found,) = baseline.rows(SPEC)
    assert (found.status, found.ms) == ("failed: RuntimeError: no such kernel", None)


def test_rows_are_added_to_those_of_before(monkeypatch, tmp_path, capsys):
    specs = [replace(SPEC, case=replace(TINY, name=name)) for name in ("first", "second")]
    monkeypatch.setattr(baseline, "specs", lambda device: specs)
    out = tmp_path / "baseline.csv"
    for start in (0, 1):
        baseline.main([f"--out={out}", "--device=cpu", f"--start={start}"])
    records = results.load(out)
    assert [found.case for found, _ in records] == ["first", "second"]
    assert records[0][1].torch == torch.__version__
    text = capsys.readouterr().out
    assert text.count("case 1 second LSTM training float32") == 2 and "torch.nn: ok" in text


def test_it_ends_in_time(tmp_path, capsys):
    out = tmp_path / "baseline.csv"
    baseline.main([f"--out={out}", "--device=cpu", "--seconds=0"])
    assert f"out of time: {len(cases.specs())} of" in capsys.readouterr().out
    assert not out.exists()


def test_what_is_left_out_is_counted(tmp_path):
    specs = [replace(SPEC, case=replace(TINY, name=str(k))) for k in range(4)]
    out = tmp_path / "rows.csv"
    begun = []

    def rows(spec):
        begun.append(spec)
        while time.monotonic() < end:
            time.sleep(0.01)
        return [row(case=spec.case.name)]

    end = time.monotonic() + 0.1
    assert series.run(specs, rows, facts=FACTS, path=out, until=end, start=1) == 2
    assert begun == specs[1:2]
    assert [found.case for found, _ in results.load(out)] == ["1"]
