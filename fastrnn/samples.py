"""The samples of `vmap` and the rows of a batch: how one becomes the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from .torch_private import are_transforms_active

Tensors = Sequence[Tensor | None]


def save(ctx, tensors: Tensors) -> None:
    """Has the ctx of a Function keep tensors, of which some are None: they are
    `spread(ctx.saved_tensors, ctx.there)`."""
    ctx.there = [t is not None for t in tensors]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(t for t in tensors if t is not None))


def spread(some: Sequence, present: Sequence[bool]) -> list:
    """These, with None where nothing is present."""
    rest = iter(some)
    return [next(rest) if there else None for there in present]


def size_of(tensor: Tensor, dim: int | None, at: int) -> int:
    """The size in a dimension of a tensor, as it is without its batch of `vmap`."""
    return tensor.size(at + 1 if dim is not None and dim <= at else at)


def each(function: type[Function], batch: int, dims: Sequence, request, tensors: Tensors):
    """What `vmap` of a function gives, by a call for each."""
    if batch == 0:  # of one that is made up, for the shapes
        one = [
            t if d is None else t.new_zeros((*t.shape[:d], 1, *t.shape[d + 1 :]))
            for t, d in zip(tensors, dims, strict=True)
        ]
        stacked, at = each(function, 1, dims, request, one)
        return tuple(t[:0] for t in stacked), at
    members = [
        (t,) * batch if d is None else t.unbind(d) for t, d in zip(tensors, dims, strict=True)
    ]
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    plain = not (recorded or are_transforms_active())
    call = function.forward if plain else function.apply
    results = [call(request, *member) for member in zip(*members, strict=True)]
    stacked = tuple(map(torch.stack, zip(*results, strict=True)))
    return stacked, (0,) * len(stacked)


def as_rows(tensors: Tensors, dims: Sequence, at: Sequence[int], batch: int) -> list:
    """The tensors with the samples of `vmap` folded into their batch rows: dimension `at[k]` of
    tensor k. The tensors after these, the weights, stay as they are."""
    rows = []
    for tensor, dim, where in zip(tensors, dims, at, strict=False):
        if tensor is not None:
            if dim is None:
                tensor = tensor.unsqueeze(where)
                tensor = tensor.expand(*tensor.shape[:where], batch, *tensor.shape[where + 1 :])
            else:
                tensor = tensor.movedim(dim, where)
            tensor = tensor.flatten(where, where + 1)
        rows.append(tensor)
    return rows + list(tensors[len(at) :])


def apart(
    results: Sequence[Tensor], at: Sequence[int], size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """The rows of each result apart: (samples, rows of one)."""
    return tuple(t.unflatten(k, size) for t, k in zip(results, at, strict=True))
