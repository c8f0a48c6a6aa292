"""The benchmark suite: a wrong contender is caught, a slow one gets its ratio, results survive the
file and reach the README. Clocks are injected: no test depends on how fast anything runs."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe

import pytest
import torch
from rich.console import Console

from bench import __main__ as command
from bench import contenders, report, results, sessions, timing
from bench.cases import CASES, CELLS, MODES, STEPS, SUITES, Case, Spec, Suite, select
from bench.contenders import BASELINE, OURS, Contender, Problem, WrongResult, flatten, verified
from bench.measure import measure
from bench.sessions import Local, Remote, Unfit, serve

TINY = Case("tiny", 9, 3, 4, 5, 2, "nobody")
SPEC = Spec(TINY, "LSTM", "training")
FACTS = results.Facts(
    "1.0", "abc", "123", "2.13.0", "3.11.7", "A CPU (R)", 2, "avx2", 70.5, "2026-01-02"
)


@pytest.fixture(autouse=True)
def one_thread():
    """Sessions set the number of threads for their process, which here is that of the tests."""
    with timing.torch_threads(1):
        yield


def altered(change: Callable[[list], list], since_call: int = 0) -> Contender:
    """torch.nn, whose results go through `change` from its call number `since_call` on."""

    def prepare(problem: Problem):
        call, calls = BASELINE.prepare(problem), iter(range(10**9))
        return lambda: (change if next(calls) >= since_call else list)(flatten(call()))

    return Contender("altered", prepare)


class Clock:
    """Seconds that pass only when somebody lets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, *seconds: float) -> Contender:
        """torch.nn, whose calls take `seconds`, one after the other and again from the first."""

        def prepare(problem: Problem):
            call, calls = BASELINE.prepare(problem), iter(range(10**9))

            def slow():
                self.now += seconds[next(calls) % len(seconds)]
                return call()

            return slow

        return Contender(name, prepare)


# --- Cases ------------------------------------------------------------------------------------


def test_the_quick_suite_has_every_case_cell_and_mode_once_on_one_thread():
    specs = select(SUITES["quick"], cores=2)
    assert len(specs) == len(set(specs)) == len(CASES) * len(CELLS) * len(MODES)
    assert {spec.threads for spec in specs} == {1}
    assert {"stream", "vad", "rnnoise", "text", "rl", "ts", "lm", "big"} == {c.name for c in CASES}
    assert all(case.user for case in CASES)


def test_the_cpu_suite_also_takes_all_cores():
    assert {spec.threads for spec in select(SUITES["cpu"], cores=6)} == {1, 6}
    assert {spec.threads for spec in select(SUITES["cpu"], cores=1)} == {1}


def test_a_selection_can_be_narrowed():
    specs = select(
        SUITES["quick"], cores=2, names="t,vad", cells=("GRU",), modes=("training",), threads=(3,)
    )
    assert [spec.case.name for spec in specs] == ["stream", "vad", "text", "ts"]
    assert {(spec.cell, spec.mode, spec.threads) for spec in specs} == {("GRU", "training", 3)}
    assert select(SUITES["quick"], cores=2, names="nothing") == []


def test_flops_count_the_products_of_every_layer():
    text = next(case for case in CASES if case.name == "text")
    forward = 2 * 100 * 32 * 4 * 256 * (128 + 256)
    assert Spec(text, "LSTM", "inference").flops() == forward
    assert Spec(text, "LSTM", "training").flops() == 3 * forward
    assert Spec(TINY, "GRU", "inference").flops() == 2 * 9 * 3 * 3 * 5 * ((4 + 5) + (5 + 5))


def test_a_shortened_spec_keeps_everything_but_the_steps():
    big = Spec(next(case for case in CASES if case.name == "big"), "GRU", "inference")
    half = big.within(big.flops() / 2)
    assert half == replace(big, case=replace(big.case, T=25))
    assert big.within(1).case.T == 8
    assert big.within(1e15) == big


# --- Verification -----------------------------------------------------------------------------


def test_the_suite_of_overheads():
    """Layers and cells, each verified against its counterpart in torch.nn."""
    specs = select(SUITES["overhead"], cores=2)
    assert len(specs) == len(CELLS + STEPS) * len(MODES)
    assert {(spec.case.T, spec.case.hidden_size) for spec in specs} == {(1, 8)}
    for spec in specs:
        verified(OURS, spec)
    wrong = altered(lambda results: [2 * results[0], *results[1:]])
    for spec in specs:
        with pytest.raises(WrongResult):
            verified(wrong, spec)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("contender", [OURS, BASELINE], ids=lambda contender: contender.name)
