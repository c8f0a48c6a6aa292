"""Kernels in Triton for GPUs: the ops of `fastrnn.ops` without a compiler at installation.

Importing this package does not import Triton; the first call does. With the environment variable
TRITON_INTERPRET=1 of Triton set before Python starts, its interpreter runs the kernels on CPU
tensors instead: slow, for tests.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata

import torch
from torch import Tensor

MINIMUM = (3, 6)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
_OPS = ("layer_inference", "layer_forward", "layer_backward")
_KEY = "CPU" if INTERPRETED else "CUDA"


def missing(version: str | None) -> str | None:
    """Why this version of Triton (None: there is none) does not do, or None if it does."""
    remedy = f"on Linux, pip install 'triton>={'.'.join(map(str, MINIMUM))}'"
    if version is None:
        return f"there is no Triton; {remedy}"
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        return f"Triton {version} is too old; {remedy}"
    return None


def _version() -> str | None:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


_missing = missing(_version())


def status() -> str | None:
    """Why the kernels cannot run here, or None."""
    if _missing is None and not INTERPRETED and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return _missing


def obstacle(input: Tensor) -> str | None:
    """Why the kernels cannot take a call with this input, or None."""
    if _missing is not None:
        return _missing
    if input.device.type != _KEY.lower():
        return f"tensors are on {input.device}; move them and the module to 'cuda'"
    if input.is_cuda and torch.version.hip is None and not torch.compiler.is_compiling():
        capability = torch.cuda.get_device_capability(input.device)
        if capability < (8, 0):
            return f"the GPU has compute capability {capability}; Triton needs (8, 0)"
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"dtype is {input.dtype}; convert to torch.float32, torch.bfloat16 or torch.float16"
    return None


def _op(name: str) -> Callable:
    def call(*args, **kwargs):
        return getattr(importlib.import_module("fastrnn.triton.layer"), name)(*args, **kwargs)

    return call


def register(library: torch.library.Library) -> None:
    """Makes these kernels those of CUDA tensors, unless compiled ones are there already."""
    for name in _OPS:
        op = f"fastrnn::{name}"
        if not (INTERPRETED or torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")):
            library.impl(name, _op(name), "CUDA")


_override: torch.library.Library | None = None


def _set_override(on: bool) -> None:
    global _override
    if on and _override is None:
        _override = torch.library.Library("fastrnn", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[\\s\\S]*Overriding a previously registered kernel")
            for name in _OPS:
                _override.impl(name, _op(name), _KEY, allow_override=True)
    elif not on and _override is not None:
        _override._destroy()
        _override = None


@contextlib.contextmanager
def forced(on: bool) -> Iterator[None]:
    """Context manager in which these kernels stand before all others, or, if not `on`, do not."""
    before = _override is not None
    _set_override(on)
    try:
        yield
    finally:
        _set_override(before)
