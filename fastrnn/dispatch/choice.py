"""What "auto" knows of the kernels for GPUs: where they were tried, and where they are faster.

Both tables hold what was measured; how far that was carried is said beside it. Beyond them "auto"
takes PyTorch's own kernels for all that these can do, and the reference for the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

# Backends whose every test has passed on a GPU of this major compute capability (`make gpu`). On
# other NVIDIA GPUs "auto" takes one for what torch.nn lacks after its self-test: see `selftest`.
TRIED: frozenset[tuple[str, int]] = frozenset({("cuda", 9), ("triton", 9)})
# The same of cells that are functions. Their kernels have run in Triton's interpreter alone.
TRIED_FUNCTIONS: frozenset[tuple[str, int]] = frozenset()

forced = ""  # the backend that the user chose, which then runs wherever it can


def tried(backend: str, major: int, functions: bool) -> bool:
    """Whether the tests of a backend have passed on such a GPU; of its cells that are functions."""
    return (backend, major) in (TRIED_FUNCTIONS if functions else TRIED)


class _Here(threading.local):
    schedule = ""


_here = _Here()


@contextlib.contextmanager
def testing(schedule: str) -> Iterator[None]:
    """Has the kernels run what this thread calls in a schedule, one of their `SCHEDULES`, whatever
    the user, the environment or the sizes say: a self-test is about that schedule."""
    _here.schedule = schedule
    try:
        yield
    finally:
        _here.schedule = ""


def tested() -> str:
    """The schedule of the self-test that this thread makes, or ""."""
    return _here.schedule


def may_meet(backend: str, major: int, functions: bool) -> bool:
    """Whether blocks of its kernels may wait for each other. If something were wrong, they would
    wait until a limit ends them: no self-test makes them."""
    return not tested() and (backend == forced or tried(backend, major, functions))


class Row(NamedTuple):
    """Calls in which a backend was faster than PyTorch's own kernels, with gradients and without,
    in one direction and without a projection. Bounds are inclusive."""

    backend: str  # "cuda" or "triton"
    major: int  # of the GPU's compute capability
    cells: frozenset[str]
    precisions: frozenset[str]  # see `gpu.precision`
    packed: bool
    layers: tuple[int, int]
    steps: tuple[int, int]  # of a packed batch their mean
    batch: tuple[int, int]
    hidden: tuple[int, int]
    captured: bool  # also in a CUDA graph of the user's, where no call waits for the host
    eights: bool = True  # also batches that are multiples of 8


LSTM, GRU = frozenset({"lstm"}), frozenset({"gru"})
BF16, FP16, TF32 = frozenset({"bfloat16"}), frozenset({"float16"}), frozenset({"tf32"})

# Of bench/results/nvidia-h200-plans.csv: T = 100, H = 128, 256, 512, 1024, N = 1, 16, 64, input as
# wide as h. Other T, other inputs and sizes between these were not measured. A call of ours gains
# at each step, and loses a constant. `steps` are the T for which that balance, taken from the
# measured rows, is a gain. PyTorch lets cuDNN use faster, persistent kernels in two cases: an LSTM
# in float16 if the batch is a multiple of 8, and small layers in all dtypes but bfloat16. In all
# other cases its algorithm does not depend on the size (`get_algo` in PyTorch's RNN.cpp). So the
# rows of N = 1 also stand for float16 LSTMs of other such batches, up to those that gain in
# bfloat16. The rows of H = 128 also stand for smaller layers in bfloat16, where both sides only
# wait for launches.
_hopper = partial(Row, "cuda", 9, packed=False, layers=(1, 1), steps=(50, 10_000))
FASTER: tuple[Row, ...] = (
    _hopper(LSTM | GRU, BF16, batch=(1, 64), hidden=(1, 512), captured=True),
    _hopper(LSTM | GRU, BF16, batch=(1, 16), hidden=(513, 1024), captured=True),
    _hopper(LSTM | GRU, BF16, batch=(17, 64), hidden=(513, 1024), captured=False),
    _hopper(GRU, FP16, batch=(1, 64), hidden=(256, 512), captured=True),
    _hopper(GRU, FP16, batch=(1, 16), hidden=(513, 1024), captured=True),
    _hopper(GRU, FP16, batch=(17, 64), hidden=(513, 1024), captured=False),
    _hopper(LSTM, FP16, batch=(1, 63), hidden=(256, 512), captured=True, eights=False),
    _hopper(LSTM, FP16, batch=(1, 15), hidden=(513, 1024), captured=True, eights=False),
    _hopper(LSTM | GRU, TF32, batch=(1, 64), hidden=(256, 512), captured=True),
    _hopper(LSTM, TF32, batch=(16, 64), hidden=(513, 1024), captured=True),
    _hopper(LSTM, TF32, batch=(1, 15), hidden=(513, 1024), captured=False),
    _hopper(GRU, TF32, batch=(1, 64), hidden=(513, 1024), captured=False),
)


class Question(NamedTuple):
    """A call of which a row may speak, in the terms of `Row`."""

    backend: str
    major: int
    cell: str
    precision: str
    packed: bool
    layers: int
    steps: int
    batch: int
    hidden: int
    captured: bool  # whether a CUDA graph is being captured
    directions: int = 1
    inputs: int = 0  # width of the input


def faster(asked: Question) -> bool:
    """Whether a row says that the backend is faster in such a call."""
    return any(
        row[:2] == asked[:2]
        and asked.directions == 1
        and asked.cell in row.cells
        and asked.precision in row.precisions
        and row.packed == asked.packed
        and row.layers[0] <= asked.layers <= row.layers[1]
        and row.steps[0] <= asked.steps <= row.steps[1]
        and row.batch[0] <= asked.batch <= row.batch[1]
        and row.hidden[0] <= asked.hidden <= row.hidden[1]
        and (row.captured or not asked.captured)
        and (row.eights or asked.batch % 8 != 0)
        for row in FASTER
    )
