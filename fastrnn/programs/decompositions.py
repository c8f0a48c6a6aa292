"""Operations in terms of others: those over the units of a row, which torch has in more steps, and
some that torch does not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def var(x: Tensor, dim: Sequence[int] | None = None, correction: float = 1, keepdim: bool = False):
    centred = x - x.mean(dim, True)
    count = x.size(-1) - correction
    return (centred * centred).sum(dim, keepdim) / max(0.0, count)


def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, correction: float = 1, keepdim: bool = False
):
    return var(x, dim, correction, keepdim), x.mean(dim, keepdim)


def remainder(x: Tensor, by: float) -> Tensor:
    rest = x - torch.floor(x / by) * by  # outside of [0, by) where the quotient was rounded
    return torch.where(rest * by < 0, rest + by, rest)


def layer_norm(x: Tensor, shape: Sequence[int], weight: None, bias: None, eps: float):
    """(output, mean, 1 / standard deviation), the latter two of shape (N, 1)."""
    mean = x.mean(-1, True)
    centred = x - mean
    rstd = torch.rsqrt((centred * centred).mean(-1, True) + eps)
    return centred * rstd, mean, rstd


def layer_norm_backward(grad: Tensor, x: Tensor, shape, mean, rstd, weight, bias, wanted):
    """The gradient of x, where there is no weight and no bias."""
    normed = (x - mean) * rstd
    across = (grad * normed).mean(-1, True)
    return (grad - grad.mean(-1, True) - normed * across) * rstd, None, None


DECOMPOSITIONS = {
    torch.ops.aten.var.correction: var,
    torch.ops.aten.var_mean.correction: var_mean,
    torch.ops.aten.remainder.Scalar: remainder,
    torch.ops.aten.native_layer_norm.default: layer_norm,
    torch.ops.aten.native_layer_norm_backward.default: layer_norm_backward,
}