def test_both_libraries_are_found_right(contender, cell, mode, dtype):
    spec = Spec(TINY, cell, mode, dtype)
    call, _ = verified(contender, spec)
    assert len(flatten(call())) == len(contenders.make_problem(spec).names())


def test_gradients_that_are_zero_are_right_where_they_have_to_be():
    one_step = replace(TINY, T=1)  # from a state of zeros: weight_hh has no gradient
    verified(OURS, Spec(one_step, "GRU", "training"))


WRONG = {
    "every number a little off": lambda found: [one * 1.001 for one in found],
    "one number of the last gradient": lambda found: found[:-1] + [found[-1] + torch.eye(20)[3]],
    "not a number": lambda found: [found[0] * float("nan"), *found[1:]],
    "a missing gradient": lambda found: found[:-1],
    "another shape": lambda found: [found[0].transpose(0, 1), *found[1:]],
    "swapped states": lambda found: [found[0], found[2], found[1], *found[3:]],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_wrong_numbers_are_caught(change):
    with pytest.raises(WrongResult):
        verified(altered(change), SPEC)


def test_wrong_numbers_of_a_second_call_are_caught():
    with pytest.raises(WrongResult, match="output"):
        verified(altered(WRONG["every number a little off"], since_call=1), SPEC)


def test_numbers_that_are_wrong_only_with_all_time_steps_are_caught(monkeypatch):
    monkeypatch.setattr(contenders, "MOST_FLOPS", 1.0)
    late = altered(lambda found: [found[0] * (1 + 0.1 * (found[0].shape[0] > 8)), *found[1:]])
    with pytest.raises(WrongResult, match="output"):
        verified(late, SPEC)
    verified(BASELINE, SPEC)


def test_unfit_says_why():
    def raising(error: Exception) -> Contender:
        def prepare(problem):
            raise error

        return Contender("raising", prepare)

    for contender, reason in {
        raising(ImportError("No module named 'peer'")): "not installed: No module named 'peer'",
        raising(ValueError("bad shape\nand more")): "failed: ValueError: bad shape",
        altered(WRONG["a missing gradient"]): "wrong: ",
    }.items():
        with pytest.raises(Unfit, match=f"^{reason}"):
            Local(contender).open(SPEC)


# --- Timing -----------------------------------------------------------------------------------


def measured(clock: Clock, *entrants: Contender, seconds: float = 1.0) -> dict[str, results.Row]:
    rows = measure(SPEC, {one.name: Local(one, clock) for one in entrants}, seconds)
    return {row.contender: row for row in rows}


def test_a_slowed_down_contender_shows_its_ratio():
    clock = Clock()
    rows = measured(clock, clock.taking(OURS.name, 0.006), clock.taking(BASELINE.name, 0.002))
    ours, torchs = rows[OURS.name], rows[BASELINE.name]
    assert (ours.ms, torchs.ms) == pytest.approx((6, 2))
    assert (ours.ratio, torchs.ratio) == pytest.approx((1 / 3, 1))
    assert ours.gflops == pytest.approx(SPEC.flops() / 6e6)
    assert ours.status == torchs.status == "ok"


def test_a_ratio_is_taken_within_each_turn():
    """The machine becomes ten times slower now and then, for everybody."""
    speeds = [1, 10, 1, 1, 10, 1, 10, 1, 1, 10] * 3

    def sampler(seconds: float):
        left = iter(speeds)
        return lambda repeats: seconds * next(left)

    estimates = {"ours": 0.02, "baseline": 0.03}
    samplers = {name: sampler(seconds) for name, seconds in estimates.items()}
    taken = timing.alternate(samplers, estimates, seconds=2)
    assert len(taken["ours"]) > 5
    assert timing.ratios(taken["baseline"], taken["ours"]) == pytest.approx((1.5, 1.5, 1.5))


def test_the_median_stands_up_to_an_outlier():
    clock = Clock()
    entrants = clock.taking(OURS.name, *[0.01] * 9, 5.0), clock.taking(BASELINE.name, 0.02)
    assert measured(clock, *entrants, seconds=30)[OURS.name].ratio == pytest.approx(2)


def test_a_wrong_contender_is_not_timed_and_the_others_are():
    clock = Clock()
    wrong = replace(altered(WRONG["not a number"]), name=OURS.name)
    rows = measured(clock, wrong, clock.taking(BASELINE.name, 0.002))
    assert rows[OURS.name].status.startswith("wrong: output is off by nan")
    assert rows[OURS.name].ms is rows[OURS.name].ratio is None
    assert rows[BASELINE.name].ms == pytest.approx(2)


def test_a_long_call_is_not_made_again_to_warm_up(monkeypatch):
    monkeypatch.setattr(contenders, "MOST_FLOPS", 1.0)
    clock = Clock()
    assert Local(clock.taking("slow", 2.0), clock).open(SPEC) == 2.0
    assert clock.now == 3 * 2.0  # twice with fewer steps, once with all


def test_contenders_take_turns_in_alternating_order():
    order = []

    def sampler(name: str, seconds: float):
        def take(repeats: int) -> float:
            order.append((name, repeats))
            return seconds

        return take

    samplers = {"a": sampler("a", 0.001), "b": sampler("b", 1.0)}
    taken = timing.alternate(samplers, {"a": 0.001, "b": 1.0}, seconds=0.1)
    once, many = ("b", 1), ("a", 5)
    assert order == [many, once, once, many, many, once]
    assert [len(samples) for samples in taken.values()] == [timing.FEWEST_TURNS] * 2
    taken = timing.alternate(samplers, {"a": 0.001, "b": 1.0}, seconds=10)
    assert len(taken["a"]) == 10


def test_spread_of_one_sample_and_of_many():
    assert timing.spread([3.0]) == (3, 3, 3)
    many = timing.spread([float(value) for value in range(1, 102)])
    assert many == (26, 51, 76)
    assert many.relative == pytest.approx(25 / 51)


def test_another_process_answers_as_this_one_does(monkeypatch):
    entrants = (replace(altered(WRONG["a missing gradient"]), name="wrong"), BASELINE)
    monkeypatch.setattr(sessions, "CONTENDERS", entrants)
    for contender in entrants:
        mine, theirs = Pipe()
        server = threading.Thread(target=serve, args=(theirs, contender.name))
        server.start()
        mine.send(("open", SPEC))
        reply = mine.recv()
        if contender is BASELINE:
            assert reply > 0
            mine.send(("sample", 2))
            assert mine.recv() > 0
        else:
            assert reply.startswith("wrong: ")
        mine.close()
        server.join()


def test_a_contender_in_a_process_of_its_own():
    session = Remote(BASELINE)
    spec = replace(SPEC, threads=2)
    assert measure(spec, {BASELINE.name: session}, seconds=0.01)[0].status == "ok"
    session.process.kill()
    with pytest.raises(Unfit, match="its process died"):
        session.open(spec)
    session.close()


# --- Results and reports ----------------------------------------------------------------------


def row(contender: str = OURS.name, **changes) -> results.Row:
    numbers = {"turns": 9, "ms": 2.0, "ms_low": 1.9, "ms_high": 2.1, "gflops": 40.0}
    numbers |= {"ratio": 3.0, "ratio_low": 2.9, "ratio_high": 3.1}
    place = ("tiny", 9, 3, 4, 5, 2, "LSTM", "inference", "float32", 1)
    return replace(results.Row(*place, contender, "ok", **numbers), **changes)


FAILED = row(
    cell="GRU", status="wrong: output, by 3e-1", turns=0, ms=None, ms_low=None, ms_high=None,
    ratio=None, ratio_low=None, ratio_high=None, gflops=None,
)  # fmt: skip


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "new" / "machine.csv"
    rows = [row(), row(BASELINE.name, ratio=1.0), FAILED]
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


def test_facts_of_this_machine():
    facts = results.gather(12.34)
    assert facts.mm_gflops == 12.3
    assert facts.torch == torch.__version__
    assert facts.isa in facts.machine()
    assert FACTS.machine() == "a-cpu-r-avx2-2-cores"


def shown(rows: list[results.Row]) -> str:
    console = Console(file=io.StringIO(), width=120)
    report.show(rows, FACTS, console)
    return console.file.getvalue()


def test_the_terminal_table():
    slower = {"case": "other", "ratio": 0.75, "ratio_low": 0.7, "ratio_high": 0.8}
    text = shown([row(), row(BASELINE.name, ms=6.0, ratio=1.0), row(**slower), FAILED])
    assert "fastrnn ms" in text and "torch.nn ms" in text
    assert "2.00" in text and "6.00" in text and "3.00x" in text and "0.75x" in text
    assert "1.50x" in text  # the geometric mean of 3 and 0.75
    assert "fastrnn on tiny GRU inference: wrong: output, by 3e-1" in text
    assert "noisy" not in text


def test_a_noisy_run_says_so():
    text = shown([row(ratio_low=2.0, ratio_high=4.0), row(case="other")])
    assert "33%" in text
    assert "A noisy run: in 1 of 2 rows" in text
    assert "± 33%" in report.markdown([(row(ratio_low=2.0, ratio_high=4.0), FACTS)])


def test_the_readme_table():
    rows = [row(), row(BASELINE.name, ms=6.0, ratio=1.0), row(mode="training", ms=0.125), FAILED]
    table = report.markdown([(one, FACTS) for one in rows])
    assert "| tiny (9, 3, 4, 5, 2) | LSTM | 2.00 | 6.00 | 3.00x | 0.125 | – | 3.00x |" in table
    assert "| tiny (9, 3, 4, 5, 2) | GRU | wrong | – | – | – | – | – |" in table
    assert "| *geometric mean* | LSTM |  |  | **3.00x** |  |  | **3.00x** |" in table
    assert "A CPU (R), 2 cores, avx2; fastrnn 1.0 (abc), torch 2.13.0" in table


def test_the_table_goes_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\ntail\n")
    for _ in range(2):  # a second time changes nothing
        report.rewrite(readme, [[(row(), FACTS)]])
        text = readme.read_text()
        assert text.startswith(f"# Title\n\n{report.BEGIN}\nA CPU (R)")
        assert text.endswith(f"|\n{report.END}\n\ntail\n")
        assert "old" not in text and text.count("geometric mean") == 1


@pytest.mark.parametrize("text", ["none", report.BEGIN, report.END + report.BEGIN])
def test_a_readme_without_the_markers_is_left_alone(text):
    with pytest.raises(ValueError, match="bench:begin"):
        report.replace_between_markers(text, "table")


# --- Command line -----------------------------------------------------------------------------


def test_listing(capsys):
    assert command.main(["--list", "--filter", "vad,lm", "--cells", "gru"]) == 0
    text = capsys.readouterr().out
    assert "4 rows: GRU; inference training; threads: 1" in text
    assert "voice activity" in text and "rnnoise" not in text


@pytest.mark.parametrize("words", [["--cells", "lstn"], ["--threads", "0"], ["--suite", "all"]])
def test_a_misspelt_option_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        command.main(words)
    assert words[0] in capsys.readouterr().err


def test_a_filter_that_matches_nothing_is_an_error():
    assert command.main(["--filter", "nothing"]) == 2


def test_run_save_and_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(command.SUITES, "quick", Suite("tiny", (TINY,), (1,), 0.01))
    monkeypatch.setattr(command, "matrix_rate", lambda: 50.0)
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert command.main(["report", "--readme", str(readme)]) == 2  # nothing to report yet
    assert command.main(["--cells", "LSTM,GRU", "--modes", "training", "--save"]) == 0
    assert "mean" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.csv")
    assert len(results.load(path)) == 4
    assert command.main(["report", "--readme", str(readme)]) == 0
    assert "| tiny (9, 3, 4, 5, 2) | GRU |" in readme.read_text()


def test_a_contender_is_left_out_of_modes_it_does_not_have(monkeypatch):
    monkeypatch.setitem(command.SUITES, "quick", Suite("tiny", (TINY,), (1,), 0.01))
    infers = Contender("peer", BASELINE.prepare, modes=("inference",))
    monkeypatch.setattr(command, "CONTENDERS", (OURS, BASELINE, infers))
    specs = select(command.SUITES["quick"], cores=2, cells=("GRU",))
    rows = command.run(specs, 0.01, Console(file=io.StringIO()))
    assert [(one.mode, one.contender) for one in rows if one.contender == "peer"] == [
        ("inference", "peer")
    ]
    assert "peer ms" in shown(rows)


def test_a_wrong_contender_makes_the_run_fail(monkeypatch, capsys):
    wrong = replace(altered(WRONG["not a number"]), name=OURS.name)
    monkeypatch.setitem(command.SUITES, "quick", Suite("tiny", (TINY,), (1,), 0.01))
    monkeypatch.setattr(command, "matrix_rate", lambda: 50.0)
    monkeypatch.setattr(command, "CONTENDERS", (wrong, BASELINE))
    assert command.main(["--cells", "RNN", "--modes", "inference"]) == 1
    assert "wrong: output is off by nan" in " ".join(capsys.readouterr().out.split())
