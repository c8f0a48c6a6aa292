"""What is measured: kinds of layers, each at every combination of some sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..call import Call
from ..dispatch import gpu, race
from ..dispatch.choice import Question
from ..dispatch.tuned import Lattice, Point, Times

# Of the grid. cuDNN is at its best in multiples of 8 rows and 128 units, so ours win between those
# where they win at them.
STEPS, BATCH, HIDDEN = (16, 128, 1024), (1, 8, 32, 128), (128, 256, 512, 1024)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 3  # lengths, and batch sizes, that are measured of a model's


class Kind(NamedTuple):
    """Layers that differ in their sizes alone."""

    cell: str
    dtype: torch.dtype
    precision: str  # see `gpu.precision`
    packed: bool
    layers: int
    directions: int
    inputs: int  # 0: as wide as h
    steps: tuple[int, ...]
    batch: tuple[int, ...]
    hidden: tuple[int, ...]

    def points(self) -> Iterable[Point]:
        return itertools.product(self.steps, self.batch, self.hidden)

    def question(self, backend: str, major: int, point: Point) -> Question:
        """What "auto" asks of such a call outside of a graph."""
        kind = (self.cell, self.precision, self.packed, self.layers)
        inputs = self.inputs or point[2]
        return Question(backend, major, *kind, *point, False, self.directions, inputs)

    def lattice(self, backend: str, times: Mapping[Point, Times]) -> Lattice:
        return Lattice(backend, self.cell, *self[2:], times)


def grid() -> list[Kind]:
    """LSTM and GRU at sizes all over the usual range."""
    return [
        Kind(cell, dtype, gpu.precision(dtype), False, 1, 1, 0, STEPS, BATCH, HIDDEN)
        for cell in ("lstm", "gru")
        for dtype in DTYPES
    ]


def met(run: Callable[[], Any], device: torch.device) -> list[Kind]:
    """The kinds of layers that run on a device in a call of `run`, which is made once.

    Raises:
        RuntimeError: there are none.
    """
    seen: dict[Kind, tuple[set[int], set[int]]] = {}

    def note(asked: Question, call: Call) -> None:
        if call.input.device != device or not asked.batch:
            return
        kind = (asked.cell, call.input.dtype, asked.precision, asked.packed, asked.layers)
        kind = Kind(*kind, asked.directions, asked.inputs, (), (), (asked.hidden,))
        steps, batch = seen.setdefault(kind, (set(), set()))
        steps.add(max(1, asked.steps))
        batch.add(asked.batch)

    with race.noting(note):
        run()
    if not seen:
        raise RuntimeError(
            f"no layer that both PyTorch's own kernels and ours can take ran on {device}"
        )
    return [
        kind._replace(steps=spread(steps), batch=spread(batch))
        for kind, (steps, batch) in seen.items()
    ]


def spread(values: Iterable[int], most: int = MOST) -> tuple[int, ...]:
    """At most so many of some numbers: the ends, and those in between at equal ratios."""
    ordered = sorted(set(values))
    if len(ordered) <= most:
        return tuple(ordered)
    low, high = ordered[0], ordered[-1]
    wanted = [low * (high / low) ** (k / (most - 1)) for k in range(most)]
    return tuple(sorted({min(ordered, key=lambda v: abs(v - w)) for w in wanted}))
