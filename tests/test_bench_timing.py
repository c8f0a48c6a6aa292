"""How the benchmark suite times: turns, ratios, spreads.

Clocks are injected: no test depends on how fast anything runs.
"""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from bench_doubles import SPEC, TINY, Clock, altered

from bench import ceilings, cuda, jobs, timing, verify
from bench.cases import Spec
from bench.contenders import BASELINE, OURS
from bench.jobs import find
from bench.measure import measure
from bench.results import Row
from bench.sessions import Local

# Sessions set the number of threads for their process, which here is that of the tests.
pytestmark = pytest.mark.usefixtures("one_thread")


def measured(clock: Clock, *entrants, seconds: float = 1.0, **options) -> dict[str, Row]:
    rows = measure(SPEC, {one.name: Local(one, clock) for one in entrants}, seconds, **options)
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
        return lambda repeats: [seconds * next(left)]

    estimates = {"ours": 0.02, "baseline": 0.03}
    samplers = {name: sampler(seconds) for name, seconds in estimates.items()}
    taken = timing.alternate(samplers, estimates, seconds=2)
    assert len(taken["ours"]) > 5
    baseline, ours = ([turn[0] for turn in taken[name]] for name in ("baseline", "ours"))
    assert timing.ratios(baseline, ours) == pytest.approx((1.5, 1.5, 1.5))


def test_the_median_stands_up_to_an_outlier():
    clock = Clock()
    entrants = clock.taking(OURS.name, *[0.01] * 9, 5.0), clock.taking(BASELINE.name, 0.02)
    assert measured(clock, *entrants, seconds=30)[OURS.name].ratio == pytest.approx(2)


def test_a_wrong_contender_is_not_timed_and_the_others_are():
    clock = Clock()
    wrong = replace(altered(lambda found: [found[0] * float("nan"), *found[1:]]), name=OURS.name)
    rows = measured(clock, wrong, clock.taking(BASELINE.name, 0.002))
    assert rows[OURS.name].status.startswith("wrong: output is off by nan")
    assert rows[OURS.name].ms is rows[OURS.name].ratio is None
    assert rows[BASELINE.name].ms == pytest.approx(2)


def test_a_row_knows_its_share_of_the_floor_and_its_peak_of_memory():
    clock = Clock()
    machine = ceilings.Ceilings(SPEC.flops() / 0.001, ((1 << 30, 1e15),))  # 1 ms at the least
    rows = measured(clock, clock.taking(BASELINE.name, 0.004), ceilings=machine, memory=True)
    row = rows[BASELINE.name]
    assert (row.floor_ms, row.percent) == pytest.approx((1, 25))
    assert row.peak_mib >= 0


def test_a_row_knows_its_variant():
    (row,) = measure(SPEC, {BASELINE.name: Local(BASELINE)}, 0)
    assert (row.proj_size, row.filled, row.directions) == (0, None, 1)
    case = replace(TINY, T=10, N=4, job="packed", proj_size=2)
    one = jobs.find("packed", "torch.nn")
    (row,) = measure(replace(SPEC, case=case), {one.name: Local(one)}, 0)
    assert (row.status, row.proj_size, row.filled) == ("ok", 2, 28 / 40)


def test_a_stream_shows_the_tails_of_its_latency():
    clock = Clock()
    case = replace(TINY, T=1, N=1, layers=1, job="step")
    spec = Spec(case, "GRU", "inference")
    ours = clock.taking("fastrnn", *[0.0001] * 98, 0.05, 0.01, contender=find("step", "torch.nn"))
    peer = clock.taking("torch.nn", 0.0002, contender=find("step", "torch.nn"))
    sessions = {one.name: Local(one, clock) for one in (ours, peer)}
    row = measure(spec, sessions, seconds=20)[0]
    assert row.ms == pytest.approx(0.1) and row.ratio == pytest.approx(2)
    assert (row.ms_p99, row.ms_p999) == pytest.approx((10, 50))
    few = measure(spec, {"fastrnn": Local(ours, clock)}, seconds=0)[0]
    assert few.ms_p99 and few.ms_p999 is None  # of too few calls


def test_percentiles():
    values = [float(value) for value in range(1000, 0, -1)]
    assert [timing.percentile(values, share) for share in (0.5, 0.99, 0.999, 1)] == [
        500, 990, 999, 1000,
    ]  # fmt: skip
    assert timing.percentile([3.0], 0.999) == 3


def test_a_long_call_is_not_made_again_to_warm_up(monkeypatch):
    monkeypatch.setitem(verify.MOST_FLOPS, "cpu", 1.0)
    clock = Clock()
    assert Local(clock.taking("slow", 2.0), clock).open(SPEC) == 2.0
    assert clock.now == 3 * 2.0  # twice with fewer steps, once with all


def test_contenders_take_turns_in_alternating_order():
    order = []

    def sampler(name: str, seconds: float):
        def take(repeats: int) -> timing.Turn:
            order.append((name, repeats))
            return [seconds]

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


def test_a_gpu_is_timed_by_events_around_each_call_with_a_cold_cache(monkeypatch):
    """With stand-ins for the events: what order things are put into the stream."""
    stream = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            stream.append(self)

        def elapsed_time(self, later) -> float:
            between = stream[stream.index(self) : stream.index(later)]
            return 3.0 * between.count("call") + 100.0 * between.count("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stream.append("wait"))
    monkeypatch.setattr(cuda, "eraser", lambda: Mock(zero_=lambda: stream.append("flush")))
    assert cuda.sample(lambda: stream.append("call"), 4) == pytest.approx(0.003)
    assert [one for one in stream if isinstance(one, str)] == ["flush", "call"] * 4 + ["wait"]
