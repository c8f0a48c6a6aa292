"""What was measured on this very GPU by `fastrnn.tune`. It wins over the table of `choice`."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from . import kept
from .choice import Question

FILE = kept.File("tuned.json")
MODES = ("inference", "training")  # each called, and replayed from a graph
MARGIN = 1.03  # by which ours must be faster: times scatter

# What damage in the file shows as.
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)

Point = tuple[int, int, int]  # steps, batch, hidden
Times = Mapping[str, Sequence[float]]  # by mode, "training graph": ms of ours and of PyTorch's own


def wins(times: Times, captured: bool) -> bool:
    """Whether ours was faster in every mode; in a graph of the user's where `captured`."""
    pairs = [times.get(f"{mode} graph" if captured else mode) for mode in MODES]
    return all(pair is not None and pair[0] * MARGIN < pair[1] for pair in pairs)


class Lattice(NamedTuple):
    """Calls of one kind at each combination of some sizes.

    It speaks of a call between them where all the corners around it were measured: ours is then
    taken if it was faster at each.
    """

    backend: str
    cell: str
    precision: str
    packed: bool
    layers: int
    directions: int
    inputs: int  # width of the input; 0 where it was that of h, which speaks for all
    steps: tuple[int, ...]
    batch: tuple[int, ...]
    hidden: tuple[int, ...]
    times: Mapping[Point, Times]

    def points(self) -> Iterable[Point]:
        return itertools.product(self.steps, self.batch, self.hidden)

    def key(self) -> str:
        """Under which it is kept on a machine, with a later one of the same sizes."""
        axes = (" ".join(map(str, axis)) for axis in self[7:10])
        return ", ".join([*map(str, self[:7]), *axes])

    def speaks_of(self, asked: Question) -> bool:
        kind = (asked.backend, asked.cell, asked.precision, asked.packed, asked.layers)
        same = self[:6] == (*kind, asked.directions)
        return same and self.inputs in (0, asked.inputs)

    def faster(self, asked: Question) -> bool | None:
        """Whether ours was faster in such a call; None where that is not known."""
        around = [
            _around(axis, at)
            for axis, at in zip(self[7:10], (asked.steps, asked.batch, asked.hidden), strict=True)
        ]
        found = [self.times.get(corner) for corner in itertools.product(*around)]
        if not found or None in found:
            return None
        return all(wins(times, asked.captured) for times in found)

    def to_json(self) -> dict:
        times = {" ".join(map(str, point)): dict(each) for point, each in self.times.items()}
        return self._asdict() | {"times": times}

    @staticmethod
    def of_json(held: dict) -> Lattice:
        """Raises one of DAMAGED where it is none."""
        times = {}
        for point, modes in held["times"].items():
            T, N, H = map(int, point.split())
            times[T, N, H] = {mode: (float(a), float(b)) for mode, (a, b) in modes.items()}
        axes = {name: tuple(map(int, held[name])) for name in ("steps", "batch", "hidden")}
        return Lattice(**held | axes | {"times": times})


def _around(axis: tuple[int, ...], at: int) -> tuple[int, ...]:
    """The values next to one, below and above; itself if it is there; none past the ends."""
    below, above = [v for v in axis if v <= at], [v for v in axis if v >= at]
    return tuple({max(below), min(above)}) if below and above else ()


class _Table(NamedTuple):
    """What was measured on a device, the most specific first, and what was asked of it. A thread
    that still asks when there is a new one changes the old one's answers."""

    lattices: list[Lattice]
    answers: dict[Question, bool | None]


_tables: dict[torch.device, _Table] = {}
LIMIT = 1024  # answers remembered


def _table(device: torch.device) -> _Table:
    found = _tables.get(device)
    if found is None:
        found = _tables[device] = _Table(_read(device), {})
    return found


def _read(device: torch.device) -> list[Lattice]:
    found = []
    for key, held in FILE.read().items():
        if not kept.is_of(key, device):
            continue
        try:
            found.append(Lattice.of_json(held))
        except DAMAGED as error:
            warnings.warn(
                f"fastrnn ignores an entry of {FILE.path} ({type(error).__name__}: {error}); "
                "fastrnn.tune() writes it anew",
                stacklevel=2,
            )
    return sorted(found, key=lambda each: (each.inputs == 0, len(each.times)))


def lattices(device: torch.device) -> list[Lattice]:
    """What was measured on a device."""
    return _table(device).lattices


def faster(device: torch.device, asked: Question) -> bool | None:
    """Whether ours was measured faster in such a call; None where nothing is known."""
    known, answers = _table(device)
    if not known:
        return None
    answer = answers.get(asked, NotImplemented)
    if answer is NotImplemented:
        told = (each.faster(asked) for each in known if each.speaks_of(asked))
        answer = next((each for each in told if each is not None), None)
        if len(answers) >= LIMIT:
            answers.clear()
        answers[asked] = answer
    return answer


def keep(device: torch.device, lattice: Lattice) -> None:
    """Keeps what was measured, for this process and later ones.

    Raises:
        OSError: the folder cannot be written.
    """
    key, new = f"{lattice.key()}: {kept.machine(device)}", lattice.to_json()

    def change(entries: dict) -> None:
        with contextlib.suppress(*DAMAGED):  # of which nothing is taken over
            new["times"] = Lattice.of_json(entries[key]).to_json()["times"] | new["times"]
        entries[key] = new

    FILE.change(change)
    _tables.clear()
