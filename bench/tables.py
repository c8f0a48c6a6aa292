"""Tables of rows in Markdown."""

from bench.cases import MODES, shape
from bench.report import Line, contenders, error, lines, mean_ratio, number, tables
from bench.results import OK, Record, Row
from bench.timing import NOISY


def markdown(records: list[Record]) -> str:
    """The tables of one file of results, or of the rows of one suite of it. A table of rows that
    are not as old as the last says how old they are."""
    facts = records[-1][1]
    its = {id(row): its for row, its in records}
    parts = [
        f"{facts.gpu or facts.cpu}, {facts.cores} cores, {facts.isa}; fastrnn {facts.version} "
        f"({facts.commit}), torch {facts.torch}, Python {facts.python}, {facts.date}. "
        f"`torch.mm` reaches {facts.mm_gflops:.0f} GFLOP/s on one thread."
    ]
    for title, group in tables(lines(row for row, _ in records)):
        table = wide if group[0].plain else long
        found = [its[id(row)] for line in group for row in line.rows.values()]
        ages = dict.fromkeys(f"{one.commit}, {one.date}" for one in found)
        own = "" if list(ages) == [f"{facts.commit}, {facts.date}"] else f" ({'; '.join(ages)})"
        parts.append(f"**{title}**{own}\n\n" + table(group))
    return "\n\n".join(parts)


def grid(cells: list[list[str]]) -> str:
    """Lines of cells, of which the second is the ruler, as Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def wide(group: list[Line]) -> str:
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
                out[-1] += figures(found.get(mode), names)
        out.append(["*geometric mean*", cell])
        for mode, names in modes.items():
            part = [found[mode] for found in cases.values() if mode in found]
            peers = [times(mean_ratio(part, name)) for name in names[2:]]
            mean = mean_ratio(part)
            out[-1] += ["", "", *peers, f"**{mean:.2f}x**" if mean else "–"]
    return grid(out)


def long(group: list[Line]) -> str:
    """A line for each contender."""
    tails = any(row.ms_p99 for line in group for row in line.rows.values())
    columns = ["p50 µs", "p99 µs", "p99.9 µs"] if tails else ["ms"]
    rounded = any(error(row) for line in group for row in line.rows.values())
    heads = ["case (T, N, input, hidden, layers)", "cell", "mode", "contender", *columns, "ratio"]
    heads += ["error"] * rounded
    out = [heads, ["---"] * 4 + ["---:"] * (len(heads) - 4)]
    for line in group:
        for row in line.rows.values():
            ms = [row.ms, row.ms_p99, row.ms_p999] if tails else [row.ms]
            found = [number(m and m * (1e3 if tails else 1)) for m in ms]
            found[0] = found[0] if row.status == OK else row.status.partition(":")[0]
            found += [times(row.ratio), *[error(row)] * rounded]
            out.append([place(row), row.cell, row.mode, row.contender, *found])
    return grid(out)


def place(row: Row) -> str:
    return f"{row.case} ({shape(row)})"


def times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "–"


def figures(line: Line | None, names: list[str]) -> list[str]:
    if line is None:
        return ["–"] * (len(names) + 1)
    noisy = f" ± {line.noise:.0%}" if line.noise > NOISY else ""
    return [*(milliseconds(line.rows.get(name)) for name in names), times(line.ours.ratio) + noisy]


def milliseconds(row: Row | None) -> str:
    if row is None:
        return "–"
    return number(row.ms) if row.status == OK else row.status.partition(":")[0]
