"""PyTorch's own kernels in compiled graphs, which take a layer as one op, with its derivative.

What PyTorch saves for its backward has no place in a graph, so backward runs forward again.
"""

from __future__ import annotations

import torch

from ...call import SCHEMA, Call
from ...results import empty_results
from ...torch_private import recording
from . import run

_library = torch.library.Library("fastrnn", "FRAGMENT")
for _schema in (
    f"torch_layer({SCHEMA}) -> (Tensor output, Tensor h_n, Tensor c_n)",
    f"torch_layer_backward(Tensor?[] grads, {SCHEMA}) -> Tensor[]",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_library, "torch_layer", "CompositeExplicitAutograd")
@torch.no_grad()
def _(*arguments):
    results = run(Call(*arguments), False)
    return tuple(result.contiguous() for result in results[:3])


@torch.library.impl(_library, "torch_layer_backward", "CompositeExplicitAutograd")
def _(grads, *arguments):
    call = Call(*arguments)
    leaves = [t.detach().requires_grad_() for t in call.tensors()]
    results = recording(lambda: run(call.with_tensors(leaves), False)[:3])
    pairs = [(r, grad) for r, grad in zip(results, grads, strict=True) if grad is not None]
    results, seeds = zip(*pairs, strict=True)
    found = torch.autograd.grad(results, leaves, seeds, materialize_grads=True)
    return [grad.contiguous() for grad in found]


@torch.library.register_fake("fastrnn::torch_layer")
def _(*arguments):
    return tuple(empty_results(Call(*arguments), save=False)[:3])


@torch.library.register_fake("fastrnn::torch_layer_backward")
def _(grads, *arguments):
    return [t.new_empty(t.shape) for t in Call(*arguments).tensors()]


def _setup_context(ctx, inputs, output):
    call = Call(*inputs)
    ctx.rest = call[5:7]
    ctx.save_for_backward(call.input, call.batch_sizes, call.h0, call.c0, *call.weights)
    ctx.set_materialize_grads(False)


def _backward(ctx, *grads):
    input, batch_sizes, h0, c0, *weights = ctx.saved_tensors
    grads = [*grads[:2], None if c0 is None else grads[2]]
    others = [None] * (len(ctx.needs_input_grad) - 5)
    if all(grad is None for grad in grads):
        return None, None, None, None, None, *others
    call = Call(input, batch_sizes, h0, c0, weights, *ctx.rest)
    grad_input, grad_h0, *found = torch.ops.fastrnn.torch_layer_backward.default(grads, *call)
    grad_c0 = None if c0 is None else found.pop(0)
    return grad_input, None, grad_h0, grad_c0, found, *others


torch.library.register_autograd(
    "fastrnn::torch_layer", _backward, setup_context=_setup_context, lib=_library
)
