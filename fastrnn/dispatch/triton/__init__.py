"""The backend "triton": loops over time in Triton, with no compiler at installation.

Importing this package does not import Triton; the first call does. With the environment variable
TRITON_INTERPRET=1 of Triton set before Python starts, its interpreter runs the kernels on CPU
tensors instead: slow, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from importlib import metadata

import torch

from ...call import Call
from ...programs.program import Program
from ...results import Cotangents, Gradients, Needs, Results, Saved
from .. import gpu
from ..gpu import layer
from .choose import SUMMED

NAME = "triton"
MINIMUM = (3, 6)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COMPILED = False  # but at the first call
SCHEDULES = ("stepwise",)  # in which no program waits for another


PROGRAMS: dict[str, Program] = {}  # cells that are functions, by name


def register(program: Program) -> None:
    """Has the kernels know a cell made of a function, under the program's name."""
    PROGRAMS.setdefault(program.name, program)


def missing(version: str | None) -> str | None:
    """Why this version of Triton (None: there is none) does not do, or None if it does."""
    remedy = f"on Linux, pip install 'triton>={'.'.join(map(str, MINIMUM))}'"
    if version is None:
        return f"there is no Triton; {remedy}"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return f"Triton {version} is too old; {remedy}"
    return None


def version() -> str | None:
    """That of Triton, or None where there is none."""
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


_missing = missing(version())


def status() -> str | None:
    """Why the kernels cannot run here, or None."""
    if _missing is None and not INTERPRETED and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return _missing


def obstacle(call: Call, traced: bool = False) -> str | None:
    """Why the kernels cannot take a call, or None."""
    input = call.input
    if _missing is not None:
        return _missing
    if call.kind.step and PROGRAMS[call.cell].row_sums and call.hidden_size > SUMMED:
        return (
            f"the step sums over units; the Triton kernels do over {SUMMED} at most: take a "
            f"hidden_size of {SUMMED} or less, or a CPU"
        )
    if input.device.type != DEVICE:
        return f"tensors are on {input.device}; move them and the module to 'cuda'"
    if input.is_cuda and torch.version.hip is None and not torch.compiler.is_compiling():
        capability = gpu.capability(input.device)
        if capability < (8, 0):
            return (
                f"the GPU has compute capability {capability}, Triton needs (8, 0); "
                "use the backend 'cudnn' or 'reference'"
            )
        if reason := gpu.too_many_rows(call.h0):
            return reason
    if input.dtype not in DTYPES:
        return f"dtype is {input.dtype}; convert to torch.float32, torch.bfloat16 or torch.float16"
    return None


@functools.cache
def _loops():
    """What imports Triton, at the first call."""
    return importlib.import_module("fastrnn.dispatch.triton.launch")


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend` says."""
    return layer.run(_loops(), call, save)


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend` says."""
    return layer.run_backward(_loops(), call, cotangents, saved, needs)
