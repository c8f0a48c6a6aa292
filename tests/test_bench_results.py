"""What becomes of the rows of a benchmark: the file, the tables, comparison with another run."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench_doubles import FACTS, FAILED, row
from rich.console import Console

from bench import compare, readme, report, results, tables
from bench.contenders import BASELINE
from bench.suites import SUITES

# --- The file ---------------------------------------------------------------------------------


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "new" / "machine.csv"
    stream = row("fastrnn step", ms_p99=2.5, ms_p999=3.5, floor_ms=0.5, peak_mib=12.0, directions=2)
    packed = row(case="packed", proj_size=2, filled=0.667)
    rows = [row(), row(BASELINE.name, ratio=1.0), stream, packed, FAILED]
    results.save(rows, FACTS, path)
    assert results.load(path) == [(one, FACTS) for one in rows]


def test_a_new_run_replaces_its_rows_and_drops_those_of_another_version(tmp_path):
    path = tmp_path / "machine.csv"
    results.save([row(), FAILED], FACTS, path)
    later = replace(FACTS, date="2026-02-03", commit="def")
    results.save([row(ms=1.0)], later, path)
    assert results.load(path) == [(row(ms=1.0), later), (FAILED, FACTS)]
    results.save([row(mode="training")], replace(FACTS, source="456"), path)
    assert [one.mode for one, _ in results.load(path)] == ["training"]


def test_a_file_with_other_columns_counts_as_empty(tmp_path):
    path = tmp_path / "machine.csv"
    path.write_text("case,ms\nold,1\n")
    assert results.load(path) == []


def test_a_file_from_before_a_column_was_added_is_still_read(tmp_path):
    path = tmp_path / "machine.csv"
    results.save([row()], FACTS, path)
    with path.open() as file:
        (line,) = csv.DictReader(file)
    kept = {name: value for name, value in line.items() if name not in ("suite", "floor_ms", "gpu")}
    with path.open("w") as file:
        writer = csv.DictWriter(file, kept)
        writer.writeheader()
        writer.writerow(kept)
    assert results.load(path) == [(row(), FACTS)]


def test_what_is_generated_is_of_the_rows_that_are_kept():
    root = results.FOLDER.parent.parent
    kept, schedules = results.kept(results.FOLDER)
    files = [path for path in results.FOLDER.glob("*.csv") if not path.stem.endswith("-micro")]
    assert len(kept) + len(schedules) == len(files)
    assert (root / "bench" / "RESULTS.md").read_text() == readme.page(kept, schedules)
    text = (root / "README.md").read_text()
    for name, block in readme.blocks(kept).items():
        assert readme.replace_between_markers(text, block, name) == text, name
    assert (root / "docs" / "pictures" / "speed.png").is_file()


# --- The terminal -----------------------------------------------------------------------------


def shown(rows: list[results.Row]) -> str:
    console = Console(file=io.StringIO(), width=120)
    report.show(rows, FACTS, console)
    return console.file.getvalue()


def test_the_terminal_table():
    slower = {"case": "other", "ratio": 0.75, "ratio_low": 0.7, "ratio_high": 0.8}
    text = shown([row(floor_ms=1.5), row(BASELINE.name, ms=6.0, ratio=1.0), row(**slower), FAILED])
    assert "fastrnn" in text and "torch.nn" in text
    assert "2.00" in text and "6.00" in text and "3.00x" in text and "0.75x" in text
    assert "75%" in text  # of the floor
    assert "1.50x" in text  # the geometric mean of 3 and 0.75
    assert "fastrnn on tiny GRU inference: wrong: output, by 3e-1" in text
    assert "noisy" not in text
    assert "ceilings: 100 GFLOP/s, reading 80 GB/s from the cache, 20 from memory" in " ".join(
        text.split()
    )


def test_a_table_of_many_contenders_fits_a_terminal_of_80_columns():
    names = ("fastrnn", "torch.nn", "onnxruntime", "OpenVINO", "fastrnn padded")
    console = Console(file=io.StringIO(), width=80)
    rows = [row(name, case="rnnoise-packed", ms=123.4, floor_ms=100.0) for name in names]
    report.show(rows, FACTS, console)
    text = console.file.getvalue()
    assert "…" not in text and text.count(" 123") == 5 and " 81%" in text
    assert all(word in text for word in (" torch.nn ", " OpenVINO ", " padded ", " floor"))


def test_the_table_of_growth_says_what_a_time_step_costs():
    def along(T: int, ms: float, **changes) -> results.Row:
        return row(case=f"T={T}", T=T, ms=ms, suite="scaling", **changes)

    rows = [along(10, 1.0), along(100, 9.0), along(1000, 110.0), row(case="N=10", suite="scaling")]
    rows += [along(10, 3.0, cell="GRU"), along(10, 0.1, mode="training")]
    text = " ".join(shown(rows).split())
    expected = "LSTM inference, float32, 1 thread: 100 µs a time step at T=10; T=100 0.90x, T=1000"
    assert f"{expected} 1.10x" in text
    assert text.count("a time step at") == 1  # of one length nothing can be said


def test_ways_to_one_result_and_latencies_are_listed_one_below_the_other():
    baseline = {"baseline": "torch.nn loop", "suite": "features"}
    text = shown([row(**baseline), row("torch.nn loop", ms=6.0, ratio=1.0, **baseline)])
    assert [line.split()[0] for line in text.splitlines() if "x " in line] == [
        "fastrnn",
        "torch.nn",
    ]
    text = shown([row("fastrnn step", ms=0.002, ms_p99=0.003, ms_p999=0.0045)])
    assert "p99.9 µs" in text and "4.50" in text


def test_suites_have_tables_of_their_own():
    text = shown([row(), row(case="deep", suite="layers"), row(case="wide")])
    titles = [line.strip() for line in text.splitlines() if "1 thread" in line and ":" in line]
    assert titles == ["cpu: float32, 1 thread", "layers: float32, 1 thread"]


def test_who_is_not_installed_is_no_failure():
    missing = replace(FAILED, contender="haste", cell="LSTM", status="not installed: no haste")
    text = shown([row(), missing])
    assert "haste is not installed: no haste" in text
    assert "haste on tiny" not in text


def test_a_noisy_run_says_so():
    text = shown([row(ratio_low=2.0, ratio_high=4.0), row(case="other")])
    assert "33%" in text
    assert "A noisy run: in 1 of 2 rows" in text
    assert "± 33%" in tables.markdown([(row(ratio_low=2.0, ratio_high=4.0), FACTS)])


# --- Tables in Markdown -----------------------------------------------------------------------


def test_the_markdown_table():
    rows = [row(), row(BASELINE.name, ms=6.0, ratio=1.0), row(mode="training", ms=0.125), FAILED]
    table = tables.markdown([(one, FACTS) for one in rows])
    assert "| tiny (9, 3, 4, 5, 2) | LSTM | 2.00 | 6.00 | 3.00x | 0.125 | – | 3.00x |" in table
    assert "| tiny (9, 3, 4, 5, 2) | GRU | wrong | – | – | – | – | – |" in table
    assert "| *geometric mean* | LSTM |  |  | **3.00x** |  |  | **3.00x** |" in table
    assert "A CPU (R), 2 cores, avx2; fastrnn 1.0 (abc), torch 2.13.0" in table


def test_a_table_of_rows_that_are_older_says_so():
    old = replace(FACTS, commit="01d", date="2026-01-01")
    text = tables.markdown([(row(threads=2), old), (row(), FACTS)])
    assert "fastrnn 1.0 (abc), torch 2.13.0, Python 3.11.7, 2026-01-02." in text
    assert "**float32, 1 thread**\n" in text
    assert "**float32, 2 threads** (01d, 2026-01-01)\n" in text
    mixed = tables.markdown([(row(case="b"), old), (row(), FACTS)])
    assert "**float32, 1 thread** (01d, 2026-01-01; abc, 2026-01-02)\n" in mixed


def test_the_markdown_table_says_what_is_special_in_a_case():
    table = tables.markdown([(row(directions=2), FACTS), (row(case="p", proj_size=2), FACTS)])
    assert "| tiny (9, 3, 4, 5, 2 bi) |" in table and "| p (9, 3, 4, 5, 2 proj 2) |" in table


def test_the_markdown_table_with_other_libraries():
    rows = [row(), row(BASELINE.name, ms=6.0, ratio=1.0), row("peer", ms=4.0, ratio=1.5)]
    table = tables.markdown([(one, FACTS) for one in rows])
    assert "| inference: fastrnn | torch.nn | peer | ratio |" in table
    assert "| LSTM | 2.00 | 6.00 | 4.00 | 3.00x |" in table
    assert "| *geometric mean* | LSTM |  |  | 1.50x | **3.00x** |" in table


def test_results_have_a_section_for_each_suite():
    latency = row("fastrnn step", suite="stream", ms=0.002, ms_p99=0.003, ms_p999=0.0045)
    rows = [(latency, FACTS), (row(), FACTS), (row(suite="of old"), FACTS)]
    text = readme.page([rows, rows])
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## Where it is not faster", "## cpu", "## stream", "## of old"]
    assert text.count("| LSTM | inference | fastrnn step | 2.00 | 3.00 | 4.50 | 3.00x |") == 2


# --- Comparison -------------------------------------------------------------------------------


def test_changes_are_told_from_noise():
    before = [row(), row(case="b"), row(case="c"), row(case="gone"), row(BASELINE.name, ratio=1.0)]
    after = [
        row(ratio=3.3, ratio_low=3.2, ratio_high=3.4),
        row(case="b", ratio=3.3, ratio_low=3.0, ratio_high=3.6),
        row(case="c", ratio=2.0, ratio_low=1.9, ratio_high=2.1),
        row(case="new"),
        row(BASELINE.name, ratio=1.0),
        replace(FAILED, case="b"),
    ]
    found = compare.changes(before, after)
    verdicts = [(change.after.case, change.verdict) for change in found]
    assert verdicts == [("tiny", "faster"), ("b", "same"), ("c", "slower")]
    assert found[0].factor == pytest.approx(1.1)
    console = Console(file=io.StringIO(), width=120)
    console.print(compare.table(found, "since then"))
    assert "+10%" in console.file.getvalue() and "-33%" in console.file.getvalue()


def test_ratios_to_different_baselines_are_not_compared():
    assert compare.changes([row()], [row(baseline="fastrnn@HEAD")]) == []


def test_the_readme_of_the_suite_lists_its_files_and_suites():
    """bench/README.md has a line for every file of code beside it."""
    folder = Path(results.__file__).parent
    text = (folder / "README.md").read_text()
    for path in [*folder.glob("*.py"), *folder.glob("*.c"), *folder.glob("*.html")]:
        if path.name != "__init__.py":
            assert f"`{path.name}`" in text, path.name
    for name in SUITES:
        assert re.search(rf"^\|.*`{name}`.*\|.*\|$", text, re.M), name
