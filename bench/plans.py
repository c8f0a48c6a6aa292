"""Time every schedule of our kernels for GPUs beside torch.nn: where `choice.FASTER` and the rates
of `choose.h` come from.

    python -m bench.plans --out FILE.csv [--seconds 60] [--workers 12]
    python -m bench.plans --table FILE.csv      # what bench/RESULTS.md shows of the rows

A layer of one direction, input as wide as h, over a grid of hidden sizes and batches. A row is one
call, as it is or replayed from a CUDA graph: the median of groups of calls between CUDA events,
each with a cold L2 (`bench.cuda`); `host_us` is what the call takes until it returns. `cuda` and
`triton` take the schedule that they choose; what follows `cuda` names one. The grid is in the order
of its value and ends when the time does. Triton's kernels are compiled before, by several processes
at once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import fastrnn
from bench import cuda
from bench.problems import torch_dtype

STEPS = 100
CELLS = ("LSTM", "GRU", "RNN")
DTYPES = ("bfloat16", "tf32", "float16", "float32")
HIDDEN = (256, 512, 1024, 128, 2048)
BATCH = (64, 16, 1, 256, 1024)
MODES = ("inference", "training")
GROUPS, CALLS = 3, 5
COLUMNS = (
    *("gpu", "torch", "cudnn", "cell", "dtype", "H", "N", "T", "mode", "launch", "contender"),
    *("us", "host_us", "status"),
)


class Size(NamedTuple):
    cell: str
    dtype: str
    H: int
    N: int


def sizes() -> list[Size]:
    """The grid; RNN and float32 last, for they are what fewest train on a GPU."""
    late = {"RNN": 2, "float32": 1}
    grid = [Size(*p[::-1]) for p in itertools.product(BATCH, HIDDEN, DTYPES, CELLS)]
    grid.sort(key=lambda s: (late.get(s.cell, 0) + late.get(s.dtype, 0), HIDDEN.index(s.H) > 3))
    return grid


def call_of(library, size: Size, mode: str) -> Callable[[], object]:
    cuda.allow_tf32(size.dtype == "tf32")
    dtype = torch_dtype(size.dtype)
    torch.manual_seed(0)
    module = getattr(library, size.cell)(size.H, size.H, device="cuda", dtype=dtype)
    x = torch.randn(STEPS, size.N, size.H, device="cuda").to(dtype)
    if mode == "inference":

        def infer():
            with torch.no_grad():
                return module(x)

        return infer
    x.requires_grad_()
    dy = torch.randn_like(x)
    inputs = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x)[0], inputs, dy)


@contextlib.contextmanager
def forced(plan: tuple[bool, int]) -> Iterator[None]:
    """The schedule of the CUDA C++ kernels."""
    from fastrnn.dispatch.cuda import launch

    before = launch.choose
    launch.choose = lambda *_: launch.Plan(*plan)
    try:
        with fastrnn.backend("cuda"):
            yield
    finally:
        launch.choose = before


def contenders(size: Size) -> Iterator[tuple[str, object, contextlib.AbstractContextManager]]:
    """Name, library and what to enter."""
    yield "torch.nn", torch.nn, contextlib.nullcontext()
    yield "cuda few", fastrnn, forced((False, 0))
    if size.dtype != "float32":
        yield "cuda held", fastrnn, forced((False, 1))
        yield "cuda tall", fastrnn, forced((False, 2))
    yield "cuda library", fastrnn, forced((True, 0))
    yield "cuda", fastrnn, fastrnn.backend("cuda")
    yield "triton", fastrnn, fastrnn.backend("triton")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of a call on the device, and until it returns."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    device, host = [], []
    for _ in range(GROUPS):
        device.append(1e6 * cuda.sample(call, CALLS))
        begun = time.perf_counter()
        call()
        host.append(1e6 * (time.perf_counter() - begun))
        torch.cuda.synchronize()
    return statistics.median(device), statistics.median(host)


def warm(part: int, parts: int) -> None:
    """Compiles Triton's kernels for every `parts`th cell, dtype and hidden size from `part`, of
    which the batches often share them."""
    groups = list(dict.fromkeys(size._replace(N=0) for size in sizes()))
    for group in groups[part::parts]:
        for N in BATCH:
            for mode in MODES:
                with contextlib.suppress(RuntimeError), fastrnn.backend("triton"):
                    call_of(fastrnn, group._replace(N=N), mode)()
                    torch.cuda.synchronize()
        print(group, flush=True)


def table(path: Path) -> str:
    """Markdown: how many times faster than torch.nn, as it is and from a graph, the better of the
    two schedules that `choose.h` knows."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["us"]:
                key = tuple(row[name] for name in ("launch", "mode", "dtype", "cell", "N", "H"))
                found.setdefault(key, {})[row["contender"]] = float(row["us"])

    def ratio(*key: str) -> str:
        rows = found.get(key, {})
        ours = [rows[name] for name in ("cuda few", "cuda library") if name in rows]
        return f"{rows['torch.nn'] / min(ours):.1f}" if ours and "torch.nn" in rows else "-"

    hidden = sorted({int(key[-1]) for key in found})
    lines = ["| mode | precision | cell | N | " + " | ".join(f"H = {H}" for H in hidden) + " |"]
    lines.append("|---" * (4 + len(hidden)) + "|")
    for mode, dtype, cell in itertools.product(MODES, DTYPES, CELLS):
        for N in sorted({int(key[4]) for key in found if key[1:4] == (mode, dtype, cell)}):
            cells = (
                "{} / {}".format(
                    *(ratio(how, mode, dtype, cell, str(N), str(H)) for how in ("eager", "graph"))
                )
                for H in hidden
            )
            lines.append(f"| {mode} | {dtype} | {cell} | {N} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="time, and write the rows there")
    what.add_argument("--table", type=Path, metavar="FILE", help="show these rows")
    parser.add_argument("--seconds", type=float, default=60, help="in all (%(default)s)")
    parser.add_argument("--compile", type=float, default=40, help="of which for Triton")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--warm", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.table:
        print(table(chosen.table))
        return
    if chosen.warm is not None:
        warm(chosen.warm, chosen.workers)
        return
    begun = time.monotonic()
    command = [sys.executable, "-m", "bench.plans", "--out", "-", f"--workers={chosen.workers}"]
    children = [subprocess.Popen([*command, f"--warm={k}"]) for k in range(chosen.workers)]
    for child in children:
        try:
            child.wait(max(0.1, chosen.compile - (time.monotonic() - begun)))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    print(f"compiled for {time.monotonic() - begun:.0f} s", flush=True)
    facts = (torch.cuda.get_device_name(), torch.__version__, torch.backends.cudnn.version())
    with chosen.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for size, mode in itertools.product(sizes(), MODES):
            for name, library, around in contenders(size):
                if time.monotonic() - begun > chosen.seconds:
                    return
                with around:
                    for launch, *figures in measured(library, size, mode):
                        writer.writerow([*facts, *size, STEPS, mode, launch, name, *figures])
            file.flush()


def measured(library, size: Size, mode: str) -> Iterator[tuple[str, str, str, str]]:
    """(launch, us, host_us, status) of calls as they are and of the replay of a graph."""
    try:
        call = call_of(library, size, mode)
        for launch, run in (("eager", lambda: call), ("graph", lambda: cuda.captured(call))):
            device, host = timed(run())
            yield launch, f"{device:.1f}", f"{host:.1f}", "ok"
    except RuntimeError as error:
        yield "any", "", "", str(error).splitlines()[0][:150]


if __name__ == "__main__":
    main()
