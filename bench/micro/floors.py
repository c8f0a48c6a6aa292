"""What a time step of an LSTM in bf16 costs at least on a Hopper GPU, by design, from rows.

    python -m bench.micro.floors bench/results/<machine>-micro.csv

Three designs, for hidden size H and a batch of B sequences:

(a) clusters: S blocks hold the weights of all gates; the batch is split over the clusters that fit
    on the GPU; h crosses by stores into the shared memory of the peers. S = 1: nothing crosses.
(b) grid: 128 SMs in G groups, each of which holds all weights and takes B / G sequences; h crosses
    through L2.
(c) launches: one kernel a step (product and gates fused), or two; weights stream from L2.

    a, b: max(product, shared memory) + 60 + gates + 80 + exchange    cycles
    c:    kernels * boundary + max(weights / L2, product / matrix rate)

60 cycles fill the pipeline, 80 are two block barriers. These floors rank designs; they predict no
kernel. A figure that the rows do not hold keeps the value assumed from other people's reports.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from bench.micro.rows import Table, load

HIDDEN = (128, 256, 512, 768, 1024, 2048)
BATCHES = (1, 8, 16, 32, 64, 128, 256)
REGISTER_BYTES = 128 * 1024  # of weights that an SM keeps in registers
BLOCK_BYTES = 318 * 1024  # of weights that an SM keeps at all
SMEM_RATE = 128  # bytes a cycle
SFU_RATE = 16  # special functions a cycle
GRID_SMS = 128
WEIGHT, STATE, SUM = 2, 2, 4  # bytes of bf16, bf16 and float


class Curve:
    """Straight lines between points (x, y), the last one extended; below the first, its y."""

    def __init__(self, points: Iterable[tuple[float, float]]):
        self.points = sorted(points)

    @classmethod
    def line(cls, at_zero: float, rate: float) -> "Curve":
        return cls([(0, at_zero), (1 << 20, at_zero + (1 << 20) / rate)])

    def __call__(self, x: float) -> float:
        points = self.points
        if x <= points[0][0] or len(points) == 1:
            return points[0][1]
        right = next((i for i, (at, _) in enumerate(points) if at >= x), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(right, 1) - 1], points[max(right, 1)]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@dataclass
class Machine:
    """What the arithmetic needs of a GPU. The defaults are assumed; `measured` names the rest."""

    clock: float = 1.9  # GHz
    # FLOP a cycle of an SM, weights in registers, by sequences of a block; from 64 on, wgmma.
    mma: dict[int, float] = field(default_factory=lambda: {8: 2617, 16: 2617, 32: 2617, 64: 3890})
    # Co-resident clusters, by their size.
    clusters: dict[int, int] = field(default_factory=lambda: {1: 132, 2: 66, 4: 30, 8: 15, 16: 4})
    # Cycles, by cluster size, against bytes that a block receives.
    push: dict[int, Curve] = field(
        default_factory=lambda: dict.fromkeys((2, 4, 8, 16), Curve.line(270, 13.2))
    )
    # Cycles, by blocks, against bytes of the whole vector.
    gather: dict[int, Curve] = field(
        default_factory=lambda: dict.fromkeys((32, 64, 128), Curve.line(0.6e3 * 1.9, 35))
    )
    boundary: float = 1300  # ns between kernels of a graph
    l2: float = 6.0  # TB/s into all SMs, each its own data
    matrix: float = 600  # TFLOP/s of a product that is not large; 3/4 of a large one
    measured: list[str] = field(default_factory=list)

    def mma_rate(self, sequences: int) -> float:
        return self.mma[max(n for n in self.mma if n <= max(sequences, min(self.mma)))]


def measure(table: Table) -> Machine:
    """The machine that the rows describe."""
    machine = Machine()

    def take(name: str, value) -> None:
        if value:
            setattr(machine, name, value)
            machine.measured.append(name)

    cycles = {row.parameters: row.value for row in table.find("allgather", "step", "cycles")}
    ratios = [
        cycles[row.parameters] / row.value
        for row in table.find("allgather", "step", "ns")
        if row.parameters in cycles
    ]
    take("clock", sorted(ratios)[len(ratios) // 2] if ratios else None)
    rates = {}
    for row in table.find("mma_rate", "rate", "FLOP/clk/SM", b="smem"):
        rates[int(row.get("n"))] = max(row.value, rates.get(int(row.get("n")), 0))
    take("mma", rates and machine.mma | rates)
    fits = table.values("clusters", "resident", "clusters", "cluster")
    take("clusters", {size: int(count) for size, count in fits.items() if count})
    take("push", _fastest(table, "dsmem_push", "cluster", lambda size: (size - 1) / size))
    take("gather", _fastest(table, "allgather", "blocks", lambda _: 1, unchecked="none"))
    take("boundary", table.value("boundary", "boundary", "ns", blocks=128, work=2000, way="pdl"))
    l2 = table.find("l2_read", "read", "TB/s", blocks=GRID_SMS, share="none")
    take("l2", max((row.value for row in l2), default=None))
    rate = table.value("ceilings", "rate", "TFLOP/s", dtype="bf16")
    take("matrix", rate and 0.75 * rate)
    return machine


def _fastest(table: Table, program: str, size: str, share, unchecked: str = "") -> dict[int, Curve]:
    """For each value of `size`: cycles of a step, the fastest way's, against bytes received; with
    the most clusters at once where the rows tell."""
    points: dict[int, dict[float, float]] = {}
    rows = [row for row in table.find(program, "step", "cycles") if row.get("way") != unchecked]
    for row in rows:
        if "clusters=" in row.parameters and int(row.get("clusters")) < max(
            int(other.get("clusters")) for other in rows if other.get(size) == row.get(size)
        ):
            continue
        number = int(row.get(size))
        of_size = points.setdefault(number, {})
        received = int(row.get("gather")) * share(number)
        of_size[received] = min(row.value, of_size.get(received, row.value))
    return {number: Curve(of_size.items()) for number, of_size in points.items()}


def block_cycles(
    machine: Machine, rows: int, depth: int, units: int, sequences: int, functions: int
) -> float:
    """Cycles of a step in one SM but for the exchange: a product of `rows` gates, or units, by
    `depth` inputs, then `functions` special functions for each of `units` x `sequences` cells."""
    columns = 8 * ceil(sequences / 8)
    product = 2 * rows * depth * columns / machine.mma_rate(columns)
    # 8 warps, `split` of which share the depth and add up in shared memory.
    traffic = min(
        8 / split * columns * depth * STATE + 2 * split * rows * columns * SUM
        for split in (1, 2, 4, 8)
    )
    traffic += max(0, rows * depth * WEIGHT - REGISTER_BYTES)
    gates = 100 + functions * units * sequences / SFU_RATE
    return max(product, traffic / SMEM_RATE) + 60 + gates + 80


def clusters(machine: Machine, hidden: int, batch: int, backward: bool = False) -> float | None:
    """us a step of design (a), in its best size of cluster; None if no cluster holds the weights.
    Backward, a block keeps its gates and sends partial sums of dh, in float, to their owners."""
    times = []
    for size, count in machine.clusters.items():
        if 8 * hidden * hidden / size > BLOCK_BYTES or size not in (1, *machine.push):
            continue
        sequences = ceil(batch / count)
        element, functions = (SUM, 1) if backward else (STATE, 5)
        vector = sequences * hidden * element
        cycles = block_cycles(
            machine, 4 * hidden // size, hidden, hidden // size, sequences, functions
        )
        if size > 1:
            cycles += machine.push[size](vector * (size - 1) / size)
            cycles += vector / SMEM_RATE if backward else 0  # adding up what came
        times.append(cycles / machine.clock / 1e3)
    return min(times, default=None)


def grid(machine: Machine, hidden: int, batch: int, backward: bool = False) -> float | None:
    """us a step of design (b), in its best number of groups; None if 128 SMs do not hold the
    weights. Backward, a block owns columns of dh and gathers the gradients of all gates."""
    times = []
    for groups in (1, 2, 4, 8, 16):
        sms = GRID_SMS // groups
        if 8 * hidden * hidden / sms > BLOCK_BYTES or groups > batch or hidden % sms:
            continue
        sequences, units = ceil(batch / groups), hidden // sms
        if backward:
            cycles = block_cycles(machine, units, 4 * hidden, units, sequences, 1)
        else:
            cycles = block_cycles(machine, 4 * units, hidden, units, sequences, 5)
        vector = sequences * hidden * STATE * (4 if backward else 1)
        nearest = min(machine.gather, key=lambda blocks: abs(blocks - sms))
        cycles += machine.gather[nearest](vector)
        times.append(cycles / machine.clock / 1e3)
    return min(times, default=None)


def launches(machine: Machine, hidden: int, batch: int, kernels: int) -> float:
    """us a step of design (c), forward or backward."""
    weights = 8 * hidden * hidden / (machine.l2 * 1e6)
    product = 8 * hidden * hidden * batch / (machine.matrix * 1e6)
    return kernels * machine.boundary / 1e3 + max(weights, product)


def floors(machine: Machine, hidden: int, batch: int, backward: bool = False) -> dict[str, float]:
    """us a step by design, those that are possible."""
    times = {
        "a": clusters(machine, hidden, batch, backward),
        "b": grid(machine, hidden, batch, backward),
        "c": launches(machine, hidden, batch, 1),
        "c2": launches(machine, hidden, batch, 2),
    }
    return {design: time for design, time in times.items() if time is not None}


def report(table: Table) -> str:
    """The constants and the tables, in Markdown."""
    machine, assumed = measure(table), Machine()
    lines = ["| constant | assumed | measured |", "|---|---|---|"]
    for name in "clock mma clusters push gather boundary l2 matrix".split():
        got = _words(getattr(machine, name)) if name in machine.measured else "no row"
        lines.append(f"| {name} | {_words(getattr(assumed, name))} | {got} |")
    for backward in (False, True):
        way = "backward" if backward else "forward"
        lines += ["", f"LSTM bf16 {way}, us a step, the least in bold", ""]
        lines.append("| H | design | " + " | ".join(f"B={batch}" for batch in BATCHES) + " |")
        lines.append("|---" * (len(BATCHES) + 2) + "|")
        for hidden in HIDDEN:
            columns = [floors(machine, hidden, batch, backward) for batch in BATCHES]
            for design in ("a", "b", "c", "c2"):
                cells = [_cell(times, design) for times in columns]
                lines.append(f"| {hidden} | {design} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(times: dict[str, float], design: str) -> str:
    if design not in times:
        return "-"
    text = f"{times[design]:.2f}"
    return f"**{text}**" if times[design] == min(times.values()) else text


def _words(value) -> str:
    """A constant for the table; of a curve, its values at 4 and 32 KiB."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items())
    if isinstance(value, Curve):
        return f"{value(4096):.0f} .. {value(32768):.0f}"
    return f"{value:.4g}"


if __name__ == "__main__":
    print(report(Table([row for path in sys.argv[1:] for row in load(Path(path))])))
