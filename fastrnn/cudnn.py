"""PyTorch's own kernels for a stack of layers. On an NVIDIA GPU these are cuDNN's, wherever
`torch.nn` takes them: the functions called here are those that `torch.nn` calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import gpu, reference, torch_private

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def status() -> str | None:
    """Why there is nothing to run on, or None."""
    return None if torch.accelerator.is_available() else "there is no GPU that torch can use"


def obstacle(input: Tensor, features: bool) -> str | None:
    """Why a call cannot be torch.nn's, or None. features: it asks for what that lacks."""
    if not gpu.on_gpu(input):
        return f"tensors are on {input.device}; move them and the module to 'cuda'"
    if input.dtype not in DTYPES:
        return f"dtype is {input.dtype}"
    if features:
        return "torch.nn has no reset, lengths, states of every step, detach_every or grad_clip"
    return None


def capability(input: Tensor) -> int:
    """The major number of the compute capability of a tensor's GPU; 0 of other devices."""
    return gpu.capability(input.device)[0] if input.is_cuda else 0


def stack(
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, h_n, c_n) of all layers in one call, in which cuDNN overlaps them.

    Arguments as in `functional.lstm`; c_n is (0,) without cell state. Backward in eval mode works,
    other than in `torch.nn` on cuDNN: what is saved for it depends on whether it can come.
    """
    _check(cell, input, h0, c0, weights, bias, num_layers, bidirectional, batch_first, batch_sizes)
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    tensors = (input, h0, *weights) if c0 is None else (input, h0, c0, *weights)
    dropout = dropout if training else 0.0
    train = dropout > 0 or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    function = getattr(torch, cell)
    hx = h0 if c0 is None else (h0, c0)
    options = (list(weights), bias, num_layers, dropout, train, bool(bidirectional))
    if batch_sizes is None:
        output, h_n, *rest = function(input, hx, *options, batch_first)
    else:
        output, h_n, *rest = function(input, batch_sizes, hx, *options)
    return output, h_n, rest[0] if rest else input.new_empty(0)


def _check(
    cell, input, h0, c0, weights, bias, num_layers, bidirectional, batch_first, batch_sizes
) -> None:
    """RuntimeError where shapes do not fit: kernels that are not ours may read past the end."""
    directions = 2 if bidirectional else 1
    count = len(weights) // num_layers
    if batch_sizes is None and batch_first:
        input = input.transpose(0, 1)
    first = (h0[:directions], None if c0 is None else c0[:directions], weights[:count])
    size = reference.sizes(input, batch_sizes, *first, cell, bias)
    if h0.size(0) != num_layers * directions or len(weights) != num_layers * count:
        raise RuntimeError(
            f"{num_layers} layers of {directions} directions cannot take {h0.size(0)} "
            f"initial states and {len(weights)} weights"
        )
    if c0 is not None and c0.size(0) != h0.size(0):
        raise RuntimeError(f"c0 must have {h0.size(0)} states, got {c0.size(0)}")
    if num_layers > 1:
        wanted = [w.shape for w in weights[:count]]
        for k in range(0, count, size.per_direction):
            wanted[k] = torch.Size((wanted[k][0], size.D * size.P))
        for k, weight in enumerate(weights[count:], count):
            if weight.shape != wanted[k % count]:
                raise RuntimeError(
                    f"weight {k} must have shape {tuple(wanted[k % count])}, "
                    f"got {tuple(weight.shape)}"
                )
    if batch_sizes is not None:
        reference._step_sizes(size, batch_sizes)


# Compiled graphs take a layer as one op. What PyTorch saves for its backward has no place in a
# graph, so backward runs forward again.

_TENSORS = "Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] weights"
_ARGUMENTS = f"{_TENSORS}, str cell, bool bias"
_library = torch.library.Library("fastrnn", "FRAGMENT")
_library.define(
    f"torch_layer({_ARGUMENTS}) -> (Tensor output, Tensor h_n, Tensor c_n)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"torch_layer_backward(Tensor?[] grads, {_ARGUMENTS}) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def layer(input, batch_sizes, h0, c0, weights, cell, bias) -> tuple[Tensor, Tensor, Tensor]:
    """One layer; arguments and results as in `reference.layer`."""
    options = (bias, 1, 0.0, False, h0.size(0) == 2, False, batch_sizes)
    return stack(cell, input, h0, c0, weights, *options)


@torch.library.impl(_library, "torch_layer", "CompositeExplicitAutograd")
@torch.no_grad()
def _(input, batch_sizes, h0, c0, weights, cell, bias):
    results = layer(input, batch_sizes, h0, c0, weights, cell, bias)
    return tuple(result.contiguous() for result in results)


@torch.library.impl(_library, "torch_layer_backward", "CompositeExplicitAutograd")
def _(grads, input, batch_sizes, h0, c0, weights, cell, bias):
    x, h, *w = (t.detach().requires_grad_() for t in (input, h0, *weights))
    c = None if c0 is None else c0.detach().requires_grad_()
    results = torch_private.recording(lambda: layer(x, batch_sizes, h, c, w, cell, bias))
    pairs = zip(results, grads, strict=True)
    pairs = [(result, grad) for result, grad in pairs if grad is not None]
    wanted = [x, h, *w] if c is None else [x, h, c, *w]
    results, seeds = zip(*pairs, strict=True)
    found = torch.autograd.grad(results, wanted, seeds, materialize_grads=True)
    return [grad.contiguous() for grad in found]


@torch.library.register_fake("fastrnn::torch_layer")
def _(input, batch_sizes, h0, c0, weights, cell, bias):
    size = reference.sizes(input, batch_sizes, h0, c0, weights, cell, bias)
    return (
        input.new_empty(size.output(batch_sizes)),
        input.new_empty(size.D, size.N, size.P),
        input.new_empty((size.D, size.N, size.H) if c0 is not None else 0),
    )


@torch.library.register_fake("fastrnn::torch_layer_backward")
def _(grads, input, batch_sizes, h0, c0, weights, cell, bias):
    wanted = (input, h0, *weights) if c0 is None else (input, h0, c0, *weights)
    return [t.new_empty(t.shape) for t in wanted]


def _setup_context(ctx, inputs, output):
    input, batch_sizes, h0, c0, weights, *ctx.rest = inputs
    ctx.save_for_backward(input, batch_sizes, h0, c0, *weights)
    ctx.set_materialize_grads(False)


def _backward(ctx, *grads):
    input, batch_sizes, h0, c0, *weights = ctx.saved_tensors
    grads = [*grads[:2], None if c0 is None else grads[2]]
    if all(grad is None for grad in grads):
        return (None,) * 7
    arguments = (input, batch_sizes, h0, c0, weights, *ctx.rest)
    grad_input, grad_h0, *found = torch.ops.fastrnn.torch_layer_backward.default(grads, *arguments)
    grad_c0 = None if c0 is None else found.pop(0)
    return grad_input, None, grad_h0, grad_c0, found, None, None


torch.library.register_autograd(
    "fastrnn::torch_layer", _backward, setup_context=_setup_context, lib=_library
)
