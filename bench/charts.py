"""What the plots show, as numbers: drawn in plots.py."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from bench.cases import BYTES, gates_of, recurrent
from bench.facts import Facts
from bench.report import Line, contenders, lines
from bench.results import Record, Row
from bench.suites import SCALING

# Okabe & Ito's palette, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
AXES = {"T": "time steps T", "N": "batch N", "H": "hidden and input size H"}


@dataclass(frozen=True)
class Series:
    name: str
    x: tuple
    y: tuple[float, ...]
    low: tuple[float, ...] = ()  # quartiles, where there are any
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()  # of the points
    colour: str = COLOURS[0]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """`kind` is bars (x are names, y starts at 0, with a line at 1), lines or roofline (both
    logarithmic; of a roofline, dashed series are lines and others points)."""

    name: str  # of the file
    suite: str
    title: str
    kind: str
    x: str
    y: str
    series: tuple[Series, ...]


def charts(records: list[Record]) -> list[Chart]:
    """Those that the rows of one machine have something for."""
    if not records:
        return []
    facts = records[-1][1]
    rows = [row for row, _ in records]
    scaling = {case.name for case in SCALING}
    found = lines(row for row in rows if row.case not in scaling)
    steps = lines(row for row in rows if row.case in scaling)
    return [*bars(found), *axes(steps), *rooflines(found, facts)]


def summary(records: list[Record]) -> list[Chart]:
    """What the README shows: inference and training of the suite `cpu` on one thread."""
    names = [f"cpu-{mode}-float32-1-thread" for mode in ("inference", "training")]
    found = {chart.name: chart for chart in charts(records)}
    return [found[name] for name in names if name in found]


def setting(row: Row) -> tuple[str, str]:
    """For the name of a file, and for a title."""
    where = row.device if row.device != "cpu" else f"{row.threads} thread"
    where += "s" if row.device == "cpu" and row.threads > 1 else ""
    name = f"{row.mode}-{row.dtype}-{where.replace(' ', '-')}"
    return name, f"{row.mode}, {row.dtype}, {where}"


def grouped(some: list[Line], key) -> Iterator[tuple]:
    ordered = sorted(some, key=lambda line: str(key(line)))
    for found, part in groupby(ordered, key):
        yield found, sorted(part, key=some.index)


def bars(some: list[Line]) -> Iterator[Chart]:
    """How many times faster than the baseline: a chart for each suite, baseline, mode, dtype and
    threads. Of plain lines a bar for each cell; of others a bar for each contender."""
    for (suite, to, (name, title)), part in grouped(
        some, lambda line: (line.ours.suite, line.ours.baseline, setting(line.ours))
    ):
        to_name = "" if to == "torch.nn" else re.sub(r"\W+", "-", to) + "-"
        if part[0].plain:
            cells = list(dict.fromkeys(line.ours.cell for line in part))
            series = [
                bar(cell, [line.ours for line in part if line.ours.cell == cell], number)
                for number, cell in enumerate(cells)
            ]
        else:
            series = [
                bar(who, [line.rows[who] for line in part if who in line.rows], number, True)
                for number, who in enumerate(contenders(part))
            ]
        series = [one for one in series if one.x]
        if series:
            yield Chart(
                f"{suite}-{to_name}{name}",
                suite,
                f"{suite}: {title}",
                "bars",
                "case",
                f"times faster than {to}",
                tuple(series),
            )


def bar(name: str, rows: list[Row], number: int, with_cell: bool = False) -> Series:
    rows = [row for row in rows if row.ratio]
    return Series(
        name,
        tuple(f"{row.case} {row.cell}" if with_cell else row.case for row in rows),
        tuple(row.ratio for row in rows),
        tuple(row.ratio_low for row in rows),
        tuple(row.ratio_high for row in rows),
        tuple(f"{row.ms:.4g} ms" for row in rows),
        COLOURS[number % len(COLOURS)],
    )


def axes(some: list[Line]) -> Iterator[Chart]:
    """Time of a step, and memory, over T, N and H."""
    for (axis, cell, (name, title)), part in grouped(
        some, lambda line: (line.ours.case.partition("=")[0], line.ours.cell, setting(line.ours))
    ):
        title = f"{cell}: {title}"
        for what, label, value in (
            ("step", "µs a time step", lambda row: row.step_us),
            # Less than a quarter of a MiB cannot be told apart.
            ("memory", "peak of memory, MiB", lambda row: row.peak_mib and max(0.25, row.peak_mib)),
        ):
            series = [
                curve(who, [line.rows[who] for line in part if who in line.rows], value, number)
                for number, who in enumerate(contenders(part))
            ]
            series = [one for one in series if one.x]
            if series:
                file, suite = f"{what}-over-{axis}-{cell}-{name}", part[0].ours.suite
                yield Chart(file, suite, title, "lines", AXES[axis], label, tuple(series))


def curve(name: str, rows: list[Row], value: Callable, number: int) -> Series:
    points = sorted((int(row.case.partition("=")[2]), value(row)) for row in rows if value(row))
    x, y = zip(*points, strict=True) if points else ((), ())
    return Series(name, x, y, colour=COLOURS[number % len(COLOURS)])


def intensity(row: Row) -> float:
    """Operations for each byte of recurrent weights that a CPU has to read: a step reads them once,
    and the backward pass once more."""
    weights = recurrent(row, gates_of(row.cell)) * BYTES[row.dtype] * row.layers * row.directions
    read = row.T * weights * (2 if row.mode == "training" else 1)
    return row.gflops * row.ms * 1e6 / read


def rooflines(some: list[Line], facts: Facts) -> Iterator[Chart]:
    """Rate over intensity below what the machine allows, whose ceilings are of one thread."""
    if not (facts.fma_gflops and facts.cache_gbs and facts.memory_gbs):
        return
    fit = [line for line in some if line.ours.threads == 1 and line.ours.device == "cpu"]
    fit = [line for line in fit if line.ours.dtype == "float32" and line.plain]
    for (suite, (name, title)), part in grouped(
        fit, lambda line: (line.ours.suite, setting(line.ours))
    ):
        series = []
        for number, who in enumerate(contenders(part)):
            rows = [line.rows[who] for line in part if who in line.rows]
            rows = [row for row in rows if row.gflops]
            if rows:
                series.append(
                    Series(
                        who,
                        tuple(map(intensity, rows)),
                        tuple(row.gflops for row in rows),
                        labels=tuple(f"{row.case} {row.cell}" for row in rows),
                        colour=COLOURS[number % len(COLOURS)],
                    )
                )
        if not series:
            continue
        spots = [x for one in series for x in one.x]
        for label, rate in (("weights in cache", facts.cache_gbs), ("in memory", facts.memory_gbs)):
            ridge = facts.fma_gflops / rate
            x = (min(min(spots), ridge) / 2, ridge, 2 * max(*spots, ridge))
            y = tuple(min(facts.fma_gflops, rate * value) for value in x)
            series.append(Series(label, x, y, colour="#777777", dashed=True))
        yield Chart(
            f"{suite}-roofline-{name}",
            suite,
            f"{suite}, roofline: {title}",
            "roofline",
            "operations for each byte of recurrent weights",
            "GFLOP/s",
            tuple(series),
        )
