"""Calls of `Recurrent`, and what the definition makes of them in float64."""

from __future__ import annotations

import copy

import torch
from conftest import assert_matches
from program_cells import CELLS
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import fastrnn
from fastrnn import Recurrent

# torch's derivative of hardsigmoid has a constant of single precision, also in float64.
EXACT = [name for name in CELLS if name != "hard_lstm"]


def mask(*shape) -> Tensor:
    return torch.rand(*shape) < 0.2


class Example:
    """A module with everything that a call of it takes: leaves that want gradients."""

    def __init__(self, name: str, T: int, N: int, I: int, H: int, dtype=torch.float64, **options):
        self.cell = cell = CELLS[name]
        self.module = Recurrent(cell, I, H, dtype=dtype, **options)
        D = 2 if self.module.bidirectional else 1
        time, batch = (1, 0) if self.module.batch_first else (0, 1)
        sizes = [0, 0]
        sizes[time], sizes[batch] = T, N
        self.x = torch.randn(*sizes, I, dtype=dtype)
        layers = self.module.num_layers
        self.hx = tuple(
            torch.rand(layers * D, N, self.module._width(s), dtype=dtype) for s in cell.states
        )
        # Alternately one number for each row, each unit of each row, and each unit.
        shapes = ((*sizes, 1), (*sizes, H), (H,))
        self.inputs = {k: torch.rand(shapes[i % 3], dtype=dtype) for i, k in enumerate(cell.inputs)}

    def to_double(self) -> Example:
        """The same numbers in float64."""
        wide = copy.copy(self)
        wide.module = copy.deepcopy(self.module).double()
        for name in ("x", "hx", "inputs"):
            setattr(wide, name, tree_map(lambda t: t.double(), getattr(self, name)))
        return wide

    def leaves(self) -> list[Tensor]:
        """What has gradients."""
        return [self.x, *self.hx, *self.inputs.values(), *self.module.parameters()]

    def __call__(self, **features) -> list[Tensor]:
        """All results, one after the other."""
        hx = self.hx if len(self.hx) > 1 else self.hx[0]
        return tree_leaves(self.module(self.x, hx, inputs=self.inputs or None, **features))

    def gradients(self, weights: list[Tensor] | None = None, **features):
        """(results, gradients of `leaves` for results weighted so, those weights)."""
        for leaf in self.leaves():
            leaf.requires_grad_().grad = None
        results = self(**features)
        if weights is None:
            weights = [torch.randn_like(each) for each in results]
        loss = sum((r * w.to(r.dtype)).sum() for r, w in zip(results, weights, strict=True))
        found = torch.autograd.grad(loss, self.leaves(), allow_unused=True)
        zeros = [torch.zeros_like(leaf) for leaf in self.leaves()]
        grads = [z if g is None else g for g, z in zip(found, zeros, strict=True)]
        return results, grads, weights


def assert_as_defined(example: Example, **features) -> None:
    """Results with and without gradients, and all gradients, are those of the definition."""
    results, grads, weights = example.gradients(**features)
    with fastrnn.backend("reference"):
        wanted, wanted_grads, _ = example.to_double().gradients(weights, **features)
    names = ["x", *example.cell.states, *example.inputs]
    names += [name for name, _ in example.module.named_parameters()]
    for i, (a, e) in enumerate(zip(results, wanted, strict=True)):
        assert_matches(a, e, f"result {i}")
    for name, a, e in zip(names, grads, wanted_grads, strict=True):
        assert_matches(a, e, f"gradient of {name}")
    with torch.no_grad():
        for a, e in zip(example(**features), results, strict=True):
            assert torch.equal(a, e)
