"""Layer normalization inside a step, over one plane or over several at once."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(*planes: Tensor, eps: float = 1e-5) -> tuple[Tensor, ...]:
    """Planes (N, H) normalized together: one mean and one variance a row, over the units of all.

    It computes what `torch.nn.functional.layer_norm` makes of the planes beside each other, which a
    step cannot build. Gains and biases are a step's own: `x * p.gain + p.bias`. One plane gives a
    tuple of one.
    """
    count = len(planes) * planes[0].shape[-1]
    mean = sum(planes).sum(-1, keepdim=True) / count
    centred = [plane - mean for plane in planes]
    variance = sum(each * each for each in centred).sum(-1, keepdim=True) / count
    scale = torch.rsqrt(variance + eps)
    return tuple(each * scale for each in centred)
