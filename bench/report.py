"""What is read in the terminal: coloured tables, made from rows."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.facts import Facts
from bench.results import OK, Row
from bench.sessions import MISSING
from bench.timing import NOISY, Spread, geometric_mean

SEEN = 1e-5  # an error below it is that of the sums
EVEN = 0.05  # a ratio within this of 1 is neither faster nor slower


class Line(NamedTuple):
    """The rows of one spec, by contender."""

    rows: dict[str, Row]

    @property
    def ours(self) -> Row:
        return next(row for name, row in self.rows.items() if name.startswith("fastrnn"))

    @property
    def noise(self) -> float:
        return noise(self.ours)

    @property
    def plain(self) -> bool:
        """Whether ours is `torch.nn` called the same way, so that modes fit side by side."""
        return self.ours.baseline == "torch.nn" and self.ours.ms_p99 is None

    @property
    def fastest(self) -> float:
        return min((row.ms for row in self.rows.values() if row.ms), default=0.0)


def noise(row: Row) -> float:
    """Half-width of the quartiles of the ratio."""
    return Spread(row.ratio_low, row.ratio, row.ratio_high).relative if row.ratio else 0.0


def lines(rows: Iterable[Row]) -> list[Line]:
    """One for each spec in which fastrnn took part, in the order of the rows. Contenders that are
    not installed are left out."""
    specs: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if not row.status.startswith(MISSING):
            specs.setdefault(row.key()[:-1], {})[row.contender] = row
    return [
        Line(contenders)
        for contenders in specs.values()
        if any(name.startswith("fastrnn") for name in contenders)
    ]


def setting(row: Row) -> str:
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return f"{row.dtype}, {row.device if row.device != 'cpu' else threads}"


def tables(all_lines: list[Line]) -> Iterator[tuple[str, list[Line]]]:
    """Title and lines of each table: one for each suite, dtype and number of threads, or device."""
    suites = list(dict.fromkeys(line.ours.suite for line in all_lines))

    def place(line: Line) -> tuple:
        ours = line.ours
        tails = ours.ms_p99 is not None
        where = ours.device, ours.dtype, ours.threads
        return suites.index(ours.suite), *where, not line.plain, tails

    for (suite, *_), group in groupby(sorted(all_lines, key=place), place):
        group = list(group)
        title = setting(group[0].ours)
        yield (f"{suites[suite]}: {title}" if len(suites) > 1 else title), group


def mean_ratio(some: Iterable[Line], name: str = "") -> float | None:
    """Of ours, or of the contender `name`."""
    rows = [line.rows.get(name) if name else line.ours for line in some]
    found = [row.ratio for row in rows if row and row.ratio]
    return geometric_mean(found) if found else None


def number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "–"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def show(rows: list[Row], facts: Facts, console: Console) -> None:
    """The coloured tables, with the geometric mean of the ratios below each cell and mode."""
    found = lines(rows)
    for title, group in tables(found):
        table = wide if group[0].plain else long
        console.print(table(title, group))
    console.print(machine(facts))
    for row in rows:
        if row.status != OK and not row.status.startswith(MISSING):
            place = f"{row.case} {row.cell} {row.mode}"
            console.print(f"[red]{row.contender}[/] on {place}: {row.status}")
    missing = {row.contender: row.status for row in rows if row.status.startswith(MISSING)}
    for contender, status in missing.items():
        console.print(f"[dim]{contender} is {status}")
    noisy = sum(line.noise > NOISY for line in found)
    if noisy:
        console.print(
            f"[yellow]A noisy run:[/] in {noisy} of {len(found)} rows the quartiles of the ratio "
            f"lie more than {NOISY:.0%} from its median. Run again while the machine is idle."
        )
    for text in growth(found):
        console.print(text)
    if found:
        console.print(
            "[dim]Milliseconds a call unless it says µs. Ratio: times faster than the baseline, "
            "± half the distance of its quartiles; floor: share of what the ceilings allow."
        )


def machine(facts: Facts) -> str:
    text = (
        f"[bold]fastrnn {facts.version}[/] ({facts.commit}, {facts.isa}), torch {facts.torch}; "
        f"{facts.gpu or facts.cpu}, {facts.cores} cores; "
        f"torch.mm {facts.mm_gflops:.0f} GFLOP/s on one thread"
    )
    if facts.fma_gflops:
        text += (
            f"; ceilings: {facts.fma_gflops:.0f} GFLOP/s, reading {facts.cache_gbs:.0f} GB/s from "
            f"the cache, {facts.memory_gbs:.0f} from memory"
        )
    return text


def growth(found: list[Line]) -> Iterator[str]:
    """Of ours in the suite `scaling`: whether a time step of a longer sequence costs more."""
    along = [line.ours for line in found if line.ours.suite == "scaling"]
    along = [row for row in along if row.case.startswith("T=") and row.ms]
    for place, part in groupby(along, lambda row: f"{row.cell} {row.mode}, {setting(row)}"):
        first, *rest = part
        steps = ", ".join(f"{row.case} {row.step_us / first.step_us:.2f}x" for row in rest)
        if rest:
            yield f"{place}: {number(first.step_us)} µs a time step at {first.case}; {steps}"


def contenders(group: list[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in group for name in line.rows))


def section(line: Line) -> tuple[str, str]:
    return line.ours.cell, line.ours.mode


def wide(title: str, group: list[Line]) -> Table:
    """A line for each spec, milliseconds of the contenders side by side, the fastest in bold."""
    names = contenders(group)
    table = empty(title, "case", *names, "ratio", "±", "floor")
    own = next(name for name in names if name.startswith("fastrnn"))
    for (cell, mode), part in groupby(group, section):
        part = list(part)
        table.add_row(f"[bold]{cell} {mode}")
        for line in part:
            table.add_row(
                line.ours.case,
                *(milliseconds(line.rows.get(name), line.fastest) for name in names),
                coloured(line.ours.ratio),
                scatter(line.ours),
                share(line.ours),
            )
        ratios = [None if name == own else mean_ratio(part, name) for name in names]
        means = [coloured(ratio, "dim ") if ratio else Text("") for ratio in ratios]
        table.add_row("[dim]mean ratio", *means, coloured(mean_ratio(part), "bold "))
        table.add_section()
    return table


def empty(title: str, first: str, *rest: str) -> Table:
    """Narrow enough for 80 columns: where a heading does not fit, it is folded between its words or
    within a long one."""
    style = {"title_style": "bold", "header_style": "bold", "box": box.SIMPLE_HEAD}
    table = Table(title=title, pad_edge=False, collapse_padding=True, **style)
    table.add_column(first, no_wrap=True)
    for name in rest:
        width = max(map(len, name.split()))
        width = width if width <= 8 else (width + 1) // 2
        table.add_column(name, justify="right", overflow="fold", min_width=width)
    return table


def long(title: str, group: list[Line]) -> Table:
    """A line for each contender: the ways to one result, or the latencies of a stream."""
    tails = any(row.ms_p99 for line in group for row in line.rows.values())
    times = ["p50 µs", "p99 µs", "p99.9 µs"] if tails else ["ms"]
    rounded = any(error(row) for line in group for row in line.rows.values())
    table = empty(title, "case", *times, "ratio", "±", *["error"] * rounded, "floor")
    for line in group:
        table.add_row(f"[bold]{line.ours.case} {' '.join(section(line))}")
        for name, row in line.rows.items():
            found = [milliseconds(row, line.fastest, 1e3 if tails else 1)]
            if tails:
                found += [Text(number(1e3 * ms) if ms else "") for ms in (row.ms_p99, row.ms_p999)]
            found += [coloured(row.ratio), scatter(row), *[error(row)] * rounded]
            table.add_row(f"  {name}", *found, share(row))
        table.add_section()
    return table


def milliseconds(row: Row | None, fastest: float, unit: float = 1.0) -> Text:
    if row is None:
        return Text("")
    if row.status != OK:
        return Text(row.status.partition(":")[0], "bold red")
    return Text(number(unit * row.ms), "bold" if row.ms == fastest else "")


def coloured(ratio: float | None, style: str = "") -> Text:
    if ratio is None:
        return Text("–")
    colour = "green" if ratio > 1 + EVEN else "red" if ratio < 1 - EVEN else "yellow"
    shown = f"{ratio:.2f}" if ratio < 10 else number(ratio)
    return Text(f"{shown}x", style + colour)


def scatter(row: Row) -> Text:
    return Text(f"{noise(row):.0%}", "yellow" if noise(row) > NOISY else "dim")


def error(row: Row) -> str:
    """Where more than the sums are rounded."""
    return f"{row.error:.0e}" if row.error and row.error > SEEN else ""


def share(row: Row) -> Text:
    return Text(f"{row.percent:.0f}%" if row.percent else "–", "dim")
