"""What passes between a layer and what calls it, besides the `Call`: results, and gradients.

Sizes as in `call`; S planes that the cell saves.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .call import Call


class Results(NamedTuple):
    """What a layer gives. What does not apply is (0,)."""

    output: Tensor  # (T, N, D*P) or (rows, D*P)
    h_n: Tensor  # (D, N, P)
    c_n: Tensor  # (D, N, H) where the cell has a c
    # The rest is for backward and for `return_states`, where it was asked for.
    gates: Tensor | None = None  # (D, rows, S, H), the planes that the cell saves
    cells: Tensor | None = None  # (D, rows, H), every c_t
    hidden: Tensor | None = None  # (D, rows, H), o * tanh(c) before a projection


class Cotangents(NamedTuple):
    """What comes into a backward call, in the shapes of `Results`. None means zero."""

    output: Tensor | None
    h_n: Tensor | None
    c_n: Tensor | None
    cells: Tensor | None


class Saved(NamedTuple):
    """What a forward call left for backward, as in `Results`."""

    output: Tensor
    gates: Tensor
    cells: Tensor
    hidden: Tensor


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


def backward_arguments(arguments: tuple) -> tuple[Call, Cotangents, Saved, Needs]:
    """What the op `layer_backward` was given, see `ops`."""
    a, b, c = 4, 8, 11
    given = arguments[:a], arguments[a:b], arguments[b:c]
    return Call(*arguments[c:]), Cotangents(*given[0]), Saved(*given[1]), Needs(*given[2])


def empty_results(call: Call, save: bool) -> Results:
    """The results of a call, without data. Shapes are checked."""
    size, new_empty, has_c = call.sizes(), call.input.new_empty, call.c0 is not None
    results = Results(
        new_empty(call.output_shape(size)),
        new_empty(size.D, size.N, size.P),
        new_empty((size.D, size.N, size.H) if has_c else 0),
    )
    if not save:
        return results
    per_row = (size.D, size.rows, size.H)
    return results._replace(
        gates=new_empty(size.D, size.rows, call.kind.saved, size.H),
        cells=new_empty(per_row if has_c else 0),
        hidden=new_empty(per_row if call.projected else 0),
    )
