"""What passes between a layer and what calls it, besides the `Call`: results, and gradients.

Sizes as in `call`; S planes that the cell saves.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .call import Call
from .table import Cell, cell_named


class Results(NamedTuple):
    """What a layer gives. A field that does not apply is None; from an op it is a tensor (0,)."""

    output: Tensor  # (T, N, D*P) or (rows, D*P)
    h_n: Tensor  # (D, N, P)
    c_n: Tensor | None  # (D, N, K*H) where the cell has a c
    # The rest is there if it was asked for, for backward or for `return_states`.
    gates: Tensor | None = None  # (D, rows, S, H), the planes that the cell saves
    cells: Tensor | None = None  # (D, rows, K*H), every c_t
    hidden: Tensor | None = None  # (D, rows, H), h before a projection, or if it is not the output

    def filled(self) -> Results:
        """As an op gives them."""
        return _filled(self, self.output)


class Cotangents(NamedTuple):
    """What comes into a backward call, in the shapes of `Results`. None means zero."""

    output: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None
    cells: Tensor | None
    hidden: Tensor | None = None  # only where it is not the output


class Saved(NamedTuple):
    """What a forward call left for backward, as in `Results`."""

    output: Tensor
    gates: Tensor | None
    cells: Tensor | None
    hidden: Tensor | None

    def filled(self) -> Saved:
        """The same with (0,) in the place of None."""
        return _filled(self, self.output)


def _filled(values, like: Tensor):
    """The same tuple with tensors (0,) in the place of None."""
    if all(each is not None for each in values):
        return values
    empty = like.new_empty(0)
    return type(values)(*(empty if each is None else each for each in values))


class Needs(NamedTuple):
    """Which gradients a backward call makes. The others are (0,), or an empty list."""

    input: bool
    state: bool
    weights: bool


class Gradients(NamedTuple):
    """What a backward call gives."""

    input: Tensor
    h0: Tensor
    c0: Tensor
    weights: list[Tensor]

    def of_step(self) -> Gradients:
        """The same of a cell, without a time."""
        return Gradients(*(t if t is None else t.squeeze(0) for t in self[:3]), self.weights)


def room(call: Call, save: bool) -> Results:
    """The results of a call, without data. Its shapes must fit. Of a cell's call the first three
    have no time."""
    input, _, h0, c0, _, cell, names, *_ = call
    *leading, _ = input.shape
    new_empty, width = input.new_empty, h0.size(-1)
    D = h0.size(0) if h0.dim() == 3 else 1
    output, h_n = new_empty(*leading, D * width), new_empty(*h0.shape)
    c_n = None if c0 is None else new_empty(*c0.shape)
    if not save:
        return Results(output, h_n, c_n)
    rows = leading[0] * leading[1] if len(leading) == 2 else leading[0]
    projected = "w_hr" in names
    H = call.hidden_size if projected else width
    return Results(
        output, h_n, c_n, *room_to_save(cell_named(cell), new_empty, (D, rows), H, projected)
    )


def room_to_save(
    kind: Cell, new_empty, rows: tuple[int, int], H: int, projected: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gates, cells and hidden of a layer without data; rows: (D, rows)."""
    return (
        new_empty(*rows, kind.saved, H) if kind.saved else None,
        new_empty(*rows, kind.own * H) if kind.own else None,
        new_empty(*rows, H) if kind.keeps_hidden(projected) else None,
    )


def empty_results(call: Call, save: bool) -> Results:
    """The same as an op gives them. Shapes are checked."""
    size, new_empty = call.sizes(), call.input.new_empty
    results = room(call, save)
    if save and not call.kind.saved:
        results = results._replace(gates=new_empty(size.D, size.rows, 0, size.H))
    kept = results if save else results[:3]
    return Results(*(new_empty(0) if tensor is None else tensor for tensor in kept))
