"""The command line: `python -m bench`, `python -m bench report`."""

import os
import sys
from subprocess import CalledProcessError

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench import base, claims, compare, readme
from bench.cases import Spec, shape
from bench.facts import cores, gather, no_kernels
from bench.options import parse
from bench.report import show
from bench.results import OK, kept, load, save
from bench.run import Run
from bench.sessions import MISSING
from bench.suites import SUITES, select

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


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
    on_cpu = any(spec.device == "cpu" for specs in chosen.values() for spec in specs)
    if on_cpu and not options.base and (reason := no_kernels()):
        console.print(f"[red]fastrnn has no kernels to time:[/] {reason}", soft_wrap=True)
        return 2
    try:
        folder = base.checkout(options.base) if options.base else None
    except CalledProcessError as error:
        console.print(f"[red]{options.base}:[/] {error}\n{str(error.stderr)[-2000:]}")
        return 2
    run = Run(console, options, folder)
    rows = [row for name, specs in chosen.items() for row in run(name, SUITES[name], specs)]
    if run.interrupted:
        what = "these rows were done:" if rows else "no row was done"
        console.print(f"[yellow]interrupted; {what}")
    elif run.left_out:
        console.print(f"[yellow]{run.left_out} rows left out: the time was over")
    if not rows:
        return INTERRUPTED if run.interrupted else 2
    facts = gather(run.facing("float32", 1, rows[0].device), rows[0].device)
    show(rows, facts, console)
    if options.compare:
        found = compare.changes([row for row, _ in load(options.compare)], rows)
        console.print(compare.table(found, f"since {options.compare.name}"))
    if options.save:
        path = options.results / f"{facts.machine()}.csv"
        save((row for row in rows if not row.status.startswith(MISSING)), facts, path)
        console.print(f"saved to {os.path.relpath(path)}")
    for text in claims.verdict(rows, facts):
        console.print(f"[bold]{text}", soft_wrap=not console.is_terminal)
    if run.interrupted:
        return INTERRUPTED
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


def report(options, console: Console) -> int:
    """Write what is generated from all files of results: figures and picture of the README,
    bench/RESULTS.md, the plots and the page."""
    from bench import page, plots  # and with them matplotlib, which takes its time
    from bench.charts import charts, summary

    results, schedules = kept(options.results)
    if not results:
        console.print("[red]no results: run `python -m bench --save` first")
        return 2
    for path in readme.rewrite(options.root, results, schedules):
        console.print(f"{os.path.relpath(path)}: written")
    newest = [one for one in claims.newest(results) if one[0].suite == "cpu"]
    if pair := summary(newest):
        title = f"{claims.name(newest[-1][1])}, one thread, float32, {newest[-1][1].date}"
        path = plots.picture(pair, title, options.root / "docs" / "pictures" / "speed.png")
        console.print(f"{os.path.relpath(path)}: the picture of the README")
    for records in results:
        folder = options.out / records[-1][1].machine()
        drawn = plots.draw(charts(records), folder)
        console.print(f"{os.path.relpath(folder)}: {len(drawn)} plots, as SVG and PNG")
    path = page.write(results, options.out / "index.html", schedules)
    console.print(f"{os.path.relpath(path)}: all of it in one page")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first row, or after the last
        sys.exit(INTERRUPTED)
