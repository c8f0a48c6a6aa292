"""The case that belongs to a seed, and the line that repeats one.

Sizes are drawn from their whole range, and on purpose about the thresholds of csrc/cpu, whose
values are read there.
"""

from __future__ import annotations

import bisect
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastrnn import _C

from .case import GATES, INFERENCE, MOST, PACKED, Case, legal


def constant(name: str) -> int:
    """A number that csrc/cpu names."""
    for path in sorted((Path(__file__).parents[2] / "csrc/cpu").iterdir()):
        if found := re.search(rf"\b{name} = ([\d\s<*'()]+)[,;]", path.read_text()):
            return eval(found[1].replace("'", ""))
    raise LookupError(f"csrc/cpu names no number {name}")


class Aim(NamedTuple):
    """A threshold: what grows with each of some sizes, and where the code turns to another way,
    there or at a multiple."""

    sizes: str
    amount: Callable[[Case], float]
    limit: int


def _weights(case: Case) -> int:
    return case.directions * case.G * case.H * (case.I + case.width)


def _matrix_bytes(case: Case) -> int:
    return case.G * case.H * case.width * case.itemsize


_REGISTER = 64  # bytes; 32 with AVX2, which multiples of a limit reach
AIMS = (
    Aim("TNIH", lambda c: c.rows * _weights(c) / c.directions, constant("kThreadWork")),
    Aim("IH", lambda c: _weights(c) * c.itemsize, constant("kNearBytes")),
    Aim("HP", _matrix_bytes, constant("kNearBytes")),
    Aim("HP", _matrix_bytes, constant("near")),
    Aim("HP", _matrix_bytes, constant("kLarge")),
    Aim("HP", lambda c: c.width * max(4, c.G) * _REGISTER, constant("kPanelBytes")),
    Aim("H", lambda c: c.G * c.H * 4 * _REGISTER, constant("kPanelBytes")),
    Aim("TNH", lambda c: c.rows * c.G * c.H * 4, constant("kChunkBytes")),
    Aim("TNH", lambda c: c.rows * c.G * c.H * c.itemsize, constant("kLarge")),
    Aim("TN", lambda c: c.rows, 120),  # kRowBlock
    Aim("TN", lambda c: c.rows, constant("kOuterDepth")),
    Aim("N", lambda c: c.N, 32),  # of a single step: FewSteps::suits
    Aim("T", lambda c: c.T, constant("kFew")),  # of one row: FewSteps::suits
    Aim("N", lambda c: c.N, constant("kBlock")),
    Aim("N", lambda c: c.N * c.directions, 8),  # pairs of rows for each of 4 threads
    Aim("H", lambda c: c.G * c.H * c.itemsize * 120, 5 << 18),  # kLeftBytes
    Aim("IHP", lambda c: min(c.I, c.width), 128),  # outer: `arranged`
)


def _set(case: Case, size: str, value: int) -> Case:
    return case._replace(**{size: min(max(value, 1), MOST[size])})


def _at_a_threshold(case: Case, rng: random.Random) -> Case:
    """With one of its sizes just below, at or just above."""
    aim = rng.choice(AIMS)
    size, limit = rng.choice(aim.sizes), aim.limit * rng.choice((1, 1, 1, 2, 3, 4, 8))
    values = range(1, MOST[size] + 1)
    at = bisect.bisect_left(values, limit, key=lambda v: aim.amount(_set(case, size, v)))
    return _set(case, size, 1 + at + rng.choice((-1, 0, 1)))


