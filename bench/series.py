"""A grid of specs in the order of their value, until the time is over; saved after each."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.cases import Spec
from bench.contenders import Contender
from bench.facts import Facts
from bench.jobs import baseline
from bench.measure import measure
from bench.results import Row, save
from bench.sessions import Local


def rows_of(
    spec: Spec, contenders: Sequence[Contender], seconds: float, *, suite: str, memory: bool = False
) -> list[Row]:
    """The rows of the contenders that take `spec`, which are timed in turns for so long."""
    sessions = {one.name: Local(one) for one in contenders if one.takes(spec)}
    first = baseline(spec.case.job).name
    return measure(spec, sessions, seconds, baseline=first, memory=memory, suite=suite)


def run(
    specs: Sequence[Spec],
    rows: Callable[[Spec], list[Row]],
    *,
    facts: Facts,
    path: Path,
    until: float,
    start: int = 0,
) -> int:
    """Save the `rows` of the specs from number `start` on, as long as the monotonic clock is before
    `until`. Returns how many specs are left out."""
    for number, spec in enumerate(specs[start:], start):
        if time.monotonic() > until:
            print(f"out of time: {len(specs) - number} of {len(specs)} left out", flush=True)
            return len(specs) - number
        case = spec.case.name
        print(f"case {number} {case} {spec.cell} {spec.mode} {spec.dtype}", flush=True)
        found = rows(spec)
        save(found, facts, path)
        for row in found:
            took = "" if row.ms is None else f" {row.ms:.4g} ms, {row.step_us:.4g} us a step"
            print(f"  {row.contender}: {row.status}{took}", flush=True)
    return 0
