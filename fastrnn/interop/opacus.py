"""Per-sample gradients for opacus: functions for our classes, as it has for those of `torch.nn`.

opacus sees of a layer its first input and the gradient of its first result. What it does not see
raises, since the gradients would be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.hooks import RemovableHandle


class _WithoutHooks(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        results = self.module.forward(*inputs)
        return results[0] if isinstance(results, tuple) else results


def _per_sample(module: nn.Module, activations: list[Tensor], backprops: Tensor):
    """The gradient of every parameter for every sample, which come first in all tensors."""
    bare = _WithoutHooks(module)
    batch = 0 if getattr(module, "batch_first", True) else 1
    parameters = {f"module.{name}": p for name, p in module.named_parameters() if p.requires_grad}

    def loss(parameters, gradient, *inputs):
        inputs = tuple(each.unsqueeze(batch) for each in inputs)
        return (functional_call(bare, parameters, inputs) * gradient.unsqueeze(batch)).sum()

    detached = {name: p.detach() for name, p in parameters.items()}
    samples = (backprops, *activations)
    in_dims = (None, *(0 for _ in samples))
    gradients = vmap(grad(loss), in_dims, randomness="error")(detached, *samples)
    return {p: gradients[name] for name, p in parameters.items()}


def register(opacus: ModuleType, classes: list[type]) -> None:
    """Registers our classes with `opacus.grad_sample`."""
    opacus.register_grad_sampler(classes)(_per_sample)


def _opacus_looks(module: nn.Module) -> bool:
    owners = (getattr(hook, "__self__", None) for hook in module._forward_hooks.values())
    return any(type(owner).__module__.startswith("opacus.") for owner in owners)


def _refuse(what: str):
    raise RuntimeError(f"opacus does not see {what}: its per-sample gradients would be wrong")


def _refuse_gradient(gradient: Tensor) -> None:
    if gradient is not None and gradient.any():  # nothing, or zeros, come where it is unused
        _refuse("a gradient that comes through h_n or c_n")


def _check(module: nn.Module, args: tuple, kwargs: dict, results) -> None:
    """Refuses what opacus does not see of a call, before it is too late."""
    if not _opacus_looks(module) or not torch.is_grad_enabled():
        return
    is_cell = isinstance(module, nn.RNNCellBase)
    hx = [*args[1:], kwargs.get("hx")]
    if not isinstance(args[0] if args else None, Tensor) or set(kwargs) - {"hx"}:
        _refuse("packed input and arguments by name")
    if isinstance(results, tuple) and is_cell:
        _refuse("the pair of states of an LSTMCell")
    if not is_cell and any(each is not None for each in hx):
        _refuse("an initial state")
    if not is_cell and module.training and module.dropout and module.num_layers > 1:
        _refuse("the mask of a dropout between layers")
    if isinstance(results, tuple):
        for state in results[1] if isinstance(results[1], tuple) else results[1:]:
            if state.requires_grad:
                state.register_hook(_refuse_gradient)


class PerSample:
    """A module that checks its calls while opacus looks on."""

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """As of `nn.Module`."""
        if type(getattr(hook, "__self__", None)).__module__.startswith("opacus."):
            checks = self._forward_hooks.values()
            if _check not in checks:
                super().register_forward_hook(_check, with_kwargs=True)
        return super().register_forward_hook(hook, **options)
