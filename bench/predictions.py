"""What the persistent kernels are predicted to take, beside what other kernels took.

    python -m bench.predictions      # the table of bench/RESULTS.md

No GPU has run them with a clock. The predictions are those by which csrc/cuda/choose.h chooses: 1.3
times the floors of a step's parts, and the products over all steps.
"""

import itertools
from collections.abc import Iterable

from bench import choose, plans
from bench.contenders import BASELINE
from bench.results import FOLDER, Record, kept

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DTYPES = ("bfloat16", "float16", "tf32")
HIDDEN, BATCH = (128, 256, 512, 1024, 2048), (1, 16, 64, 256)
Place = tuple[str, str, str, int, int]  # mode, precision, cell, N, H
COLUMNS = {"step kernels": plans.scheduled("stepwise").name, "cuDNN": BASELINE.name}


def predicted(place: Place) -> tuple[float, bool] | None:
    """(microseconds a step, whether choose.h expects no other schedule to be faster); None where no
    group of blocks holds the layer."""
    mode, dtype, cell, N, H = place
    passes = (False, True) if mode == "training" else (False,)
    alone, best = (
        [choose.plan(GATES[cell], H, N, dtype, backward=back, alone=only) for back in passes]
        for only in (True, False)
    )
    if not all(plan.units for plan in alone):
        return None
    # The gradients of both weights are two more products over all steps.
    weights = 2 * alone[0].input if mode == "training" else 0.0
    time = sum(plan.time for plan in alone) + weights
    return time / 1e3, all(plan.units for plan in best)


def measured(records: Iterable[Record]) -> dict[tuple[str, Place], float]:
    """Microseconds a step of calls that were replayed from a graph, by contender and place."""
    found = {}
    for row, _ in records:
        name, suffix, _ = row.contender.partition(" graph")
        if row.ms and suffix:
            place = row.mode, row.dtype, row.cell, row.N, row.hidden_size
            found[name, place] = 1e3 * row.ms / row.T
    return found


def table(records: Iterable[Record]) -> str:
    """Markdown: persistent / step kernels / cuDNN, in microseconds a step."""
    found = measured(records)

    def entry(place: Place) -> str:
        ours = predicted(place)
        texts = ["-" if ours is None else f"{ours[0]:.1f}" + "*" * (not ours[1])]
        for name in COLUMNS.values():
            time = found.get((name, place))
            texts.append(f"{time:.1f}" if time else "-")
        return " / ".join(texts)

    lines = ["| mode | precision | cell | N | " + " | ".join(f"H = {H}" for H in HIDDEN) + " |"]
    lines.append("|---" * (4 + len(HIDDEN)) + "|")
    for place in itertools.product(plans.MODES, DTYPES, GATES, BATCH):
        entries = [entry((*place, H)) for H in HIDDEN]
        lines.append(f"| {' | '.join(map(str, place))} | {' | '.join(entries)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for records in kept(FOLDER)[1]:
        print(table(records))
