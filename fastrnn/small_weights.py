"""Weights of a `Streamer` in 16 or 8 bits: what is asked for, and how numbers are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .arguments import is_among
from .dispatch import cpu
from .modules import RNNBase
from .recurrent import Recurrent

Weights = str | Mapping[str, str | None] | None
Packed = tuple[int, Tensor, Tensor | None]  # the format's code, the numbers, scales of int8

# The largest number of each, and its code in csrc/layer.h, in which 0 is float.
_LARGEST = {
    "float16": torch.finfo(torch.float16).max,
    "bfloat16": torch.finfo(torch.bfloat16).max,
    "int8": torch.finfo(torch.float32).max,
}
_CODES = {None: 0, "bfloat16": 1, "float16": 2, "int8": 3}
_LEAST = 1e-30  # a row of weights or activations that is nowhere larger counts as zero


def formats(
    module: RNNBase, weights: Weights, activations: str | None
) -> dict[str, str | None] | None:
    """The format of every parameter by its name, None for float; None if all are floats.

    Raises:
        ValueError: weights or activations do not exist, or are not for this module.
        RuntimeError: no kernels are built.
    """
    if activations is not None and not is_among(activations, ["int8"]):
        raise ValueError(f"activations must be None or 'int8', got {activations!r}")
    asked = weights if isinstance(weights, Mapping) else {"*": weights}
    if is_among(weights, ["int8"]):
        asked = {"weight_ih_l0": None, "*": "int8"}
    names = [name for name in module._flat_weights_names if name.startswith("weight_")]
    for name, format in asked.items():
        if name != "*" and name not in names:
            raise ValueError(f"weights has {name!r}, the module has {', '.join(names)}")
        if format is not None and not is_among(format, _LARGEST):
            raise ValueError(
                f"weights must be None, {', '.join(map(repr, _LARGEST))} or a dict of them, "
                f"got {format!r}"
            )
    found = dict.fromkeys(module._flat_weights_names)
    found |= {name: asked.get(name, asked.get("*")) for name in names}
    if activations and "int8" not in found.values():
        raise ValueError("activations='int8' is for products with weights of int8, there are none")
    if not any(found.values()):
        return None
    if isinstance(module, Recurrent):
        raise ValueError(f"small weights are for LSTM, GRU and RNN, not for {module.cell.name}")
    dtype = module._flat_weights[0].dtype
    if dtype is torch.float64:
        raise ValueError(f"small weights are for a module in torch.float32, got {dtype}")
    if cpu.not_built:
        raise RuntimeError(f"small weights need the compiled kernels: {cpu.not_built}")
    return found


def packed(name: str, weight: Tensor, format: str | None) -> Packed:
    """A weight (rows, columns) in its format; int8 with a scale for each row.

    Raises:
        ValueError: a number is beyond the format's largest, or NaN.
    """
    if format is None:
        return _CODES[None], weight, None
    largest = _LARGEST[format]
    if not bool((weight.abs() <= largest).all()):
        raise ValueError(
            f"{name} has NaN, infinity or a number beyond {largest:g}, which {format!r} refuses"
        )
    if format != "int8":
        return _CODES[format], weight.to(getattr(torch, format)), None
    most = weight.abs().amax(1) if weight.size(1) else weight.new_zeros(weight.size(0))
    scale = torch.where(most > _LEAST, most / 127, 0.0)
    whole = (weight / torch.where(scale > 0, scale, 1.0)[:, None]).round().clamp(-127, 127)
    return _CODES[format], whole.to(torch.int8), scale


def all_packed(
    names: Sequence[str], weights: Sequence[Tensor], formats: Mapping[str, str | None] | None
) -> list[Packed]:
    """Each of the weights in its format, ValueError as of one; none where there are no formats."""
    if formats is None:
        return []
    with torch.no_grad():
        return [packed(name, w, formats[name]) for name, w in zip(names, weights, strict=True)]


def rounded(name: str, weight: Tensor, format: str | None) -> Tensor:
    """The floats that a weight's numbers stand for in a format."""
    _, numbers, scale = packed(name, weight, format)
    return numbers.float() if scale is None else numbers.float() * scale[:, None]


def rounded_activations(x: Tensor, activations: str | None) -> Tensor:
    """What the numbers of x (..., columns) are in products with weights of int8: multiples of a
    unit of each row, as in `quantise` of csrc/cpu/small_weights.h."""
    units = 127 if activations == "int8" else max(1, min(32767, (2**31 - 1) // (127 * x.size(-1))))
    most = x.abs().amax(-1, keepdim=True)
    return (x * torch.where(most < _LEAST, 0.0, units / most)).round() * (most / units)
