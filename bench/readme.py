"""The tables of the README, written between its markers from the files of results."""

from pathlib import Path

from bench.cases import MODES, shape
from bench.report import Line, contenders, lines, mean_ratio, number, tables
from bench.results import OK, Record, Row
from bench.timing import NOISY

MAIN = "cpu"  # the suite whose tables stand between the markers without a name


def markers(suite: str = MAIN) -> tuple[str, str]:
    name = "" if suite == MAIN else f" {suite}"
    return f"<!-- bench:begin{name} -->", f"<!-- bench:end{name} -->"


def rewrite(readme: Path, results: list[list[Record]]) -> list[str]:
    """Put the tables of all files of results between the markers of `readme`, and give the suites
    whose tables are now there. The markers of MAIN have to be there, others may be."""
    text, found = readme.read_text(), []
    for suite in dict.fromkeys(row.suite for records in results for row, _ in records):
        parts = [[one for one in records if one[0].suite == suite] for records in results]
        if suite == MAIN or markers(suite)[0] in text:
            table = "\n\n".join(markdown(records) for records in parts if records)
            text = replace_between_markers(text, table, suite)
            found.append(suite)
    readme.write_text(text)
    return found


def replace_between_markers(text: str, table: str, suite: str = MAIN) -> str:
    """ValueError where the markers are not there, once and in order."""
    first, last = markers(suite)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise ValueError(f"the text needs one {first} and, after it, one {last}")
    return f"{before}{first}\n{table}\n{last}{after}"


def markdown(records: list[Record]) -> str:
    """The tables of one file of results, or of the rows of one suite of it."""
    facts = records[-1][1]
    parts = [
        f"{facts.gpu or facts.cpu}, {facts.cores} cores, {facts.isa}; fastrnn {facts.version} "
        f"({facts.commit}), torch {facts.torch}, Python {facts.python}, {facts.date}. "
        f"torch.mm reaches {facts.mm_gflops:.0f} GFLOP/s on one thread here. Times are "
        "milliseconds a call, ratios are how many times faster than torch.nn."
    ]
    for title, group in tables(lines(row for row, _ in records)):
        table = markdown_wide if group[0].plain else markdown_long
        parts.append(f"**{title}**\n\n" + table(group))
    return "\n\n".join(parts)


def markdown_wide(group: list[Line]) -> str:
    """A line for each case and cell, modes side by side, geometric means below each cell."""
    modes = {
        mode: list(dict.fromkeys(["fastrnn", "torch.nn", *contenders(some)]))
        for mode in MODES
        if (some := [line for line in group if line.ours.mode == mode])
    }
    heads = ["case (T, N, input, hidden, layers)", "cell"]
    for mode, names in modes.items():
        heads += [f"{mode}: {names[0]}", *names[1:], "ratio"]
    out = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    by_cell: dict[str, dict[str, dict[str, Line]]] = {}
    for line in group:
        cases = by_cell.setdefault(line.ours.cell, {})
        cases.setdefault(line.ours.case, {})[line.ours.mode] = line
    for cell, cases in by_cell.items():
        for found in cases.values():
            out.append([place(next(iter(found.values())).ours), cell])
            for mode, names in modes.items():
                out[-1] += markdown_cells(found.get(mode), names)
        out.append(["*geometric mean*", cell])
        for mode, names in modes.items():
            part = [found[mode] for found in cases.values() if mode in found]
            peers = [times(mean_ratio(part, name)) for name in names[2:]]
            mean = mean_ratio(part)
            out[-1] += ["", "", *peers, f"**{mean:.2f}x**" if mean else "–"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in out)


def markdown_long(group: list[Line]) -> str:
    """A line for each contender."""
    tails = any(row.ms_p99 for line in group for row in line.rows.values())
    columns = ["p50 µs", "p99 µs", "p99.9 µs"] if tails else ["ms"]
    heads = ["case (T, N, input, hidden, layers)", "cell", "mode", "contender", *columns, "ratio"]
    out = [heads, ["---"] * 4 + ["---:"] * (len(heads) - 4)]
    for line in group:
        for row in line.rows.values():
            ms = [row.ms, row.ms_p99, row.ms_p999] if tails else [row.ms]
            found = [number(m and m * (1e3 if tails else 1)) for m in ms]
            found[0] = found[0] if row.status == OK else row.status.partition(":")[0]
            out.append([place(row), row.cell, row.mode, row.contender, *found, times(row.ratio)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in out)


def place(row: Row) -> str:
    return f"{row.case} ({shape(row)})"


def times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "–"


def markdown_cells(line: Line | None, names: list[str]) -> list[str]:
    if line is None:
        return ["–"] * (len(names) + 1)
    noisy = f" ± {line.noise:.0%}" if line.noise > NOISY else ""
    return [*(markdown_ms(line.rows.get(name)) for name in names), times(line.ours.ratio) + noisy]


def markdown_ms(row: Row | None) -> str:
    if row is None:
        return "–"
    return number(row.ms) if row.status == OK else row.status.partition(":")[0]
