"""The custom ops: schemas, fake kernels, and `layer`, which calls them.

The extension `fastrnn._C` registers kernels for the three ops on import; `dispatch` registers what
else they run on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import autograd, cudnn, direct, dispatch, gpu, reference, reference_ops
from .dispatch import Options

# Not keyword-only, which torch.library gives no derivative to when they are tensors.
_FEATURES = "Tensor? reset=None, Tensor? lengths=None, int detach_every=0, float grad_clip=0."
_ARGUMENTS = (
    "Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, "
    f"Tensor[] weights, str cell, bool bias, {_FEATURES}"
)
_SCHEMAS = {
    "layer_inference": f"({_ARGUMENTS}) -> (Tensor output, Tensor h_n, Tensor c_n)",
    "layer_forward": f"({_ARGUMENTS}) -> "
    "(Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor hidden)",
    "layer_backward": "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cells, Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, "
    "Tensor[] weights, Tensor output, Tensor gates, Tensor cells, Tensor hidden, str cell, "
    f"bool bias, bool need_input, bool need_state, bool need_weights, {_FEATURES}) -> "
    "(Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)",
}

_library = torch.library.Library("fastrnn", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

dispatch.load(_library)

torch.library.register_autograd(
    "fastrnn::layer_forward", autograd.op_backward, setup_context=autograd.op_setup_context
)


# Fake kernels: shapes and dtypes of the results, without data.


@torch.library.register_fake("fastrnn::layer_inference")
def _(
    input,
    batch_sizes,
    h0,
    c0,
    weights,
    cell,
    bias,
    reset=None,
    lengths=None,
    detach_every=0,
    grad_clip=0.0,
):
    size = reference.sizes(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    return (
        input.new_empty(size.output(batch_sizes)),
        input.new_empty(size.D, size.N, size.P),
        input.new_empty((size.D, size.N, size.H) if c0 is not None else 0),
    )


@torch.library.register_fake("fastrnn::layer_forward")
def _(
    input,
    batch_sizes,
    h0,
    c0,
    weights,
    cell,
    bias,
    reset=None,
    lengths=None,
    detach_every=0,
    grad_clip=0.0,
):
    size = reference.sizes(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    per_row = (size.D, size.rows, size.H)
    projected = c0 is not None and size.per_direction % 2
    return (
        input.new_empty(size.output(batch_sizes)),
        input.new_empty(size.D, size.N, size.P),
        input.new_empty((size.D, size.N, size.H) if c0 is not None else 0),
        input.new_empty(size.D, size.rows, reference.CELLS[cell].saved, size.H),
        input.new_empty(per_row if c0 is not None else 0),
        input.new_empty(per_row if projected else 0),
    )


@torch.library.register_fake("fastrnn::layer_backward")
def _(
    grad_output,
    grad_h_n,
    grad_c_n,
    grad_cells,
    input,
    batch_sizes,
    h0,
    c0,
    weights,
    output,
    gates,
    cells,
    hidden,
    cell,
    bias,
    need_input,
    need_state,
    need_weights,
    reset=None,
    lengths=None,
    detach_every=0,
    grad_clip=0.0,
):
    return (
        input.new_empty(input.shape if need_input else 0),
        input.new_empty(h0.shape if need_state else 0),
        input.new_empty(c0.shape if need_state and c0 is not None else 0),
        [w.new_empty(w.shape) for w in weights] if need_weights else [],
    )


def raise_mixed(input: Tensor, tensors: Sequence[Tensor]) -> None:
    """RuntimeError if the tensors do not share one dtype and one device, or are not dense."""
    if input.layout is not torch.strided or input.is_nested:
        kind = "nested" if input.is_nested else input.layout
        raise RuntimeError(f"input must be a dense tensor, got {kind}")
    for tensor in tensors:
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"hx and weights must be dense tensors, got {tensor.layout}")
        if tensor.dtype != input.dtype:
            raise RuntimeError(
                f"input, hx and weights must have the same dtype, but got "
                f"{input.dtype} and {tensor.dtype}"
            )
        if tensor.device != input.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two "
                f"devices, {input.device} and {tensor.device}!"
            )


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    options: Options | None = None,
    layers: int = 1,
) -> tuple[Tensor, ...]:
    """One layer in all its directions, on the backend chosen: (output, h_n, c_n).

    Arguments and results as in `reference.layer`; all tensors but batch_sizes share one device,
    and all but it, reset and lengths one dtype. float16 and bfloat16 on the CPU are computed in
    float32, which the states keep between the steps of a layer; a product may take h and gradients
    rounded to bfloat16, where the CPU multiplies these. With `options.trace` gates, detached, and
    cells follow. Differentiable, and to any order but on PyTorch's own kernels for GPUs. layers: of
    the stack that this one belongs to, which the choice looks at.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit, the backend that was forced
            cannot run, or, on the CPU, a length is not in [0, T].
    """
    dtype = input.dtype
    on_cpu, requires_grad = True, False
    tensors = (input, h0, *weights) if c0 is None else (input, h0, c0, *weights)
    for tensor in tensors:
        if tensor.dtype is not dtype or tensor.layout is not torch.strided:
            raise_mixed(input, tensors)
        on_cpu = on_cpu and tensor.is_cpu
        requires_grad = requires_grad or tensor.requires_grad
    if options is not None:
        for tensor in options[:2]:
            if tensor is not None and tensor.device != input.device:
                raise_mixed(input, [tensor.to(dtype)])
    if not on_cpu:
        raise_mixed(input, tensors)

    asked = dispatch.chosen()
    if dtype is torch.float16 and asked in ("auto", "cpu") and not gpu.on_gpu(input):
        return _in_float32(input, batch_sizes, h0, c0, weights, cell, bias, options)
    compiling = torch.compiler.is_compiling()
    wants_grad = requires_grad and torch.is_grad_enabled()
    packed = batch_sizes is not None
    plain = h0.size(0) == 1 and (c0 is None or c0.size(-1) == h0.size(-1))
    name = dispatch.choose(cell, input, h0, options, packed, plain, layers, compiling)
    if name == "reference":
        if dtype is torch.bfloat16 and asked == "auto" and not gpu.on_gpu(input):
            return _in_float32(input, batch_sizes, h0, c0, weights, cell, bias, options)
        return _by_reference(input, batch_sizes, h0, c0, weights, cell, bias, options)
    if name == "cudnn":
        whole = torch.ops.fastrnn.torch_layer.default if compiling else cudnn.layer
        return whole(input, batch_sizes, h0, c0, weights, cell, bias)
    if wants_grad and not compiling:
        return autograd.Layer.apply(input, batch_sizes, h0, c0, cell, bias, options, *weights)
    saves = wants_grad or (options is not None and options.trace)
    which = "layer_forward" if saves else "layer_inference"
    op = getattr(torch.ops.fastrnn, which).default if compiling else direct.op(which, input)
    if options is None:
        results = op(input, batch_sizes, h0, c0, weights, cell, bias)
        return results[:3] if wants_grad else results
    results = op(input, batch_sizes, h0, c0, weights, cell, bias, *options[:4])
    return results[: 5 if options.trace else 3]


def _in_float32(input, batch_sizes, h0, c0, weights, *rest) -> tuple[Tensor, ...]:
    """`layer` of half-precision tensors: only what goes in and comes out is rounded to theirs."""
    c0 = None if c0 is None else c0.float()
    weights = [weight.float() for weight in weights]
    results = layer(input.float(), batch_sizes, h0.float(), c0, weights, *rest)
    return tuple(result.to(input.dtype) for result in results)


def _by_reference(*arguments) -> tuple[Tensor, ...]:
    """`layer` on the reference."""
    *arguments, options = arguments
    if options is None:
        return reference.layer(*arguments)
    reference_ops.check_lengths(options.lengths, len(arguments[0]))
    results = reference.layer(*arguments, *options[:4], trace=options.trace)
    return (*results[:3], results[3].detach(), results[4]) if options.trace else results
