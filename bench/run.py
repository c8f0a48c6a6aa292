"""A run: specs in order, with progress on a terminal and a line a row elsewhere. Ctrl-C ends it and
keeps the rows that are done."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench import base, ceilings
from bench.cases import Spec
from bench.ceilings import Ceilings
from bench.jobs import baseline, entrants
from bench.measure import measure
from bench.report import Line, coloured, lines, number, setting
from bench.results import OK, Row
from bench.sessions import Local, Remote, Session
from bench.suites import Suite


class Run:
    """Measures specs in order. Progress counts expected seconds: a row is timed for as long as its
    suite says, and a large one takes longer, to be verified and called its fewest times."""

    def __init__(self, console: Console, options, folder: Path | None):
        self.console, self.options, self.folder = console, options, folder
        self.known: dict[tuple, Ceilings | None] = {}
        self.end = time.monotonic() + (options.at_most or float("inf"))
        self.left_out = 0
        self.interrupted = False

    def facing(self, *place) -> Ceilings | None:
        """The ceilings for a dtype, number of threads and device, measured once."""
        if place not in self.known:
            self.known[place] = ceilings.measure(*place)
        return self.known[place]

    def __call__(self, name: str, suite: Suite, specs: list[Spec]) -> list[Row]:
        """The rows of a suite; those that were done before an interrupt."""
        rows: list[Row] = []
        seconds = self.options.seconds or suite.seconds
        costs = {spec: seconds + 1 + spec.flops() / 8e9 for spec in specs}
        with Shown(self.console, costs) as shown:
            for count in dict.fromkeys(spec.threads for spec in specs):
                remotes: dict[str, Remote] = {}
                try:
                    for spec in (spec for spec in specs if spec.threads == count):
                        if self.interrupted or time.monotonic() > self.end:
                            self.left_out += 1
                            continue
                        shown.begin(spec)
                        found = self.measure(spec, name, suite, seconds, remotes)
                        rows += found
                        shown.done(spec, found)
                except KeyboardInterrupt:
                    self.interrupted = True
                    for session in remotes.values():  # in the middle of whatever they do
                        session.process.kill()
                for session in remotes.values():
                    session.close()
        return rows

    def measure(
        self, spec: Spec, name: str, suite: Suite, seconds: float, remotes: dict[str, Remote]
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
                with ignoring_interrupts():
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


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """What is started in here ignores Ctrl-C, which a terminal sends to every process."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Shown:
    """What is seen of a run: a bar that fits 80 columns, or, in a pipe or a file, a line a row."""

    def __init__(self, console: Console, costs: dict[Spec, float]):
        self.console, self.costs, self.count = console, costs, 0
        self.begun = time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> "Shown":
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.fields[done]} {task.fields[row]}"),
                BarColumn(bar_width=10),
                TimeRemainingColumn(),
                TextColumn("left; last {task.fields[last]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            first = {"row": "", "done": "", "last": "–"}
            self.task = self.bar.add_task("", total=sum(self.costs.values()), **first)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, spec: Spec) -> None:
        if self.bar:
            done = f"{self.count}/{len(self.costs)}"
            row = f"{spec.case.name} {spec.cell} {spec.mode}"[:32]
            self.bar.update(self.task, row=row, done=done)

    def done(self, spec: Spec, rows: list[Row]) -> None:
        self.count += 1
        line = next(iter(lines(rows)), None)
        if self.bar:
            last = coloured(line.ours.ratio) if line else ""
            self.bar.update(self.task, last=last, advance=self.costs[spec])
            return
        place = f"{spec.case.name} {spec.cell} {spec.mode}, {setting(rows[0])}" if rows else ""
        # A line is a line: no folding at the width of a terminal that is not there.
        text = f"{self.count}/{len(self.costs)} {place}: {words(line)}"
        self.console.print(text, soft_wrap=True)


def words(line: Line | None) -> str:
    """Ours in a row, and its ratio to the baseline."""
    if line is None:
        return "nobody to time"
    row = line.ours
    if row.status != OK:
        return row.status
    text = f"{number(row.ms)} ms"
    if row.ratio:
        text += f", {row.ratio:.2f}x {row.baseline} ± {line.noise:.0%}"
    return text
