"""The command line: `python -m bench`, `python -m bench report`."""

import argparse
import os
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.cases import CELLS, MODES, STEPS, SUITES, Spec, select
from bench.contenders import CONTENDERS
from bench.measure import measure
from bench.report import rewrite, show
from bench.results import FOLDER, OK, ROOT, Row, cores, gather, load, save
from bench.sessions import Local, Remote, Session
from bench.timing import matrix_rate


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(highlight=False)
    if options.command == "report":
        return report(options, console)
    suite = SUITES[options.suite]
    specs = select(
        suite,
        cores=cores(),
        names=options.filter,
        cells=options.cells,
        modes=options.modes,
        dtype=options.dtype,
        threads=options.threads,
    )
    if options.list:
        console.print(listing(specs))
        return 0
    if not specs:
        console.print(f"[red]no case of suite {options.suite} matches {options.filter!r}")
        return 2
    facts = gather(matrix_rate())
    rows = run(specs, options.seconds or suite.seconds, console)
    show(rows, facts, console)
    if options.save:
        path = FOLDER / f"{facts.machine()}.csv"
        save(rows, facts, path)
        console.print(f"saved to {os.path.relpath(path)}")
    return 0 if all(row.status == OK for row in rows) else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def some(*allowed: str):
        def words(text: str) -> tuple[str, ...]:
            lookup = {word.lower(): word for word in allowed}
            unknown = [word for word in text.split(",") if word.lower() not in lookup]
            if unknown:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
            return tuple(lookup[word.lower()] for word in text.split(","))

        return words

    def counts(text: str) -> tuple[int, ...]:
        found = tuple(int(word) for word in text.split(","))
        if min(found) < 1:
            raise argparse.ArgumentTypeError("a number of threads is at least 1")
        return found

    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time fastrnn against torch.nn. Every contender is verified first.",
        epilog="Exit status: 0, or 1 if a contender was wrong or failed. See bench/README.md.",
    )
    add = parser.add_argument
    add(
        "command", nargs="?", choices=("run", "report"), default="run", help="report: README tables"
    )
    add("--suite", choices=SUITES, default="quick")
    add("--filter", default="", metavar="WORDS", help="cases whose names contain one of a,b,c")
    add("--cells", type=some(*CELLS, *STEPS), default=(), metavar=",".join(CELLS))
    add("--modes", type=some(*MODES), default=MODES, metavar=",".join(MODES))
    add("--threads", type=counts, default=(), metavar="1,2", help="instead of the suite's")
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--seconds", type=float, metavar="S", help="of timing a row, instead of the suite's")
    add("--save", action="store_true", help="write bench/results/<machine>.csv")
    add("--list", action="store_true", help="show what would be timed, and who runs such a model")
    add("--readme", type=Path, default=ROOT / "README.md", help="the file that report rewrites")
    return parser.parse_args(arguments)


def listing(specs: list[Spec]) -> Table:
    def all_of(name: str) -> str:
        return " ".join(str(value) for value in dict.fromkeys(getattr(s, name) for s in specs))

    title = f"{len(specs)} rows: {all_of('cell')}; {all_of('mode')}; threads: {all_of('threads')}"
    table = Table(title=title, title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    table.add_column("T, N, input, hidden, layers", no_wrap=True)
    table.add_column("who runs such a model")
    for case in dict.fromkeys(spec.case for spec in specs):
        table.add_row(case.name, case.shape(), case.user)
    return table


def run(specs: list[Spec], seconds: float, console: Console) -> list[Row]:
    """Measure `specs` in order, under a progress bar that counts expected seconds: a row is timed
    for `seconds`, but a large one is only verified and called its fewest times for longer."""
    costs = {spec: seconds + 1 + spec.flops() / 8e9 for spec in specs}
    rows: list[Row] = []
    columns = (
        TextColumn("{task.fields[row]:32}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(costs.values()), row="", done="")
        for count in dict.fromkeys(spec.threads for spec in specs):
            kind = Local if count == 1 else Remote
            sessions: dict[str, Session] = {one.name: kind(one) for one in CONTENDERS}
            for spec in (spec for spec in specs if spec.threads == count):
                done = f"{specs.index(spec)}/{len(specs)}"
                progress.update(task, row=f"{spec.case.name} {spec.cell} {spec.mode}", done=done)
                able = {
                    one.name: sessions[one.name] for one in CONTENDERS if spec.mode in one.modes
                }
                rows += measure(spec, able, seconds)
                progress.advance(task, costs[spec])
            for session in sessions.values():
                session.close()
    return rows


def report(options: argparse.Namespace, console: Console) -> int:
    """Rewrite the README's tables from all files of results."""
    files = sorted(FOLDER.glob("*.csv"))
    if not files:
        console.print("[red]no results: run `python -m bench --save` first")
        return 2
    rewrite(options.readme, [load(path) for path in files])
    console.print(f"{options.readme.name}: tables of {', '.join(path.stem for path in files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
