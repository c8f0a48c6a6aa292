"""Some steps of a direction in `twice`, and the sums and pieces that these are made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .steps import Rnn, plus

BIASES = "b_ih", "b_hh"


def state(states: Tensor | None, at: int | slice) -> Tensor | None:
    """A part, of what may be None."""
    return None if states is None else states[at]


def product(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    """The sum of the products of which both factors are there."""
    total = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = plus(total, a @ b)
    return total


def add(
    total: dict[str, Tensor | None],
    a: Tensor,
    d: Tensor,
    e: Tensor,
    x: Tensor | None,
    h: Tensor,
    hidden: Tensor | None,
    biases: bool = True,
) -> None:
    """Adds to the gradients of the weights the sums over some steps and all rows."""
    for name, came, factor in (("w_ih", a, x), ("w_hh", d, h), ("w_hr", e, hidden)):
        if name in total and factor is not None:
            left, right = came.flatten(0, 1).t(), factor.flatten(0, 1)
            old = total[name]
            total[name] = left @ right if old is None else torch.addmm(old, left, right)
    for name, came in zip(BIASES, (a, d), strict=True) if biases else ():
        if name in total:
            total[name] = plus(total[name], came.sum((0, 1)))


def step(sum: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    """sum + x @ weight."""
    return torch.mm(x, weight) if sum is None else torch.addmm(sum, x, weight)


def by_step(tensor: Tensor | None) -> tuple[Tensor, ...] | None:
    return None if tensor is None else tensor.unbind(0)


def zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like)


def stack(steps: Sequence[Tensor | None]) -> Tensor | None:
    """All steps, or all directions, together; or None."""
    if not steps or steps[0] is None:
        return None
    return torch.stack(steps) if len(steps) > 1 else steps[0].unsqueeze(0)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The steps of all chunks."""
    return None if parts[0] is None else torch.cat(parts)


def shifted(own: Tensor | None, before: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What arrives at the states that all steps leave and at the initial ones, from that and what
    arrives at the states that the steps see."""
    if before is None:
        return own, None
    first, later = before[0], before[1:]
    if own is None:
        return torch.cat((later, torch.zeros_like(before[:1]))), first
    return torch.cat((own[:-1] + later, own[-1:])), first


class Chunk:
    """Some steps of a direction, and what is found out about them: tensors (t, N, ...)."""

    at: slice
    cell: Rnn
    x: Tensor
    h_before: Tensor
    hidden: Tensor  # h before a projection
    passes: tuple[Tensor, ...] | None  # see `Order`
    # What arrives at h, at h before a projection, at c, at z and at the input part; what goes back
    # through h, not clamped.
    e_h: Tensor
    e: Tensor
    e_c: Tensor | None
    d: Tensor
    a: Tensor
    carried: list[Tensor] | None
    # How the states change.
    dx: Tensor | None
    dh: Tensor
    dh_before: Tensor
    dhidden: Tensor | None

    def again(self) -> Chunk:
        """A copy, to find out more."""
        other = copy.copy(self)
        other.cell = copy.copy(self.cell)
        return other
