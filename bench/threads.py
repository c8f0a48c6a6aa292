"""What more threads than this machine has would gain: a model, checked where there are rows.

    python -m bench.threads [--results FOLDER]

A layer is a product over all steps, which threads share by rows, and a loop over time. The loop is
shared as `csrc/cpu/split.h` decides: by batch rows, which never meet, by units, whose threads meet
at every step, or by both. The model gives each thread the time of its part: arithmetic at the rate
of the machine's core, weights at the bandwidth of where the part lies, and a meeting that grows
with the number of threads. Its figures are predictions: nobody has timed these kernels on more than
two cores.

The constants of `split.h` come from one core with AVX2. A line for each machine says what they cost
there: how much longer steps take than if they were shared by the machine's own. The last table has
the same for one constant of `split.h` at a time, halved or doubled.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench import results
from bench.cases import GATES
from bench.facts import Facts
from bench.results import Row
from bench.timing import geometric_mean

COUNTS = (4, 8, 16, 32)

# What the machine has besides the rates in its facts.
NEAR = 1 << 20  # bytes of weights that stay in the cache of a core
FAR = 40.0  # bytes per ns from the cache that cores share, to each of them
CELL = 0.25  # ns of a gate of a unit
CALL = 12_000.0  # ns of Python and PyTorch
WAKE, MEETING, MEMBER = 4_000.0, 500.0, 100.0  # ns: of the pool; of a meeting, and of each member


class Parts(NamedTuple):
    """How threads share the loop over time of a direction."""

    rows: int
    units: int


def split(row: Row, facts: Facts, threads: int) -> Parts:
    """As the kernels would."""
    from fastrnn._C import split_step

    each = -(-threads // row.directions)
    outputs, pieces = GATES[row.cell] * row.hidden_size, -(-row.hidden_size // panel(facts.isa))
    rows, units, _ = split_step(row.N, outputs, row.hidden_size, 4, each, pieces)
    return Parts(rows, units)


def panel(isa: str) -> int:
    """Units of the least piece that threads take: four registers of float32."""
    wide = isa.startswith(("avx512", "amx"))
    return 4 * (16 if wide else 8 if isa in ("avx2", "avxvnni") else 4)


def nanoseconds(row: Row, facts: Facts, threads: int) -> float:
    """Of a call, in the model."""
    from fastrnn._C import step_time

    G, H, D = GATES[row.cell], row.hidden_size, row.directions
    rows, units = split(row, facts, threads)
    step = step_time(row.N, G * H, H, 4, rows, units, own_costs(facts))
    step += CELL * -(-row.N // rows) * -(-G * H // units)
    loop = step * row.T * D / min(D, threads)  # directions run at the same time
    flops = 0.0  # of products over all steps
    for layer in range(row.layers):
        inputs = row.input_size if layer == 0 else D * H
        # Training adds the gradients of the input and of both weights.
        terms = inputs if row.mode == "inference" else 3 * inputs + H
        flops += 2.0 * row.T * row.N * D * G * H * terms
    loops = row.layers * (2 if row.mode == "training" else 1)
    products = flops / facts.fma_gflops / threads
    return CALL * row.layers + products + loops * (loop + (WAKE if threads > 1 else 0))


def own_costs(facts: Facts) -> dict[str, float]:
    """The constants of `split.h` as they are on a machine: its rates of FMAs and of the near cache
    are measured when rows are saved (`bench.ceilings`). The others are those of this model."""
    return {
        "flops": facts.fma_gflops,
        "near": NEAR,
        "near_bytes": facts.cache_gbs,
        "far_bytes": FAR,
        "meeting": MEETING,
        "each_member": MEMBER,
    }


class Prediction(NamedTuple):
    row: Row  # of one thread
    facts: Facts
    measured: float | None  # how many times faster two threads are
    modelled: dict[int, float]  # how many times faster so many are


def predictions(records: Iterable[tuple[Row, Facts]]) -> list[Prediction]:
    """Of our rows of one thread, in float32 on a CPU."""
    ours = {
        row.key(): (row, facts)
        for row, facts in records
        if row.contender == "fastrnn" and row.suite == "cpu" and row.dtype == "float32" and row.ms
    }
    found = []
    for row, facts in ours.values():
        if row.threads != 1 or row.device != "cpu":
            continue
        place = row.case, row.cell, row.mode, row.dtype, 2, row.device, row.contender
        two, _ = ours.get(place, (None, None))
        one = nanoseconds(row, facts, 1)
        modelled = {n: one / nanoseconds(row, facts, n) for n in (2, *COUNTS)}
        found.append(Prediction(row, facts, two and row.ms / two.ms, modelled))
    return found


def table(found: list[Prediction]) -> str:
    """Markdown: a line for each case, cell and mode, and how far off the model is."""
    heads = ["case", "T, N, I, H", "2, measured", "2", *map(str, COUNTS), "16: rows x units"]
    lines = [
        "How many times faster than one thread. Only 'measured' is that; the rest is the model.",
        "",
    ]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in sorted(found, key=lambda p: (p.row.mode, p.row.cell, p.row.case)):
        row, parts = one.row, split(one.row, one.facts, 16)
        sizes = f"{row.T}, {row.N}, {row.input_size}, {row.hidden_size}"
        cells = [f"{row.case} {row.cell} {row.mode}", sizes]
        cells += ["-" if one.measured is None else f"{one.measured:.2f}"]
        cells += [f"{one.modelled[n]:.2f}" for n in (2, *COUNTS)]
        cells += [f"{parts.rows} x {parts.units}"]
        lines.append("| " + " | ".join(cells) + " |")
    off = [one.modelled[2] / one.measured for one in found if one.measured]
    if off:
        far = max(off, key=lambda ratio: abs(math.log(ratio)))
        mean_off = geometric_mean([max(ratio, 1 / ratio) for ratio in off])
        most = max(far, 1 / far)
        off_by = f"At two threads the model is off by a factor of {mean_off:.2f} in the mean"
        lines += ["", f"{off_by}, {most:.2f} at most."]
    return "\n".join(lines)


# N, H, gates and threads.
SIZES = tuple(
    itertools.product(
        (1, 2, 8, 32, 64, 256), (64, 128, 256, 512, 1024, 2048), (1, 3, 4), (2, 4, 8, 16, 32)
    )
)


def slower(shared_by: dict[str, float], right: dict[str, float], isa: str = "avx2") -> list[float]:
    """How many times longer each step of SIZES takes that is shared by these costs, where others
    are right. What a dict leaves out is as in `split.h`."""
    from fastrnn._C import split_step, step_time

    def time(N: int, H: int, G: int, threads: int, costs: dict[str, float]) -> float:
        work = N, G * H, H, 4
        rows, units, _ = split_step(*work, threads, -(-H // panel(isa)), costs)
        return step_time(*work, rows, units, right)

    return [time(*size, shared_by) / time(*size, right) for size in SIZES]


def wrong_constants() -> dict[str, list[float]]:
    """By the cost and whether it is halved or doubled: `slower` by it."""
    from fastrnn._C import step_costs

    changes = itertools.product(step_costs().items(), (0.5, 2))
    return {f"{name} x {by:g}": slower({name: value * by}, {}) for (name, value), by in changes}


def own_constants(facts: Facts) -> str:
    """A sentence on what the constants of `split.h` cost on a machine."""
    own = own_costs(facts)
    ratios = slower({}, own, facts.isa)
    said = ", ".join(f"{name} {value:g}" for name, value in own.items())
    return (
        f"Shared by the constants of split.h instead of its own ({said}), steps here take "
        f"{geometric_mean(ratios):.3f} times as long in the mean, {max(ratios):.2f} at most."
    )


def constants_table(found: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = ["| constant | mean | worst | steps that change |", "|---|---|---|---|"]
    for name, ratios in found.items():
        changed = sum(ratio != 1 for ratio in ratios) / len(ratios)
        lines.append(
            f"| {name} | {geometric_mean(ratios):.3f} | {max(ratios):.2f} | {changed:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    folder = parser.parse_args().results
    for path in sorted(folder.glob("*.csv")):
        if found := predictions(results.load(path)):
            print(f"## {path.stem}\n\n{table(found)}\n\n{own_constants(found[-1].facts)}\n")
    print(f"## Wrong constants\n\n{constants_table(wrong_constants())}")


if __name__ == "__main__":
    main()
