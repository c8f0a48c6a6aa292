"""oneDNN's LSTM on a CPU with a second derivative. PyTorch has the first alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...call import Call
from ...results import Cotangents, Results
from .. import reference

Tensors = tuple[Tensor | None, ...]


def extend(call: Call, results: Results) -> None:
    """Has gradients under `create_graph=True` come from the reference, which can be derived again.

    PyTorch stacks h_n of what oneDNN returned for each direction. Where it does not, nothing is
    changed.
    """
    stacked = results.h_n.grad_fn
    for d, (node, _) in enumerate(() if stacked is None else stacked.next_functions):
        if node is not None and node.name().startswith("MkldnnRnnLayer"):
            node.register_hook(_gradients_in(d, call))


def _gradients_in(d: int, call: Call) -> Callable[[Tensors, Tensors], Tensors | None]:
    """The hook of a direction. It holds no result of the layer, so that the graph can be freed."""

    def turned(tensor: Tensor | None) -> Tensor | None:
        return tensor.flip(0) if d and tensor is not None else tensor

    def hook(plain: Tensors, incoming: Tensors) -> Tensors | None:
        if not torch.is_grad_enabled():
            return None
        count = len(call.names.split())
        own = call._replace(
            input=turned(call.input),
            h0=call.h0[d : d + 1],
            c0=call.c0[d : d + 1],
            weights=call.weights[d * count : (d + 1) * count],
        )
        output, h_n, c_n = incoming[:3]
        states = [None if grad is None else grad.view_as(own.c0) for grad in (h_n, c_n)]
        found = reference.differentiable_gradients(own, Cotangents(turned(output), *states, None))
        weights = [*found.weights, None, None][:4]
        gradients = (turned(found.input), *weights, found.h0, found.c0)
        return tuple(
            None if old is None else new.reshape(old.shape)
            for old, new in zip(plain, gradients, strict=True)
        )

    return hook
