"""The derivative of a backward call in closed form, for the built-in cells.

A backward takes a call and cotangents, and gives gradients. Its own backward is given *directions*,
one for each gradient, and makes the derivatives of the sum of gradient * direction. It goes over
time three times:

1. `_adjoint`: the first backward again.
2. `_tangent`: how the states change where the tensors of the call go in their directions. These are
   the derivatives by the cotangents.
3. `_adjoint` once more: how the first backward changes then. That gives the derivatives by the
   tensors of the call. `partial` leaves that to the layer's own backward.

All three are linear, with the coefficients of `steps`, whose words are used here. What does not
wait for the step before is made of a chunk of steps at once. A chunk is small, because fresh memory
costs more than arithmetic. Nothing is changed in place, so that `vmap` works.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Saved
from .chunk import stack, state
from .direction import Direction
from .steps import plus


def takes(call: Call) -> bool:
    """Whether there is a closed form: not of a cell that is a function."""
    return call.kind.step is None


def joins(call: Call) -> bool:
    """Whether `Derivation.partial` takes a call: of a vanilla RNN and several steps, between which
    nothing happens to the states. Cells with gates would send all their planes, and lose by it."""
    plain = call.reset is None and not (call.detach_every or call.grad_clip)
    return plain and takes(call) and not call.kind.saved and len(call.input) > 1


class Derivation:
    """A backward, and what its derivatives need of it."""

    def __init__(self, call: Call, came: Cotangents, saved: Saved) -> None:
        """
        Args:
            call: what the backward is given.
            came: its cotangents, of output, h_n and c_n alone.
            saved: what the forward call left, its planes as (D, T, N, ...), packed (D, rows, ...).
        """
        each = range(call.h0.size(0))
        self.call = call
        self.directions = [Direction(call, d, came, saved) for d in each]

    def first(self, needs: Needs) -> Gradients:
        """The gradients that are needed."""
        return self._joined([each.first(needs) for each in self.directions])

    def second(self, ways: Gradients) -> tuple[Gradients, Cotangents]:
        """The derivatives by the tensors of the call, and by output, h_n and c_n.

        ways: the directions, one for each gradient, also among the weights; None means zero.
        """
        of_call, of_came = zip(*self._each("second", ways), strict=True)
        return self._joined(of_call), self._came(of_came)

    def partial(self, ways: Gradients) -> tuple[Gradients, Cotangents, Tensor]:
        """The derivatives by the tensors of the call, by output, h_n and c_n, and by the output as
        it was saved, where each of these stands for itself. The layer's own backward, which takes
        the last one, makes the rest, together with what else comes into it."""
        of_call, of_came, of_saved = zip(*self._each("partial", ways), strict=True)
        return self._joined(of_call), self._came(of_came), torch.cat(of_saved, -1)

    def _each(self, name: str, ways: Gradients) -> list[tuple]:
        """What each direction makes."""
        ways = ways._replace(weights=ways.weights or [None] * len(self.call.weights))
        named = self.call._replace(weights=ways.weights).by_name()
        return [
            getattr(each, name)(ways.input, state(ways.h0, d), state(ways.c0, d), named[d])
            for d, each in enumerate(self.directions)
        ]

    def _came(self, parts: Sequence[tuple]) -> Cotangents:
        output, h_n, c_n = zip(*parts, strict=True)
        return Cotangents(torch.cat(output, -1), stack(h_n), stack(c_n), None)

    def _joined(self, parts: Sequence[Gradients]) -> Gradients:
        """The gradients of the call, from those of each direction."""
        input, h0, c0, weights = zip(*parts, strict=True)
        return Gradients(
            functools.reduce(plus, input),
            stack(_whole(h0)),
            stack(_whole(c0)),
            [w for some in weights for w in some],
        )


def _whole(parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """What comes from each direction, zeros where nothing comes from one alone."""
    like = next((part for part in parts if part is not None), None)
    return parts if like is None else [torch.zeros_like(like) if p is None else p for p in parts]
