"""What small weights of a `Streamer` cost against floats, measured on the user's own frames."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import modules, small_weights
from .arguments import check_kind
from .modules import RNNBase
from .streamer import Streamer
from .table import cell_of


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
    weights: small_weights.Weights = "int8",
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
    check_kind("frames", frames, Tensor, "a tensor")
    if frames.dim() != 3 or not len(frames):
        raise ValueError(f"frames must be (T, N, input_size) with T > 0, got {tuple(frames.shape)}")
    stream = Streamer(module, frames.size(1), weights=weights, activations=activations)
    stream.check_frames("frames", frames)
    asked = small_weights.formats(module, weights, activations)
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
                _warn_of_scale(own, x, weight.detach(), format, activations)
            only = activations if format == "int8" else None
            alone = Streamer(layer, x.size(1), weights={name: format}, activations=only)
            rows.append(WeightError(own, format, _relative(_outputs(alone, x), y)))
        x = y
    return QuantizationError(tuple(rows), _relative(small, x))


def _layer(module: RNNBase, k: int) -> RNNBase:
    """Layer k alone, with copies of its weights."""
    name, *nonlinearity = cell_of(module).split("_")
    kind = getattr(modules, name.upper())
    options: dict = {"bias": module.bias, "device": "cpu"}
    if module.proj_size:
        options["proj_size"] = module.proj_size
    if kind is modules.RNN:
        options["nonlinearity"] = nonlinearity[0]
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


def _warn_of_scale(
    name: str, x: Tensor, weight: Tensor, format: str, activations: str | None
) -> None:
    both = "it"
    noise = x @ (small_weights.rounded(name, weight, format) - weight).T
    if format == "int8":
        both = "both"
        noise += (small_weights.rounded_activations(x, activations) - x) @ weight.T
    added = float(noise.square().mean().sqrt())
    if not added <= 0.05:
        warnings.warn(
            f"{name}: its input reaches {float(x.abs().max()):.2g}, and rounding {both} for "
            f"{format} adds {added:.2g} to pre-activations: leave it in float (None), or scale the "
            "input",
            stacklevel=3,
        )
