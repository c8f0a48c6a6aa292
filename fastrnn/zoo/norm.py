"""Layer normalization inside a step, over one plane or over several at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import number_of


def layer_norm(*planes: Tensor, eps: float = 1e-5) -> tuple[Tensor, ...]:
    """Planes (N, H) normalized together: one mean and one variance a row, over the units of all.

    It computes `torch.nn.functional.layer_norm` of the concatenated planes, which a step cannot
    build (Ba, Kiros & Hinton 2016, arXiv 1607.06450).

    Args:
        planes: at least one (N, H).
        eps: what is added to the variance.

    Returns:
        A tuple of as many planes. Gains and biases are for the step to apply:
        `x * p.gain + p.bias`.

    Raises:
        TypeError: a plane is no tensor, or there is none.
        ValueError: eps is no number, or negative.

    Example:
        >>> a, b = torch.randn(2, 3, 20)
        >>> both = torch.nn.functional.layer_norm(torch.cat([a, b], -1), [40])
        >>> torch.allclose(torch.cat(fastrnn.zoo.layer_norm(a, b), -1), both, atol=1e-5)
        True
    """
    if not planes:
        raise TypeError("planes must be at least one plane (N, H), got none")
    for plane in planes:
        # a tensor has it, and so has what stands for one while a step is traced
        if not hasattr(plane, "new_zeros"):
            raise TypeError(f"planes must be tensors, got {type(plane).__name__}")
    if not number_of(eps) >= 0:
        raise ValueError(f"eps must be a number of at least 0, got {eps!r}")
    count = len(planes) * planes[0].shape[-1]
    mean = sum(planes).sum(-1, keepdim=True) / count
    centred = [plane - mean for plane in planes]
    variance = sum(each * each for each in centred).sum(-1, keepdim=True) / count
    scale = torch.rsqrt(variance + eps)
    return tuple(each * scale for each in centred)