def _at_a_split(case: Case, rng: random.Random) -> Case:
    """With H where threads begin to share a step in another way, or just below that."""
    threads, panel = -(-case.threads // case.directions), 4 * _REGISTER // max(case.itemsize, 4)

    def split(H: int) -> list[int]:
        units = 1 if case.P or case.packed or case.reset else -(-H // panel)
        return _C.split_step(case.N, case.G * H, case.P or H, case.itemsize, threads, units)

    turns = [H for H in range(2, MOST["H"]) if split(H) != split(H - 1)]
    return _set(case, "H", rng.choice(turns) - rng.choice((0, 1))) if turns else case


def _size(rng: random.Random, most: int) -> int:
    """From 1 to `most`, of all orders of magnitude or rather large, and often about a whole number
    of registers or tiles."""
    value = int(most ** rng.random() if rng.random() < 0.5 else most * rng.random())
    if rng.random() < 0.4:
        step = rng.choice((2, 4, 6, 8, 12, 16, 24, 32, 64))
        value = -(-value // step) * step + rng.choice((-1, 0, 1))
    return min(max(value, 1), most)


def _draw(seed: int, rng: random.Random) -> Case:
    def often(usual, *others, share: float = 0.5):
        return usual if rng.random() < share else rng.choice(others)

    loss = often("all", "output", "last", "final", "some", *INFERENCE)
    sizes = {size: _size(rng, most) for size, most in MOST.items()}
    if rng.random() < 0.05:
        sizes["T"] = 1
    return Case(
        seed,
        **sizes | {"P": often(0, sizes["P"], share=0.75)},
        cell=rng.choice([*GATES, "lstm", "gru"]),
        kind=often("layer", "step", "stream", "cell", share=0.85),
        dtype=often("float32", "float64", "bfloat16", "bfloat16", "float16"),
        isa=often("best", "avx2", "portable", "avx512", "avx512bf16", "amx", share=0.75),
        layers=often(1, 2, 3, share=0.75),
        directions=often(1, 2, share=0.6),
        bias=often(True, False, share=0.8),
        form=often("padded", "batch_first", "unbatched", *PACKED, *PACKED),
        lengths=often(
            "", "random", "random", "random", "long", "some", "equal", "empty", share=0.4
        ),
        reset=often(False, True, share=0.85),
        detach_every=often(0, rng.randint(1, 2 * sizes["T"]), share=0.9),
        grad_clip=often(0.0, 1e-3, 0.05, 0.5, share=0.9),
        states=often(False, True, share=0.85),
        gates=often(False, True, share=0.9),
        hx=rng.random() < 0.5,
        layout=often("plain", "offset", "transposed", "strided", "expanded"),
        weights=often("plain", "offset", "transposed", share=0.7),
        loss=loss,
        wanted=often("xsw", "x", "s", "w", "xs", "xw", "sw", share=0.6),
        threads=rng.choice((1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8)),
        callers=often(1, 2, 3, 4, share=0.9),
        shared=rng.random() < 0.5,
    )


_TURNS = (_at_a_threshold, _at_a_threshold, _at_a_split, lambda case, _: case)


def case(seed: int) -> Case:
    """The case of a seed, at a cost of any order of magnitude up to a second or two."""
    rng = random.Random(seed)
    most = 2.0 ** rng.uniform(27, 32)
    while True:
        found = legal(_draw(seed, rng))
        while found.cost > most:
            size = rng.choice("TTNNIH")
            found = legal(_set(found, size, getattr(found, size) * 3 // 4))
        if found.cost > most / 16:
            found = legal(rng.choice(_TURNS)(found, rng))
            if found.cost <= 2 * most:
                return found


def line(found: Case) -> str:
    """The command that repeats it."""
    pairs = zip(found._asdict().items(), case(found.seed), strict=True)
    changes = [f"{field}={value}" for (field, value), drawn in pairs if value != drawn]
    return " ".join([f"PYTHONPATH=tests python -m stress --seed {found.seed}", *changes])


def changed(found: Case, changes: list[str]) -> Case:
    """With fields as a `line` has them."""
    for name, value in (change.split("=", 1) for change in changes):
        kind = type(Case._field_defaults[name])
        found = found._replace(**{name: value == "True" if kind is bool else kind(value)})
    return found
