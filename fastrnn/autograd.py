"""The derivative of a layer, once for each of two ways to call it.

Compiled graphs need the op's own autograd formula; eager calls take a Function, which costs less
and returns what only the backward needs where it was asked for.
"""

from __future__ import annotations

import torch

from . import direct, reference
from .torch_private import below_autograd

_DEFAULTS = (None, None, 0, 0.0)  # reset, lengths, detach_every and grad_clip of the schema


def _save(ctx, inputs, output):
    input, batch_sizes, h0, c0, weights, ctx.cell, ctx.bias = inputs[:7]
    y, _, _, gates, cells, hidden = output
    masks, ctx.features = (), _DEFAULTS
    if len(inputs) > 7:
        # The dispatcher drops trailing arguments that are the schema's defaults.
        reset, lengths, *limits = inputs[7:] + _DEFAULTS[len(inputs) - 7 :]
        # Each place in what is saved, None or not, takes 2 us of a call.
        masks = [mask for mask in (reset, lengths) if mask is not None]
        ctx.features = (reset is not None, lengths is not None, *limits)
    ctx.save_for_backward(input, batch_sizes, h0, c0, y, gates, cells, hidden, *weights, *masks)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grads, need_input: bool, need_state: bool, need_weights: bool):
    """Gradients of input, h0, c0 and the weights; None for those not needed.

    grads: of output, h_n, c_n and cells.
    """
    input, batch_sizes, h0, c0, output, gates, cells, hidden, *weights = ctx.saved_tensors
    has_reset, has_lengths, *limits = ctx.features
    lengths = weights.pop() if has_lengths else None
    reset = weights.pop() if has_reset else None
    if c0 is None:
        grads = (*grads[:2], None, None)  # c_n and cells are empty
    if all(grad is None for grad in grads):
        return None, None, None, [None] * len(weights)
    arguments = (ctx.cell, ctx.bias)
    features = (reset, lengths, *limits)
    if torch.is_grad_enabled():
        return _differentiable_gradients(
            grads, input, batch_sizes, h0, c0, weights, *arguments, *features
        )
    grad_input, grad_h0, grad_c0, grad_weights = direct.op("layer_backward", input)(
        *grads, input, batch_sizes, h0, c0, weights, output, gates, cells, hidden,
        *arguments, need_input, need_state, need_weights, *features,
    )  # fmt: skip
    return (
        grad_input if need_input else None,
        grad_h0 if need_state else None,
        grad_c0 if need_state and c0 is not None else None,
        grad_weights if need_weights else [None] * len(weights),
    )


def _differentiable_gradients(grads, input, batch_sizes, h0, c0, weights, *arguments):
    """The same under `create_graph=True`: through the reference, which can be derived again.

    With grad_clip a second backward clamps twice, what comes through these gradients and what comes
    through the layer's results, where the reference by itself would clamp their sum.
    """
    wanted = [k for k, grad in zip((0, 1, 2, 4), grads, strict=True) if grad is not None]

    def layer(input, h0, *rest):
        c, w = (None, rest) if c0 is None else (rest[0], rest[1:])
        results = reference.in_float32(reference.layer)(
            input, batch_sizes, h0, c, w, *arguments, trace=4 in wanted
        )
        return tuple(results[k] for k in wanted)

    primals = (input, h0, *weights) if c0 is None else (input, h0, c0, *weights)
    _, vjp = torch.func.vjp(layer, *primals)
    grad_input, grad_h0, *rest = vjp(tuple(grad for grad in grads if grad is not None))
    grad_c0 = None if c0 is None else rest.pop(0)
    return grad_input, grad_h0, grad_c0, rest


class Layer(torch.autograd.Function):
    """`ops.layer` in eager mode: (input, batch_sizes, h0, c0, cell, bias, options, *weights)."""

    @staticmethod
    def forward(ctx, input, batch_sizes, h0, c0, cell, bias, options, *weights):
        arguments = (input, batch_sizes, h0, c0, weights, cell, bias)
        if options is not None:
            arguments += options[:4]
        with below_autograd():
            results = direct.op("layer_forward", input)(*arguments)
        _save(ctx, arguments, results)
        if options is None or not options.trace:
            return results[:3]
        ctx.mark_non_differentiable(results[3])
        return results[:5]

    @staticmethod
    def backward(ctx, *grads):
        need_input, _, need_h0, need_c0, _, _, _, *need_weights = ctx.needs_input_grad
        grad_input, grad_h0, grad_c0, grad_weights = _gradients(
            ctx,
            (*grads[:3], grads[4] if len(grads) > 3 else None),
            need_input,
            need_h0 or need_c0,
            any(need_weights),
        )
        return grad_input, None, grad_h0, grad_c0, None, None, None, *grad_weights


def op_setup_context(ctx, inputs, output):
    """Saves for `op_backward` what layer_forward was given and gave."""
    _save(ctx, inputs, output)
    ctx.mark_non_differentiable(output[3], output[5])


def op_backward(ctx, *grads):
    """The derivative of layer_forward, with respect to each of its arguments."""
    need_input, _, need_h0, need_c0, need_weights, *_ = ctx.needs_input_grad
    grad_input, grad_h0, grad_c0, grad_weights = _gradients(
        ctx, (*grads[:3], grads[4]), need_input, need_h0 or need_c0, any(need_weights)
    )
    others = [None] * (len(ctx.needs_input_grad) - 5)
    return grad_input, None, grad_h0, grad_c0, grad_weights, *others
