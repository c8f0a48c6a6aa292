"""How it is timed: interleaved samples, and what is read off them.

A machine's speed drifts while a benchmark runs (clock, temperature, neighbours). So contenders take
turns, a sample each, and a ratio is taken within each turn, where the drift is the same for both;
the median over the turns is what is reported, the quartiles say how far to trust it.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch

Clock = Callable[[], float]

SAMPLE_SECONDS = 0.005  # a sample repeats the call until it is about this long
FEWEST_TURNS, MOST_TURNS = 3, 100
NOISY = 0.10  # a half-width of the quartiles beyond this share of the median is called noisy


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @property
    def relative(self) -> float:
        """Half the distance of the quartiles as a share of the median."""
        return (self.high - self.low) / 2 / self.median


def spread(values: Sequence[float]) -> Spread:
    """ValueError if there is no value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(baseline: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times faster `other` is than `baseline`, turn by turn."""
    return spread([b / o for b, o in zip(baseline, other, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection would fall into one contender's sample or another's by chance."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def sample(call: Callable[[], object], repeats: int, clock: Clock = time.perf_counter) -> float:
    """Seconds a call, averaged over `repeats` calls."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def latencies(
    call: Callable[[], object], repeats: int, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of each of `repeats` calls."""
    times = [clock()]
    for _ in range(repeats):
        call()
        times.append(clock())
    return [after - before for before, after in pairwise(times)]


def warm_up(take: Callable[[], float], already: float = 0.0) -> float:
    """Call until times have settled, for as long as ten samples take. `take` calls once and gives
    the seconds. Returns those of the fastest call. `already` are those of a call before, if there
    was one; a long one is enough."""
    fastest, spent, calls = already or math.inf, already, 0
    while fastest == math.inf or (spent < 10 * SAMPLE_SECONDS and calls < 1000):
        seconds = take()
        fastest, spent, calls = min(fastest, seconds), spent + seconds, calls + 1
    return fastest


Turn = list[float]  # seconds of a call: one mean over the calls of the turn, or all of them
Sampler = Callable[[int], Turn]  # number of calls -> their seconds


def alternate(
    samplers: Mapping[str, Sampler], estimates: Mapping[str, float], seconds: float
) -> dict[str, list[Turn]]:
    """Samples of each contender, one of each a turn, until `seconds` are used up.

    `estimates` are the seconds that a call takes. The order is reversed every other turn, so that
    none is always the one that finds the other's data in the caches.
    """
    repeats = {
        name: max(1, math.ceil(SAMPLE_SECONDS / max(estimates[name], 1e-9))) for name in samplers
    }
    taken: dict[str, list[Turn]] = {name: [] for name in samplers}
    order, spent, turns = list(samplers), 0.0, 0
    while turns < FEWEST_TURNS or (spent < seconds and turns < MOST_TURNS):
        for name in order:
            taken[name].append(samplers[name](repeats[name]))
            spent += statistics.fmean(taken[name][-1]) * repeats[name]
        order.reverse()
        turns += 1
    return taken


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
