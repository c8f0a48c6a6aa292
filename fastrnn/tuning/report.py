"""How far a tuning is, and what it changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from ..dispatch.tuned import MODES, Point, Times
from .shapes import Kind

Item = TypeVar("Item")
ALL_MODES = [name for mode in MODES for name in (mode, f"{mode} graph")]
TITLE = "fastrnn: tuning"
LINES = 20  # that are shown where there is no tqdm


def progress(items: Sequence[Item], quiet: bool) -> Iterator[Item]:
    """The items, with a bar of tqdm, or with lines."""
    if quiet:
        yield from items
        return
    try:
        from tqdm import tqdm
    except ImportError:
        every = max(1, len(items) // LINES)
        for k, item in enumerate(items, 1):
            yield item
            if k % every == 0 or k == len(items):
                print(f"{TITLE} {k} of {len(items)}", file=sys.stderr, flush=True)
        return
    yield from tqdm(items, TITLE, leave=False)


class Change(NamedTuple):
    """A call for which "auto" takes others than before."""

    kind: Kind
    point: Point
    ours: bool  # whether it takes our kernels now
    times: Times

    def factor(self, mode: str) -> float:
        """How many times faster it is than before."""
        ours, theirs = self.times[mode]
        return theirs / ours if self.ours else ours / theirs


class Report:
    """What `fastrnn.tune` measured, and what it changed."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.measured = 0  # calls
        self.ours = 0  # of them those for which "auto" takes our kernels now
        self.changes: list[Change] = []
        self.untouched: dict[str, int] = {}  # calls that were not measured, by the reason

    def add(self, kind: Kind, point: Point, times: Times, before: bool, now: bool) -> None:
        self.measured += 1
        self.ours += now
        if before is not now:
            self.changes.append(Change(kind, point, now, times))

    def facts(self) -> dict:
        """The same in the types of JSON."""
        return {
            "backend": self.backend,
            "measured": self.measured,
            "ours": self.ours,
            "left": self.untouched,
            "changes": [
                dict(zip(self._head(), self._row(change), strict=True)) for change in self.changes
            ],
        }

    @staticmethod
    def _head() -> list[str]:
        return ["layer", "dtype", "T", "N", "H", "auto takes", *ALL_MODES]

    def __str__(self) -> str:
        lines = [
            f"{self.measured} calls measured; auto takes {self.backend} in {self.ours} of them and "
            f"cudnn in the others; {len(self.changes)} changed"
        ]
        lines += [f"{count} calls left as they are: {why}" for why, count in self.untouched.items()]
        if self.changes:
            rows = [self._head(), *map(self._row, self.changes)]
            lines += ["How many times faster than before:", *_aligned(rows)]
        return "\n".join(lines)

    def _row(self, change: Change) -> list[str]:
        kind, now = change.kind, self.backend if change.ours else "cudnn"
        form = f"{kind.cell}{' packed' * kind.packed}"
        form += f" x{kind.layers}" * (kind.layers > 1) + " both ways" * (kind.directions > 1)
        factors = [f"{change.factor(m):.2f}" if m in change.times else "-" for m in ALL_MODES]
        return [form, kind.precision, *map(str, change.point), now, *factors]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
