"""The backend "cuda": loops over time in CUDA C++, compiled at installation."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Results, Saved
from ...torch_private import constant_in_graphs
from .. import gpu

NAME = "cuda"
DEVICE = "cuda"
COMPILED = True  # at installation, not at the first call
SCHEDULES = ("stepwise", "library")  # in which no block waits for another, see csrc/cuda/run.h
CAPABILITY = (8, 0)  # the least that the kernels are compiled for
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _built() -> str | None:
    try:
        kernels = importlib.import_module("fastrnn._C")
    except ImportError as error:
        return f"fastrnn has no compiled kernels here ({error}); reinstall it where nvcc is found"
    if hasattr(kernels, "cuda_groups"):
        return None
    return (
        "fastrnn was compiled without CUDA; install the CUDA toolkit, which has nvcc, and "
        "reinstall fastrnn with FASTRNN_BUILD=cuda"
    )


_missing = _built()


def status() -> str | None:
    """Why the kernels cannot run here, or None."""
    if _missing is not None:
        return _missing
    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    # No context is made for this, after which the process could not be forked.
    if torch.cuda.is_initialized() and torch.cuda.device_count() == 1:
        return unfit(torch.device("cuda", 0))
    return _too_old(*_extension().cuda_versions())


def _extension() -> ModuleType:
    return importlib.import_module("fastrnn._C")


def _too_old(built: int, driver: int) -> str | None:
    """Why a driver does not serve these kernels, or None: it serves a major version as a whole."""
    if not driver or driver // 1000 >= built // 1000:
        return None
    return (
        f"the kernels were compiled with CUDA {_version(built)} and the NVIDIA driver serves "
        f"{_version(driver)}; install a newer driver, or reinstall fastrnn with that toolkit"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


_unfit: dict[torch.device, str] = {}  # by GPU why the kernels cannot run on it, "" if they can


@constant_in_graphs
def _found(device: torch.device) -> str:
    """Asks CUDA once of a GPU. Nothing is launched."""
    if device not in _unfit:
        _unfit[device] = _asked(device) or ""
    return _unfit[device]


def _asked(device: torch.device) -> str | None:
    built, driver = _extension().cuda_versions()
    if reason := _too_old(built, driver):
        return reason
    with gpu.current(device):
        text = _extension().cuda_misfit()
    if text is None:
        return None
    major, minor = gpu.capability(device)
    return (
        f"the kernels cannot run on {device}: {text}. They were compiled with CUDA "
        f"{_version(built)}, and the NVIDIA driver serves {_version(driver)}; reinstall fastrnn "
        f"with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def unfit(device: torch.device) -> str | None:
    """Why the kernels as they were compiled cannot run on a GPU, or None. The first time it
    initialises CUDA there."""
    return _found(device) or None


def version() -> str:
    """What tells these kernels from others of the same version of the package."""
    file = _extension().__file__
    return f"compiled {os.stat(file).st_mtime_ns}"


def obstacle(call: Call, traced: bool = False) -> str | None:
    """Why the kernels cannot take a call, or None."""
    input = call.input
    if _missing is not None:
        return _missing
    if call.kind.step:
        return "the CUDA kernels take no cells made of functions; use the backend 'triton'"
    if not input.is_cuda:
        return f"tensors are on {input.device}; move them and the module to 'cuda'"
    if not torch.compiler.is_compiling():
        capability = gpu.capability(input.device)
        if capability < CAPABILITY:
            return (
                f"the GPU has compute capability {capability}, the kernels need {CAPABILITY}; "
                "use the backend 'cudnn' or 'reference'"
            )
        if reason := gpu.too_many_rows(call.h0):
            return reason
    if reason := unfit(input.device):
        return reason
    if input.dtype not in DTYPES:
        return f"dtype is {input.dtype}; convert to one of {', '.join(map(str, DTYPES))}"
    return None


@functools.cache
def _layers() -> ModuleType:
    """What imports the compiled kernels, at the first call."""
    return importlib.import_module("fastrnn.dispatch.cuda.launch")


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend` says."""
    return _layers().run(call, save)


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend` says."""
    return _layers().run_backward(call, cotangents, saved, needs)
