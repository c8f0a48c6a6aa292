"""The command line: `python -m bench`, `python -m bench report`."""

import os
import sys
import time
from dataclasses import replace
from subprocess import CalledProcessError

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench import base, ceilings, compare, readme
from bench.cases import Spec, shape
from bench.ceilings import Ceilings
from bench.facts import cores, gather
from bench.jobs import baseline, entrants
from bench.measure import measure
from bench.options import parse
from bench.report import coloured, lines, show
from bench.results import OK, Row, load, save
from bench.sessions import MISSING, Local, Remote, Session
from bench.suites import SUITES, Suite, select


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(highlight=False)
    if options.suites == ["report"]:
        return report(options, console)
    chosen = {
        name: select(
            SUITES[name],
            cores=cores(),
            names=options.filter,
            cells=options.cells,
            modes=options.modes,
            dtypes=options.dtypes,
            threads=options.threads,
            device=options.device,
        )
        for name in options.suites
    }
    if options.list:
        for name, specs in chosen.items():
            console.print(listing(name, specs))
        return 0
    if not any(chosen.values()):
        console.print(f"[red]no case of {', '.join(chosen)} matches {options.filter!r}")
        return 2
    on_gpu = any(spec.device == "cuda" for specs in chosen.values() for spec in specs)
    if on_gpu and not torch.cuda.is_available():
        console.print("[red]torch sees no GPU here")
        return 2
    try:
        folder = base.checkout(options.base) if options.base else None
    except CalledProcessError as error:
        console.print(f"[red]{options.base}:[/] {error}\n{str(error.stderr)[-2000:]}")
        return 2
    run = Run(console, options, folder)
    rows = [row for name, specs in chosen.items() for row in run(name, SUITES[name], specs)]
    if run.left_out:
        console.print(f"[yellow]{run.left_out} rows left out: the time was over")
    if not rows:
        return 2
    facts = gather(run.facing("float32", 1, rows[0].device), rows[0].device)
    show(rows, facts, console)
    if options.compare:
        found = compare.changes([row for row, _ in load(options.compare)], rows)
        console.print(compare.table(found, f"since {options.compare.name}"))
    if options.save:
        path = options.results / f"{facts.machine()}.csv"
        save((row for row in rows if not row.status.startswith(MISSING)), facts, path)
        console.print(f"saved to {os.path.relpath(path)}")
    fit = all(row.status == OK or row.status.startswith(MISSING) for row in rows)
    return 0 if fit else 1


def listing(name: str, specs: list[Spec]) -> Table:
    def all_of(name: str) -> str:
        return " ".join(str(value) for value in dict.fromkeys(getattr(s, name) for s in specs))

    settings = (
        f"{all_of('cell')}; {all_of('mode')}; {all_of('dtype')}; threads: {all_of('threads')}"
    )
    table = Table(title=f"{name}: {len(specs)} rows: {settings}", title_style="bold")
    table.box = box.SIMPLE_HEAD
    table.add_column("case", no_wrap=True)
    table.add_column("T, N, input, hidden, layers", no_wrap=True)
    table.add_column("who runs such a model")
    for case in dict.fromkeys(spec.case for spec in specs):
        table.add_row(case.name, shape(case), case.user)
    return table


class Run:
    """Measures specs in order, under a progress bar that counts expected seconds: a row is timed
    for as long as its suite says, but a large one is only verified and called its fewest times for
    longer."""

    def __init__(self, console: Console, options, folder):
        self.console, self.options, self.folder = console, options, folder
        self.known: dict[tuple, Ceilings | None] = {}
        self.end = time.monotonic() + (options.at_most or float("inf"))
        self.left_out = 0

    def facing(self, *place) -> Ceilings | None:
        """The ceilings for a dtype, number of threads and device, measured once."""
        if place not in self.known:
            self.known[place] = ceilings.measure(*place)
        return self.known[place]

    def __call__(self, name: str, suite: Suite, specs: list[Spec]) -> list[Row]:
        seconds = self.options.seconds or suite.seconds
        costs = {spec: seconds + 1 + spec.flops() / 8e9 for spec in specs}
        rows: list[Row] = []
        columns = (
            TextColumn("{task.fields[row]:40}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=sum(costs.values()), row="", done="", last="")
            for count in dict.fromkeys(spec.threads for spec in specs):
                remotes: dict[str, Session] = {}
                for spec in (spec for spec in specs if spec.threads == count):
                    if time.monotonic() > self.end:
                        self.left_out += 1
                        continue
                    done = f"{specs.index(spec)}/{len(specs)}"
                    place = f"{spec.case.name} {spec.cell} {spec.mode}"
                    progress.update(task, row=place, done=done)
                    found = self.measure(spec, name, suite, seconds, remotes)
                    rows += found
                    ratio = next((coloured(line.ours.ratio) for line in lines(found)), "")
                    progress.update(task, last=f"{place} {ratio}", advance=costs[spec])
                for session in remotes.values():
                    session.close()
        return rows

    def measure(
        self, spec: Spec, name: str, suite: Suite, seconds: float, remotes: dict[str, Session]
    ) -> list[Row]:
        known = self.facing(spec.dtype, spec.threads, spec.device)  # before processes start up
        ref = self.options.base
        able = (
            base.rivals(spec, ref, self.folder)
            if ref
            else entrants(spec, self.options.contenders, suite.extra)
        )
        sessions: dict[str, Session] = {}
        for one in able:
            if spec.threads == 1 and not ref:
                sessions[one.name] = Local(one)
                continue
            if one.name not in remotes:
                remotes[one.name] = Remote(one.name, one.checkout)
            sessions[one.name] = remotes[one.name]
        rows = measure(
            spec,
            sessions,
            seconds,
            baseline=able[-1].name if ref else baseline(spec.case.job).name,
            ceilings=known,
            memory=suite.memory,
        )
        return [replace(row, suite=suite.table or name) for row in rows]


def report(options, console: Console) -> int:
    """Rewrite the README's tables from all files of results, and draw the plots and the page."""
    from bench import page, plots  # and with them matplotlib and plotly, which take their time
    from bench.charts import charts

    files = sorted(options.results.glob("*.csv"))
    results = [records for records in map(load, files) if records]
    if not results:
        console.print("[red]no results: run `python -m bench --save` first")
        return 2
    suites = readme.rewrite(options.readme, results)
    console.print(f"{options.readme.name}: tables of {', '.join(suites) or 'no suite'}")
    for records in results:
        folder = options.out / records[-1][1].machine()
        drawn = plots.draw(charts(records), folder)
        console.print(f"{os.path.relpath(folder)}: {len(drawn)} plots, as SVG and PNG")
    path = page.write(results, options.out / "index.html")
    console.print(f"{os.path.relpath(path)}: all of it in one page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
