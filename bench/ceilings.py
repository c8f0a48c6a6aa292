"""What the machine can do at most, measured in the run whose rows are read against it, and the
least time that a row could take on it."""

import ctypes
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from bench import cuda
from bench.cases import BYTES, Spec
from bench.timing import sample, torch_threads

SOURCE = Path(__file__).with_name("ceilings.c")
SIZES = (1 << 15, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 27)  # bytes read over and over
REAL = {"float32": "float", "tf32": "float", "float64": "double"}


@dataclass(frozen=True)
class Ceilings:
    """Of all threads together, or of the GPU."""

    flops: float  # operations a second, in the dtype and on the threads of the spec
    reads: tuple[tuple[int, float], ...]  # (working set of a thread, bytes a second), ascending

    def bandwidth(self, size: float) -> float:
        """Bytes a second from where a working set of `size` bytes to a thread lies."""
        return next((rate for bytes, rate in self.reads if bytes >= size), self.reads[-1][1])


def floor(spec: Spec, ceilings: Ceilings) -> float:
    """Seconds that one call of `spec` takes at least: for its products at the rate of the units, or
    for reading what it has to read, whichever is longer.

    On a CPU that is every recurrent weight once a step, from where the weights of one layer and
    thread fit, and once more in the backward pass; weights held in registers could beat it. On a
    GPU, whose kernels do hold them, it is weights, input and output once, three times in training.
    """
    case, size = spec.case, BYTES[spec.dtype]
    inputs, recurrent = (size * count for count in spec.weights())
    if spec.device == "cpu":
        rate = ceilings.bandwidth(recurrent / (case.layers * case.directions * spec.threads))
        read = case.T * recurrent * (2 if spec.backward() else 1)
    else:
        width = case.input_size + case.directions * case.output_size
        read = inputs + recurrent + case.steps() * width * size
        read *= 3 if spec.backward() else 1
        rate = ceilings.bandwidth(read)
    return max(spec.flops() / ceilings.flops, read / rate)


def measure(dtype: str, threads: int, device: str = "cpu") -> Ceilings | None:
    """None where a CPU's rate is not known: in the short dtypes, or without a C compiler."""
    if device == "cuda":
        return Ceilings(cuda.matrix_rate(dtype), ((0, cuda.copy_rate()),))
    library = compiled(REAL[dtype]) if dtype in REAL else None
    if library is None:
        return None
    buffers = [ctypes.create_string_buffer(SIZES[-1] + 64) for _ in range(threads)]
    places = [-(-ctypes.addressof(buffer) // 64) * 64 for buffer in buffers]
    with ThreadPoolExecutor(threads) as pool:
        turns = 4_000_000  # tens of milliseconds, beside which waking a thread is nothing
        seconds = fastest(pool, [partial(library.multiply, turns)] * threads)
        flops = threads * turns * library.operations() / seconds
        reads = []
        for size in SIZES:
            turns = max(1, SIZES[-1] // size)
            seconds = fastest(pool, [partial(library.read_all, at, size, turns) for at in places])
            reads.append((size, threads * turns * size / seconds))
    return Ceilings(flops, tuple(reads))


def fastest(pool: ThreadPoolExecutor, jobs: list[Callable[[], object]]) -> float:
    """Seconds that the jobs take together at best, each on a thread; ctypes holds no lock."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for future in [pool.submit(job) for job in jobs]:
            future.result()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def compiled(real: str) -> ctypes.CDLL | None:
    """ceilings.c for this machine, or None where no C compiler takes it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceilings.so"
        flags = ["-O3", "-ffp-contract=fast", "-shared", "-fPIC", f"-DREAL={real}"]
        if platform.machine() not in ("aarch64", "arm64"):  # all have NEON; Apple's Clang lacks it
            flags.append("-march=native")
        command = [compiler, *flags, str(SOURCE), "-o", str(path)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        library = ctypes.CDLL(str(path))
    library.operations.restype = ctypes.c_long
    library.multiply.argtypes, library.multiply.restype = [ctypes.c_long], ctypes.c_double
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    library.read_all.restype = ctypes.c_longlong
    return library


def matrix_rate(size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of torch.mm on square float32 matrices, one thread: what the machine is seen to do in
    practice. The best of several calls, as for any ceiling."""
    with torch_threads(1):
        a, b = torch.randn(size, size), torch.randn(size, size)
        best, stop = math.inf, time.perf_counter() + seconds
        while time.perf_counter() < stop:
            best = min(best, sample(lambda: torch.mm(a, b), 1))
    return 2 * size**3 / best
