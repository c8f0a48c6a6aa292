"""What the tests of the benchmark suite share: a tiny case, a clock that is set by hand, contenders
that are wrong or slow on purpose, rows that nobody measured."""

from collections.abc import Callable
from dataclasses import replace

from bench import results
from bench.cases import Case, Spec
from bench.contenders import BASELINE, OURS, Contender, flatten
from bench.facts import Facts
from bench.problems import Problem

TINY = Case("tiny", 9, 3, 4, 5, 2, "nobody")
PROJECTED = replace(TINY, proj_size=2)
PACKED = replace(TINY, N=4, job="packed", shortest=1 / 3)
SPEC = Spec(TINY, "LSTM", "training")
FACTS = Facts(
    "1.0", "abc", "123", "2.13.0", "3.11.7", "A CPU (R)", 2, "avx2", 70.5, "2026-01-02",
    fma_gflops=100.0, cache_gbs=80.0, memory_gbs=20.0, peers="peer 2.0",
)  # fmt: skip


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

    def taking(self, name: str, *seconds: float, contender: Contender = BASELINE) -> Contender:
        """`contender`, whose calls take `seconds`, one after the other and again from the first."""

        def prepare(problem: Problem):
            call, calls = contender.prepare(problem), iter(range(10**9))

            def slow():
                self.now += seconds[next(calls) % len(seconds)]
                return call()

            return slow

        return Contender(name, prepare)


def row(contender: str = OURS.name, **changes) -> results.Row:
    numbers = {"turns": 9, "ms": 2.0, "ms_low": 1.9, "ms_high": 2.1, "gflops": 40.0}
    numbers |= {"ratio": 3.0, "ratio_low": 2.9, "ratio_high": 3.1}
    place = ("tiny", 9, 3, 4, 5, 2, "LSTM", "inference", "float32", 1)
    return replace(results.Row(*place, contender, "ok", **numbers), **changes)


FAILED = row(
    cell="GRU", status="wrong: output, by 3e-1", turns=0, ms=None, ms_low=None, ms_high=None,
    ratio=None, ratio_low=None, ratio_high=None, gflops=None,
)  # fmt: skip
