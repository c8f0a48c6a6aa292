"""What csrc/cuda/choose.h decides, and the times that it goes by, without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from ctypes import c_double, c_int, c_int64
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which("c++")
DTYPES = ("float32", "tf32", "float16", "bfloat16", "float64")
H200 = (132, 9)  # processors, and the major compute capability
Product = tuple[int, int, int]  # planes, units, depth
AtOnce = Callable[[int, int], int]  # of units and blocks of a group
_AT_ONCE = ctypes.CFUNCTYPE(c_int64, c_int64, c_int64)


class Times(NamedTuple):
    """Nanoseconds of a step in the schedules that make its products one by one."""

    library: float
    stepwise: float


class Tiles(NamedTuple):
    """What the step kernels make of a product."""

    rows: int
    units: int
    unit_tiles: int
    threads: int
    blocks: int
    shared: int


class Plan(NamedTuple):
    """The schedule of a loop without a projection; all but the first and the last are 0 where it is
    not the persistent one."""

    library: bool
    units: int
    blocks: int
    parts: int
    rows: int
    time: float  # nanoseconds of a step
    input: float  # of the product of the input among them


@cache
def _compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "choose.so"
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([COMPILER, *flags, str(source), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    wide, narrow, many = c_int64, c_int, ctypes.c_void_p
    library.step_times_of.argtypes = [many, narrow, wide, wide, narrow, narrow, narrow, many]
    library.tiles_of.argtypes = [many, wide, wide, narrow, many]
    library.plan_of.argtypes = [narrow, wide, wide, wide, *[narrow] * 5, _AT_ONCE, many, many]
    for function in (library.step_times_of, library.tiles_of, library.plan_of):
        function.restype = None
    return library


def times(
    products: Sequence[Product], N: int, D: int, dtype: str, device: tuple[int, int] = H200
) -> Times:
    """Of a step with these products."""
    numbers = [n for product in products for n in product]
    found = (c_double * 2)()
    given = (c_int64 * len(numbers))(*numbers)
    _compiled().step_times_of(given, len(products), N, D, DTYPES.index(dtype), *device, found)
    return Times(*found)


def tiles(product: Product, N: int, D: int, wide: bool) -> Tiles:
    """`wide`: of float64."""
    found = (c_int64 * 6)()
    _compiled().tiles_of((c_int64 * 3)(*product), N, D, wide, found)
    return Tiles(*found)


def of_h200(units: int, blocks: int) -> int:
    """How many groups of so many blocks an H200 runs at once (bench/results/nvidia-h200-micro.csv):
    clusters, or, of 16 units, through memory."""
    if units == 16:
        return 132 // blocks
    return next(n for most, n in ((1, 132), (2, 66), (4, 30), (8, 15), (16, 7)) if blocks <= most)


def plan(
    gates: int,
    H: int,
    N: int,
    dtype: str,
    D: int = 1,
    backward: bool = False,
    device: tuple[int, int] = H200,
    at_once: AtOnce = of_h200,
    alone: bool = False,
) -> Plan:
    """What takes least time, where persistent kernels are permitted; `alone`: of these."""
    found, time = (c_int64 * 5)(), (c_double * 2)()
    _compiled().plan_of(
        gates,
        H,
        N,
        D,
        DTYPES.index(dtype),
        backward,
        *device,
        alone,
        _AT_ONCE(at_once),
        found,
        time,
    )
    library, *others = found
    return Plan(bool(library), *others, *time)
