"""The masks of zoneout and of recurrent dropout, as the `inputs` of a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..arguments import check_kind, check_rate, is_among
from ..recurrent import Recurrent


def zoneout(
    layer: Recurrent, input: Tensor | PackedSequence, h: float = 0.05, c: float = 0.5
) -> dict[str, Tensor]:
    """`inputs` for a call of a layer of `ZoneoutLSTM`.

    Args:
        layer: the layer. In training each unit keeps its state in each step by a draw of its own;
            in eval mode it keeps the expected part.
        input: the input of the coming call.
        h, c: the probability that a unit keeps its h, and its c.

    Returns:
        The masks `keep_h` and `keep_c`.

    Raises:
        TypeError: layer is no layer, or input no tensor.
        ValueError: a probability is not in [0, 1).

    Example:
        >>> layer = fastrnn.Recurrent(fastrnn.zoo.ZoneoutLSTM, 10, 20)
        >>> x = torch.randn(5, 3, 10)
        >>> output, (h, c) = layer(x, inputs=fastrnn.zoo.zoneout(layer, x))
    """
    _check(layer, input, h=h, c=c)
    if not layer.training:
        return {"keep_h": _number(input, h), "keep_c": _number(input, c)}
    return {"keep_h": _draw(layer, input, h, "step"), "keep_c": _draw(layer, input, c, "step")}


def recurrent_dropout(
    layer: Recurrent, input: Tensor | PackedSequence, p: float = 0.25, per: str = "sequence"
) -> dict[str, Tensor]:
    """`inputs` for a call of a layer of `RecurrentDropoutLSTM`.

    Args:
        layer: the layer. In eval mode the mask is 1.
        input: the input of the coming call.
        p: the probability that a unit is dropped. A unit that is kept is divided by 1 - p.
        per: "sequence" for one draw a row, which holds for all its steps; "step" for one a step.

    Returns:
        The mask `mask`.

    Raises:
        TypeError: layer is no layer, or input no tensor.
        ValueError: p is not in [0, 1), or `per` is something else.

    Example:
        >>> layer = fastrnn.Recurrent(fastrnn.zoo.RecurrentDropoutLSTM, 10, 20)
        >>> x = torch.randn(5, 3, 10)
        >>> masks = fastrnn.zoo.recurrent_dropout(layer, x, p=0.5, per="step")
        >>> output, (h, c) = layer(x, inputs=masks)
    """
    _check(layer, input, p=p)
    if not is_among(per, ("sequence", "step")):
        raise ValueError(f"per must be 'sequence' or 'step', got {per!r}")
    if not layer.training:
        return {"mask": _number(input, 1.0)}
    return {"mask": _draw(layer, input, 1 - p, per) / (1 - p)}


def _check(layer: Recurrent, input: Tensor | PackedSequence, **rates: float) -> None:
    if not hasattr(layer, "hidden_size"):  # a compiled layer has it too
        raise TypeError(f"layer must be a Recurrent, got {type(layer).__name__}")
    if not hasattr(input, "new_full"):  # as a tensor, or what stands for one while it is traced
        check_kind("input", input, PackedSequence, "a tensor or a PackedSequence")
    for name, rate in rates.items():
        check_rate(name, rate, with_one=False)


def _number(input: Tensor | PackedSequence, number: float) -> Tensor:
    data = input.data if isinstance(input, PackedSequence) else input
    return data.new_full((), number)


def _draw(layer: Recurrent, input: Tensor | PackedSequence, rate: float, per: str) -> Tensor:
    """1 with the probability `rate`, else 0, in a shape that broadcasts to the steps of `input`."""
    H = layer.hidden_size
    if isinstance(input, PackedSequence):
        rows, *_ = sizes = input.batch_sizes.tolist()
        if per == "step":
            return input.data.new_empty(sum(sizes), H).bernoulli_(rate)
        mask = input.data.new_empty(rows, H).bernoulli_(rate)
        return torch.cat([mask[:size] for size in sizes])
    shape = [*input.shape[:-1], H]
    if per == "sequence":
        shape[1 if layer.batch_first and input.dim() == 3 else 0] = 1
    return input.new_empty(shape).bernoulli_(rate)
