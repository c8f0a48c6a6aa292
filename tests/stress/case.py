"""What a call can be, and what of it goes together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
MOST = {"T": 300, "N": 300, "I": 700, "H": 1100, "P": 700}
PACKED = ("packed", "unsorted")
INFERENCE = ("no_grad", "inference_mode", "frozen")


class Case(NamedTuple):
    """The defaults are what is simplest."""

    seed: int
    T: int = 1
    N: int = 1
    I: int = 1
    H: int = 1
    P: int = 0  # of a projection, or 0
    cell: str = "lstm"
    kind: str = "layer"  # or step, stream, cell: module.step, a Streamer, a cell, T times
    dtype: str = "float32"
    isa: str = "best"  # or the name of an instruction set, for a CPU that has it
    layers: int = 1
    directions: int = 1
    bias: bool = True
    form: str = "padded"  # or batch_first, unbatched, packed, unsorted
    lengths: str = ""  # or random, long (one of them), equal, some (are not 0), empty (all 0)
    reset: bool = False
    detach_every: int = 0
    grad_clip: float = 0.0
    states: bool = False
    gates: bool = False
    hx: bool = False
    layout: str = "plain"  # of what comes in, or offset, transposed, strided, expanded
    weights: str = "plain"  # their layout, or offset, transposed
    loss: str = "all"  # or output, last, final, some (results); no_grad, inference_mode, frozen
    wanted: str = "xsw"  # gradients: of the input x, states s, weights w
    threads: int = 1
    callers: int = 1  # Python threads at once
    shared: bool = True  # by these, the module

    @property
    def G(self) -> int:
        return GATES[self.cell]

    @property
    def width(self) -> int:
        """Of h."""
        return self.P or self.H

    @property
    def rows(self) -> int:
        return self.T * self.N

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def packed(self) -> bool:
        return self.form in PACKED

    @property
    def trains(self) -> bool:
        return self.loss not in INFERENCE

    @property
    def beyond_torch(self) -> bool:
        """Whether the layer is asked for what torch.nn lacks."""
        masked = self.reset or (self.lengths != "" and not self.packed)
        return masked or self.states or self.gates or self.detach_every > 0 or self.grad_clip > 0

    @property
    def cost(self) -> float:
        """Floating-point operations of a call, in those of float32 on the best instruction set, or
        memory that takes as long."""
        weights = self.directions * self.G * self.H * self.layers
        depth = self.I + self.width * (1 if self.layers == 1 else self.directions)
        slow = {"float64": 2}.get(self.dtype, 1) * {"portable": 16, "avx2": 2}.get(self.isa, 1)
        # Gradients that vanish on their way become denormal numbers: many times as slow.
        slow *= 8 if self.loss in ("last", "final") and self.T > 50 else 1
        flops = 2 * self.rows * weights * depth * (3 if self.trains else 1) * self.callers * slow
        numbers = self.rows * weights * (8 if self.beyond_torch else 4) + weights * depth
        return max(flops, numbers * 128)

    def row_lengths(self) -> list[int]:
        rng, T, N = random.Random(self.seed), self.T, self.N
        least = 1 if self.packed else 0
        if self.lengths == "long":
            lengths = [rng.randint(least, max(1, T // 20)) for _ in range(N)]
            lengths[rng.randrange(N)] = T
        elif self.lengths == "some":
            lengths = [T * rng.choice((0, 1)) for _ in range(N)]
        else:
            same = rng.randint(1, T)
            each = {"equal": lambda: same, "empty": lambda: 0}
            lengths = [each.get(self.lengths, lambda: rng.randint(least, T))() for _ in range(N)]
        return sorted(lengths, reverse=True) if self.form == "packed" else lengths


def legal(case: Case) -> Case:
    """The case without what does not go together."""
    change: dict[str, object] = {}
    if case.cell != "lstm" or case.kind == "cell" or case.P >= case.H:
        change["P"] = 0
    if case.kind == "stream" and case.dtype not in ("float32", "float64"):
        change["dtype"] = "float32"
    if case.kind == "stream" and case.trains:
        change["loss"] = "no_grad"
    if case.kind != "layer":
        change |= {"directions": 1, "lengths": "", "states": False, "gates": False}
        change |= {"detach_every": 0, "grad_clip": 0.0, "T": min(case.T, 8)}
        if case.form not in (("unbatched",) if case.kind == "cell" else ("batch_first",)):
            change["form"] = "padded"
    if case.kind == "cell":
        change |= {"layers": 1, "reset": False}
    if case.packed:
        change |= {"reset": False, "states": False, "gates": False}
        change |= {"detach_every": 0, "grad_clip": 0.0}
        if case.lengths in ("", "some", "empty"):
            change["lengths"] = "random"
    if case.form == "unbatched":
        change |= {"N": 1, "lengths": ""}
    if case.directions == 2:
        change["reset"] = False
    return case._replace(**change)


def simpler(case: Case) -> Iterator[Case]:
    """Cases with a feature less, or with half or one less of a size."""
    for field, default in Case._field_defaults.items():
        value = getattr(case, field)
        if isinstance(value, int) and not isinstance(value, bool) and value > default:
            smaller = [default, *(value * k // 8 for k in (4, 6, 7)), value - 1]
            smaller = [v for v in dict.fromkeys(smaller) if default <= v < value]
        else:
            smaller = [default] if value != default else []
        for v in smaller:
            if (other := legal(case._replace(**{field: v}))) != case and other.cost <= case.cost:
                yield other
