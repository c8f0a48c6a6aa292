"""The derivative of a backward call in closed form, for the built-in cells.

A backward takes a call and cotangents, and gives gradients. Its own backward is given *directions*,
one for each gradient, and makes the derivatives of the sum of gradient * direction. It goes over
time three times:

1. `_adjoint`: the first backward again.
2. `_tangent`: how the states change where the tensors of the call go in their directions. These are
   the derivatives by the cotangents.
3. `_adjoint` once more: how the first backward changes then. That gives the derivatives by the
   tensors of the call.

All three are linear, with the coefficients of `steps`, whose words are used here. What does not
wait for the step before is made of a chunk of steps at once. A chunk is small, because fresh memory
costs more than arithmetic. Nothing is changed in place, so that `vmap` works.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Saved
from .direction import Direction, stack, state
from .steps import plus


def takes(call: Call) -> bool:
    """Whether there is a closed form: not of a cell that is a function."""
    return call.kind.step is None


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
        ways = ways._replace(weights=ways.weights or [None] * len(self.call.weights))
        named = self.call._replace(weights=ways.weights).by_name()
        found = [
            each.second(ways.input, state(ways.h0, d), state(ways.c0, d), named[d])
            for d, each in enumerate(self.directions)
        ]
        of_call, of_came = zip(*found, strict=True)
        output, h_n, c_n = zip(*of_came, strict=True)
        came = Cotangents(torch.cat(output, -1), stack(h_n), stack(c_n), None)
        return self._joined(of_call), came

    def _joined(self, parts: Sequence[Gradients]) -> Gradients:
        """The gradients of the call, from those of each direction."""
        input, h0, c0, weights = zip(*parts, strict=True)
        return Gradients(
            functools.reduce(plus, input),
            stack(h0),
            stack(c0),
            [w for some in weights for w in some],
        )
