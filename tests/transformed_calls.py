"""Calls in transforms of `torch.func`, plain calls to compare with, and how often kernels ran."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_matches
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn.dispatch import cpu, reference

T, I, H = 5, 4, 3
MODULES = {
    "LSTM": {},
    "GRU": {"bias": False},
    "RNN": {"nonlinearity": "relu"},
    "LSTM stacked": {"num_layers": 2, "bidirectional": True},
    "LSTM projected": {"proj_size": 2},
    "GRU both ways": {"bidirectional": True, "batch_first": True},
}
kinds = pytest.mark.parametrize("kind", MODULES)


@pytest.fixture
def kernels(monkeypatch):
    """How often the kernels ran, by name. The reference must not."""
    count = SimpleNamespace(run=0, run_backward=0, run_backward_of_rows=0, reference=0)

    def counted(module, name: str, kept: str):
        function = getattr(module, name)

        def call(*arguments, **more):
            setattr(count, kept, getattr(count, kept) + 1)
            return function(*arguments, **more)

        monkeypatch.setattr(module, name, call)

    for name in ("run", "run_backward", "run_backward_of_rows"):
        counted(cpu, name, name)
    counted(reference, "run", "reference")
    counted(reference, "differentiable_gradients", "reference")
    return count


def made(kind: str, dtype: torch.dtype = torch.float64) -> fastrnn.modules.RNNBase:
    return getattr(fastrnn, kind.split()[0])(I, H, dtype=dtype, **MODULES[kind])


def inputs(module, *batch: int, N: int = 1) -> torch.Tensor:
    """Batches of inputs of the module."""
    sizes = (N, T, I) if module.batch_first else (T, N, I)
    return torch.randn(*batch, *sizes, dtype=module.weight_ih_l0.dtype)


def parameters(module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def loss_of(module, **features):
    """(parameters, x) -> a number that depends on every result."""

    def loss(p, x, **more):
        results = functional_call(module, p, (x,), features | more)
        return sum(t.sin().sum() for t in tree_leaves(results))

    return loss


def plain(module, x, **features) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(gradients of the parameters, of x) by a plain call."""
    own = x.detach().requires_grad_()
    value = sum(t.sin().sum() for t in tree_leaves(module(own, **features)))
    *grads, of_x = torch.autograd.grad(value, [*module.parameters(), own])
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, grads, strict=True)), of_x


def assert_same(actual, wanted) -> None:
    for a, w in zip(tree_leaves(actual), tree_leaves(wanted), strict=True):
        assert_matches(a, w)
