"""Time every schedule of our kernels for GPUs beside torch.nn: where `choice.FASTER` and the rates
of `choose.h` come from.

    python -m bench.plans --out FILE.csv [--seconds 600] [--workers 12]
    python -m bench.plans --table FILE.csv      # what bench/RESULTS.md shows of the rows

A layer of one direction, input as wide as h, over a grid of hidden sizes and batches. Each schedule
is called as it is and replayed from a CUDA graph, verified and timed as in every suite. The grid is
in the order of its value and ends when the time does. Triton's kernels are compiled before, by
several processes at once.
"""

import argparse
import contextlib
import importlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bench import cuda, facts, series
from bench.cases import CELLS, Case, Spec
from bench.contenders import BASELINE, Contender, graph
from bench.jobs import forced
from bench.problems import make_problem
from bench.results import Record, load

STEPS = 100
DTYPES = ("bfloat16", "tf32", "float16", "float32")
HIDDEN = (256, 512, 1024, 128, 2048)
BATCH = (64, 16, 1, 256, 1024)
MODES = ("inference", "training")
SAMPLING = 0.2  # seconds of the calls of a spec that are timed


def specs() -> list[Spec]:
    """The grid; RNN and float32 last, for they are what fewest train on a GPU."""
    late = {"RNN": 2, "float32": 1}
    grid = [
        Spec(Case(f"H={H} N={N}", STEPS, N, H, H, 1, "the grid"), cell, mode, dtype, device="cuda")
        for N, H, dtype, cell, mode in itertools.product(BATCH, HIDDEN, DTYPES, CELLS, MODES)
    ]
    far = {H: HIDDEN.index(H) > 3 for H in HIDDEN}
    grid.sort(key=lambda s: (late.get(s.cell, 0) + late.get(s.dtype, 0), far[s.case.hidden_size]))
    return grid


SCHEDULES = ("stepwise", "library", "persistent")


def scheduled(schedule: str) -> Contender:
    """The CUDA C++ kernels in this schedule, whatever `choose.h` says. The persistent one raises
    where it cannot run a layer."""
    ours = forced("cuda")

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with ours.around():
            launch = importlib.import_module("fastrnn.dispatch.cuda.launch")
            before, launch.schedule = launch.schedule, schedule
            try:
                yield
            finally:
                launch.schedule = before

    return replace(ours, name=f"{ours.name} {schedule}", around=around)


PLAIN = (BASELINE, *map(scheduled, SCHEDULES), forced("cuda"), forced("triton"))
CONTENDERS = (*PLAIN, *map(graph, PLAIN))


def warm(part: int, parts: int) -> None:
    """Compiles Triton's kernels for every `parts`th cell, dtype and hidden size from `part`, of
    which the batches often share them."""
    groups: dict[tuple, list[Spec]] = {}
    for spec in specs():
        groups.setdefault((spec.cell, spec.dtype, spec.case.hidden_size), []).append(spec)
    triton = forced("triton")
    for group in itertools.islice(groups, part, None, parts):
        for spec in groups[group]:
            cuda.allow_tf32(spec.dtype == "tf32")
            with contextlib.suppress(RuntimeError), triton.around():
                triton.prepare(make_problem(spec))()
                torch.cuda.synchronize()
        print(group, flush=True)


def table(records: Iterable[Record]) -> str:
    """Markdown: how many times faster than torch.nn, as it is and from a graph, the better of the
    two schedules that `choose.h` knows."""
    found: dict[tuple, dict[str, float]] = {}
    for row, _ in records:
        if row.ms:
            key = row.mode, row.dtype, row.cell, row.N, row.hidden_size
            found.setdefault(key, {})[row.contender] = row.ms

    def ratio(rows: dict[str, float], suffix: str) -> str:
        names = (scheduled(schedule).name + suffix for schedule in SCHEDULES[:2])
        ours, theirs = [rows[name] for name in names if name in rows], BASELINE.name + suffix
        return f"{rows[theirs] / min(ours):.1f}" if ours and theirs in rows else "-"

    hidden = sorted({key[-1] for key in found})
    lines = ["| mode | precision | cell | N | " + " | ".join(f"H = {H}" for H in hidden) + " |"]
    lines.append("|---" * (4 + len(hidden)) + "|")
    for place in itertools.product(MODES, DTYPES, CELLS):
        for N in sorted({key[3] for key in found if key[:3] == place}):
            sizes = [found.get((*place, N, H), {}) for H in hidden]
            cells = [f"{ratio(rows, '')} / {ratio(rows, ' graph')}" for rows in sizes]
            lines.append(f"| {' | '.join(place)} | {N} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="time, and write the rows there")
    what.add_argument("--table", type=Path, metavar="FILE", help="show these rows")
    parser.add_argument("--seconds", type=float, default=600, help="in all (%(default)s)")
    parser.add_argument("--compile", type=float, default=40, help="of which for Triton")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--warm", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.table:
        print(table(load(chosen.table)))
        return
    if chosen.warm is not None:
        warm(chosen.warm, chosen.workers)
        return
    begun = time.monotonic()
    command = [sys.executable, "-m", "bench.plans", "--out", "-", f"--workers={chosen.workers}"]
    children = [subprocess.Popen([*command, f"--warm={k}"]) for k in range(chosen.workers)]
    for child in children:
        try:
            child.wait(max(0.1, chosen.compile - (time.monotonic() - begun)))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    print(f"compiled for {time.monotonic() - begun:.0f} s", flush=True)
    series.run(
        specs(),
        lambda spec: series.rows_of(spec, CONTENDERS, SAMPLING, suite="plans"),
        facts=facts.gather(device="cuda"),
        path=chosen.out,
        until=begun + chosen.seconds,
    )


if __name__ == "__main__":
    main()
