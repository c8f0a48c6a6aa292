"""Weights in another dtype, as cuDNN reads them: in one piece of memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Stack
from . import takes_whole


def are_cast_flat(stack: Stack, dtype: torch.dtype) -> bool:
    """Whether the weights of a stack are to be cast by `flat`, for cuDNN, which computes all layers
    at once. It copies weights that lie elsewhere, and PyTorch warns of that, in each call."""
    call = stack.call
    if not (call.input.is_cuda and torch.version.hip is None and torch.backends.cudnn.enabled):
        return False
    cast = dtype is not torch.float32 and all(w.dtype is torch.float32 for w in call.weights)
    return cast and takes_whole(stack)


def flat(stack: Stack, dtype: torch.dtype) -> list[Tensor]:
    """The weights of a stack in a dtype, as views of one buffer, through which gradients go.

    The order is that of cuDNN, as far as PyTorch's own buffers show it: matrices of each layer and
    direction, then biases, which are zeros where the layers have none. PyTorch compares addresses,
    so in another order cuDNN would copy the weights, and compute the same.
    """
    weights = stack.call.weights
    order = sorted(range(len(weights)), key=lambda k: weights[k].dim() == 1)
    parts = [weights[k].reshape(-1) for k in order]
    if "b_ih" not in stack.call.names:
        count = len(stack.call.names.split())
        parts.append(weights[0].new_zeros(2 * sum(w.size(0) for w in weights[::count])))
    pieces = torch.cat(parts).to(dtype).split([part.numel() for part in parts])
    found = dict(zip(order, pieces, strict=False))
    return [found[k].view(weight.shape) for k, weight in enumerate(weights)]
