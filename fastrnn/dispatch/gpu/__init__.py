"""What the backends for GPUs share: facts of a device here, a layer around a loop in `layer`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import sys
from pathlib import Path

import torch
from torch import Tensor


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is where kernels for GPUs, ours or PyTorch's, may take it."""
    return not (tensor.is_cpu or tensor.is_meta)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device, for which PyTorch takes 3 us each time."""
    return torch.cuda.get_device_capability(device)


def nvidia(device: torch.device) -> int:
    """The major number of an NVIDIA GPU's compute capability; 0 of other devices.

    An AMD GPU has numbers of its own under the same name, 9.0 and 9.4 among them.
    """
    return capability(device)[0] if device.type == "cuda" and torch.version.hip is None else 0


# The kernels count rows of a batch in 32 bits, and go up to a tile beyond the last.
MOST_ROWS = 2**31 - 2**10


def too_many_rows(h0: Tensor) -> str | None:
    """Why kernels of ours cannot take a batch with these states, or None. No shape is checked."""
    rows = max(h0.shape, default=0)
    if rows <= MOST_ROWS:
        return None
    return f"the kernels take at most {MOST_ROWS} rows, the batch has {rows}"


def driver() -> str:
    """The version of the NVIDIA driver, or that of CUDA which it serves, or "unknown"."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if found := re.search(r"\s(\d+\.\d[\d.]*)", text):
            return found[1]
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"of CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return "unknown"


def current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes a device the current one, as launches need; nothing where it is or is no GPU."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


_name = functools.cache(lambda dtype: str(dtype).removeprefix("torch."))


def precision(dtype: torch.dtype) -> str:
    """How products are made: in the dtype, or "tf32" where torch's own of float32 are."""
    if dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return _name(dtype)
