"""What changed since an earlier file of results: ratios, as milliseconds drift with the machine."""

from collections.abc import Iterable
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from bench.results import Row


class Change(NamedTuple):
    """One contender on one spec, then and now."""

    before: Row
    after: Row

    @property
    def factor(self) -> float:
        """How many times its ratio to the baseline is what it was."""
        return self.after.ratio / self.before.ratio

    @property
    def verdict(self) -> str:
        """Faster or slower where the quartiles of then and now do not meet."""
        if self.after.ratio_low > self.before.ratio_high:
            return "faster"
        if self.after.ratio_high < self.before.ratio_low:
            return "slower"
        return "same"


def changes(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """Of the rows of ours that both have, with the same baseline, in the order of `after`."""
    old = {(row.key(), row.baseline): row for row in before if row.ratio}
    pairs = [(old.get((row.key(), row.baseline)), row) for row in after if row.ratio]
    return [Change(a, b) for a, b in pairs if a and b.contender.startswith("fastrnn")]


def table(found: list[Change], title: str) -> Table:
    out = Table(title=title, title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    for name in ("case", "cell", "mode", "dtype", "threads", "contender"):
        out.add_column(name, no_wrap=True)
    for name in ("ratio before", "after", "change", ""):
        out.add_column(name, justify="right")
    for change in found:
        row, verdict = change.after, change.verdict
        colour = {"faster": "green", "slower": "red", "same": "dim"}[verdict]
        out.add_row(
            row.case,
            row.cell,
            row.mode,
            row.dtype,
            str(row.threads),
            row.contender,
            f"{change.before.ratio:.2f}x",
            f"{row.ratio:.2f}x",
            Text(f"{change.factor - 1:+.0%}", colour),
            Text(verdict, colour),
        )
    return out
