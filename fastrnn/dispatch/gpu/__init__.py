"""What the backends for GPUs share: facts of a device here, a layer around a loop in `layer`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is where kernels for GPUs, ours or PyTorch's, may take it."""
    return not (tensor.is_cpu or tensor.is_meta)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device, for which PyTorch takes 3 us each time."""
    return torch.cuda.get_device_capability(device)


def precision(dtype: torch.dtype) -> str:
    """How products are made: in the dtype, or "tf32" where torch's own of float32 are."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")
