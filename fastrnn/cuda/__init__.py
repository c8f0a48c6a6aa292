"""Kernels in CUDA C++, compiled at installation: loops over time for `fastrnn.gpu`."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from .. import gpu
from ..gpu import Cell, Tensors
from ..reference import Sizes

CAPABILITY = (8, 0)  # the least that the kernels are compiled for
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _built() -> str | None:
    try:
        kernels = importlib.import_module("fastrnn._C")
    except ImportError as error:
        return f"fastrnn has no compiled kernels here ({error}); reinstall it where nvcc is found"
    if hasattr(kernels, "CudaForward"):
        return None
    return (
        "fastrnn was compiled without CUDA; install the CUDA toolkit, which has nvcc, and "
        "reinstall fastrnn with FASTRNN_BUILD=cuda"
    )


_missing = _built()


def status() -> str | None:
    """Why the kernels cannot run here, or None."""
    if _missing is None and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return _missing


def obstacle(input: Tensor) -> str | None:
    """Why the kernels cannot take a call with this input, or None."""
    if _missing is not None:
        return _missing
    if not input.is_cuda:
        return f"tensors are on {input.device}; move them and the module to 'cuda'"
    if not torch.compiler.is_compiling():
        capability = gpu.capability(input.device)
        if capability < CAPABILITY:
            return (
                f"the GPU has compute capability {capability}, the kernels need {CAPABILITY}; "
                "use the backend 'cudnn' or 'reference'"
            )
    if input.dtype not in DTYPES:
        return f"dtype is {input.dtype}; convert to one of {', '.join(map(str, DTYPES))}"
    return None


def forward(cell: Cell, size: Sizes, tensors: Tensors) -> None:
    """As `gpu.Loops` says."""
    importlib.import_module("fastrnn.cuda.launch").forward(cell, size, tensors)


def backward(
    cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
) -> None:
    """As `gpu.Loops` says."""
    launch = importlib.import_module("fastrnn.cuda.launch")
    launch.backward(cell, size, tensors, detach_every, grad_clip)
