"""Weights of a `Streamer` in 16 or 8 bits: what is asked for, how numbers are rounded, the cost."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_kind, is_among
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


class WeightError(NamedTuple):
    """What one weight costs in a format."""

    weight: str  # the parameter's name
    format: str
    error: float  # relative root mean square of its layer's output, with only this weight small


class QuantizationError(NamedTuple):
    """What small weights cost; `str` makes a table of it."""

    weights: tuple[WeightError, ...]
    whole: float  # of the last layer's output, with all that a Streamer makes small

    def __str__(self) -> str:
        width = max(len(row.weight) for row in self.weights)
        lines = [f"{'weight':{width}}  format    relative error of the layer's output"]
        lines += [f"{row.weight:{width}}  {row.format:8}  {row.error:.1e}" for row in self.weights]
        return "\n".join([*lines, f"{'all':{width}}            {self.whole:.1e}"])


def quantization_error(
    module: RNNBase,
    frames: Tensor,
    *,
    weights: Weights = "int8",
    activations: str | None = None,
) -> QuantizationError:
    """What a `Streamer` with small weights loses against float32: for each weight, and for all.

    Errors are relative root mean squares of a layer's output. The input of each layer is what the
    layer below computes in float32. `weights="int8"` leaves the first layer's `weight_ih_l0` in
    float, as in a Streamer, but the table lists what it would cost.

    Args:
        module: what a Streamer takes, in float32.
        frames: (T, N, input_size), representative of the frames to come.
        weights, activations: as of a Streamer.

    Returns:
        The errors; `print` shows them as a table.

    Raises:
        TypeError, ValueError: what a Streamer raises; frames is no tensor, not 3-D, or empty; no
            weight is small.

    Warns:
        UserWarning: the input of a layer is badly scaled: rounding changes the pre-activations of
            its units by more than a twentieth. Leave its W_ih in float, or scale the input.

    Example:
        >>> errors = fastrnn.quantization_error(fastrnn.GRU(8, 64), torch.randn(20, 1, 8))
        >>> errors.whole < 0.05
        True
    """
    from .streamer import Streamer  # which needs this file

    check_kind("frames", frames, Tensor, "a tensor")
    if frames.dim() != 3 or not len(frames):
        raise ValueError(f"frames must be (T, N, input_size) with T > 0, got {tuple(frames.shape)}")
    stream = Streamer(module, frames.size(1), weights=weights, activations=activations)
    stream.check_frames("frames", frames)
    asked = formats(module, weights, activations)
    if asked is None:
        raise ValueError(f"no weight is small: weights={weights!r}")
    if isinstance(weights, str):
        asked |= {name: weights for name in asked if name.startswith("weight_")}
    small = _outputs(stream, frames)
    rows, x = [], frames.detach().float()
    for k in range(module.num_layers):
        layer = _layer(module, k)
        with torch.no_grad():
            y = layer(x)[0]
        for name, weight in layer.named_parameters():
            own = f"{name[:-1]}{k}"
            format = asked.get(own)
            if format is None:
                continue
            if name == "weight_ih_l0":
                _warn_of_scale(own, x, weight.detach(), format)
            only = activations if format == "int8" else None
            alone = Streamer(layer, x.size(1), weights={name: format}, activations=only)
            rows.append(WeightError(own, format, _relative(_outputs(alone, x), y)))
        x = y
    return QuantizationError(tuple(rows), _relative(small, x))


def _layer(module: RNNBase, k: int) -> RNNBase:
    """Layer k alone, with copies of its weights."""
    from . import modules

    kind = getattr(modules, module.mode.split("_")[0])
    options: dict = {"bias": module.bias, "device": "cpu"}
    if module.proj_size:
        options["proj_size"] = module.proj_size
    if kind is modules.RNN:
        options["nonlinearity"] = module.mode.split("_")[1].lower()
    width = (module.proj_size or module.hidden_size) if k else module.input_size
    layer = kind(width, module.hidden_size, dtype=torch.float32, **options)
    weights = dict(zip(module._flat_weights_names, module._flat_weights, strict=True))
    with torch.no_grad():
        for name, own in layer.named_parameters():
            own.copy_(weights[f"{name[:-1]}{k}"])
    return layer


def _outputs(stream, frames: Tensor) -> Tensor:
    stream.reset()
    return torch.stack([stream(x).clone() for x in frames.detach()])


def _relative(got: Tensor, wanted: Tensor) -> float:
    size = wanted.double().square().mean().sqrt()
    return float((got.double() - wanted).square().mean().sqrt() / size.clamp_min(1e-30))


def _warn_of_scale(name: str, x: Tensor, weight: Tensor, format: str) -> None:
    noise = x @ (rounded(name, weight, format) - weight).T
    added = float(noise.square().mean().sqrt())
    if not added <= 0.05:
        warnings.warn(
            f"{name}: its input reaches {float(x.abs().max()):.2g}, and rounding it to {format} "
            f"adds {added:.2g} to pre-activations: leave it in float (None), or scale the input",
            stacklevel=3,
        )
