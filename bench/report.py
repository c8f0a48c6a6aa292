"""What is read: the table in the terminal and the one in the README, both made from rows."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.cases import MODES
from bench.contenders import BASELINE, OURS
from bench.results import OK, Facts, Record, Row
from bench.timing import NOISY, Spread, geometric_mean

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
EVEN = 0.05  # a ratio within this of 1 is neither faster nor slower


class Line(NamedTuple):
    """The rows of one spec, by contender."""

    rows: dict[str, Row]

    @property
    def ours(self) -> Row:
        return self.rows[OURS.name]

    @property
    def noise(self) -> float:
        """Half-width of the quartiles of the ratio."""
        ours = self.ours
        return Spread(ours.ratio_low, ours.ratio, ours.ratio_high).relative if ours.ratio else 0.0


def lines(rows: Iterable[Row]) -> list[Line]:
    """One for each spec in which fastrnn took part, in the order of the rows."""
    specs: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        specs.setdefault(row.key()[:-1], {})[row.contender] = row
    return [Line(contenders) for contenders in specs.values() if OURS.name in contenders]


def tables(all_lines: list[Line]) -> Iterator[tuple[str, list[Line]]]:
    """Title and lines of each table: one for each dtype and number of threads."""

    def setting(line: Line) -> tuple[str, int]:
        return line.ours.dtype, line.ours.threads

    for (dtype, threads), group in groupby(sorted(all_lines, key=setting), setting):
        yield f"{dtype}, {threads} thread{'s' if threads > 1 else ''}", list(group)


def mean_ratio(some: Iterable[Line]) -> float | None:
    found = [line.ours.ratio for line in some if line.ours.ratio]
    return geometric_mean(found) if found else None


def number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "–"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


# --- Terminal ---------------------------------------------------------------------------------


def show(rows: list[Row], facts: Facts, console: Console) -> None:
    """The coloured table, with the geometric mean of the ratios below each cell and mode."""
    found = lines(rows)
    for title, group in tables(found):
        console.print(terminal_table(title, group))
    console.print(
        f"[bold]{OURS.name} {facts.version}[/] ({facts.commit}, {facts.isa}), torch {facts.torch}; "
        f"{facts.cpu}, {facts.cores} cores; torch.mm {facts.mm_gflops:.0f} GFLOP/s on one thread"
    )
    for row in rows:
        if row.status != OK:
            place = f"{row.case} {row.cell} {row.mode}"
            console.print(f"[red]{row.contender}[/] on {place}: {row.status}")
    noisy = sum(line.noise > NOISY for line in found)
    if noisy:
        console.print(
            f"[yellow]A noisy run:[/] in {noisy} of {len(found)} rows the quartiles of the ratio "
            f"lie more than {NOISY:.0%} from its median. Run again while the machine is idle."
        )


def terminal_table(title: str, group: list[Line]) -> Table:
    names = list(dict.fromkeys(name for line in group for name in line.rows))
    table = Table(title=title, title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    for name in ("case", "cell", "mode"):
        table.add_column(name, no_wrap=True)
    for name in [f"{name} ms" for name in names] + ["ratio", "±", "GFLOP/s"]:
        table.add_column(name, justify="right")

    def section(line: Line) -> tuple[str, str]:
        return line.ours.cell, line.ours.mode

    for (cell, mode), part in groupby(group, section):
        part = list(part)
        for line in part:
            table.add_row(
                line.ours.case,
                cell,
                mode,
                *(milliseconds(line.rows.get(name)) for name in names),
                coloured(line.ours.ratio),
                Text(f"{line.noise:.0%}", "yellow" if line.noise > NOISY else "dim"),
                number(line.ours.gflops),
            )
        blanks = [""] * (len(names) - 1)
        mean = coloured(mean_ratio(part), "bold ")
        table.add_row("[bold]mean", cell, mode, "", *blanks, mean, "", "")
        table.add_section()
    return table


def milliseconds(row: Row | None) -> Text:
    if row is None:
        return Text("")
    if row.status != OK:
        return Text(row.status.partition(":")[0], "bold red")
    return Text(number(row.ms))


def coloured(ratio: float | None, style: str = "") -> Text:
    if ratio is None:
        return Text("–")
    colour = "green" if ratio > 1 + EVEN else "red" if ratio < 1 - EVEN else "yellow"
    return Text(f"{ratio:.2f}x", style + colour)


# --- README -----------------------------------------------------------------------------------


def markdown(records: list[Record]) -> str:
    """The tables of one file of results."""
    facts = records[-1][1]
    parts = [
        f"{facts.cpu}, {facts.cores} cores, {facts.isa}; {OURS.name} {facts.version} "
        f"({facts.commit}), torch {facts.torch}, Python {facts.python}, {facts.date}. "
        f"torch.mm reaches {facts.mm_gflops:.0f} GFLOP/s on one thread here. Times are "
        "milliseconds a call, ratios are how many times faster than torch.nn."
    ]
    for title, group in tables(lines(row for row, _ in records)):
        parts.append(f"**{title}**\n\n" + markdown_table(group))
    return "\n\n".join(parts)


def markdown_table(group: list[Line]) -> str:
    """A line for each case and cell, modes side by side, geometric means below each cell."""
    modes = [mode for mode in MODES if any(line.ours.mode == mode for line in group)]
    heads = ["case (T, N, input, hidden, layers)", "cell"]
    for mode in modes:
        heads += [f"{mode}: {OURS.name}", BASELINE.name, "ratio"]
    out = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    by_cell: dict[str, dict[str, dict[str, Line]]] = {}
    for line in group:
        cases = by_cell.setdefault(line.ours.cell, {})
        cases.setdefault(line.ours.case, {})[line.ours.mode] = line
    for cell, cases in by_cell.items():
        for found in cases.values():
            out.append([place(next(iter(found.values())).ours), cell])
            for mode in modes:
                out[-1] += markdown_cells(found.get(mode))
        out.append(["*geometric mean*", cell])
        for mode in modes:
            mean = mean_ratio(found[mode] for found in cases.values() if mode in found)
            out[-1] += ["", "", f"**{mean:.2f}x**" if mean else "–"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in out)


def place(row: Row) -> str:
    return f"{row.case} ({row.T}, {row.N}, {row.input_size}, {row.hidden_size}, {row.layers})"


def markdown_cells(line: Line | None) -> list[str]:
    if line is None:
        return ["–", "–", "–"]
    ratio = f"{line.ours.ratio:.2f}x" if line.ours.ratio else "–"
    noise = f" ± {line.noise:.0%}" if line.noise > NOISY else ""
    return [
        *(markdown_ms(line.rows.get(name)) for name in (OURS.name, BASELINE.name)),
        ratio + noise,
    ]


def markdown_ms(row: Row | None) -> str:
    if row is None:
        return "–"
    return number(row.ms) if row.status == OK else row.status.partition(":")[0]


def replace_between_markers(text: str, table: str) -> str:
    """ValueError where the markers are not there, once and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the text needs one {BEGIN} and, after it, one {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def rewrite(readme: Path, results: list[list[Record]]) -> None:
    """Put the tables of all files of results between the markers of `readme`."""
    table = "\n\n".join(markdown(records) for records in results if records)
    readme.write_text(replace_between_markers(readme.read_text(), table))
