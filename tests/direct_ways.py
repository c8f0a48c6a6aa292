"""The short and the long way of a call without gradients, and a call made both ways."""

from __future__ import annotations

import contextlib

import torch
from torch.utils._pytree import tree_leaves

from fastrnn.dispatch import cpu


@contextlib.contextmanager
def long_way():
    """Calls here take the long way, as where there are no compiled kernels."""
    before, cpu.direct = cpu.direct, None
    try:
        yield
    finally:
        cpu.direct = before


def both_ways(module, *arguments) -> list[torch.Tensor]:
    """The results of the call, which both ways give bit by bit."""
    results = tree_leaves(module(*arguments))
    with long_way():
        wanted = tree_leaves(module(*arguments))
    for a, e in zip(results, wanted, strict=True):
        assert torch.equal(a, e) and a.dtype == e.dtype and a.stride() == e.stride()
        assert a.requires_grad == e.requires_grad and a.is_inference() == e.is_inference()
    storages = {a.untyped_storage().data_ptr() for a in results}
    assert len(storages) == len(results) and all(a.untyped_storage().resizable() for a in results)
    return results


class Subclass(torch.Tensor):
    pass


def features(flags: torch.Tensor, lengths: torch.Tensor) -> tuple[dict, ...]:
    """What a call may ask of the loop and still go the short way, with more than one step."""
    return (
        {"reset": flags},
        {"lengths": lengths},
        {"reset": flags, "lengths": lengths, "return_gates": True},
        {"return_states": True, "detach_every": 2, "grad_clip": 0.1},
    )
