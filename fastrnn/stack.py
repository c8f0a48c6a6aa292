"""A stack: layers on top of each other with dropout between them, and what autocast makes of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, features, ops
from .call import NO_STEPS, Call, Stack
from .dispatch import cudnn, gpu, reference
from .features import States
from .torch_private import is_any_autocast_enabled
from .trees import map_tensors

_CAST = (torch.float16, torch.bfloat16, torch.float32)

Returned = tuple[Tensor, Tensor, Tensor, States | None]


def run(stack: Stack, keep_dtype: bool = False) -> Returned:
    """(output, h_n, c_n) of all layers, and the States if they are wanted.

    Under autocast it computes in float32, and in float64 what is float64. It then returns the
    dtypes of `torch.nn` on the CPU: LSTM and RNN the autocast dtype; GRU, or any cell with
    `keep_dtype`, that of the initial state. On a GPU everything returns the autocast dtype, in
    which all but the reference compute. `torch.nn` does too, but makes float16 of bfloat16 on cuDNN
    (torch 2.11).

    Raises:
        RuntimeError: as `ops.layer`, or the states or weights are not those of so many layers.
    """
    if is_autocast(stack.call.input):
        return _under_autocast(stack, keep_dtype)
    return _layers(stack)


def _layers(stack: Stack) -> Returned:
    call, traced = stack.call, stack.states and stack.traced
    backend = dispatch.choose(call, stack.layers, traced)
    if backend is cudnn and cudnn.takes_whole(stack):
        return *cudnn.run_stack(stack)[:3], None
    if stack.transposed:
        call = call._replace(input=call.input.transpose(0, 1))
        stack = stack._replace(call=call)
    if call.batch_sizes is None and call.input.size(0) == 0:
        raise RuntimeError(NO_STEPS)
    layers = []
    for layer in stack.each():
        if layers:
            below = layers[-1].output
            below = F.dropout(below, stack.dropout) if stack.dropout else below
            layer = layer._replace(input=below)
        layers.append(ops.layer(layer, backend, traced))
    output = layers[-1].output
    if len(layers) == 1:
        _, h_n, c_n, *_ = layers[0]
    else:
        h_n, c_n = (torch.cat([results[k] for results in layers]) for k in (1, 2))
    if stack.transposed:
        output = output.transpose(0, 1)
    if not stack.states:
        return output, h_n, c_n, None
    of = features.states_of(call.kind, stack.directions, stack.batch_first, stack.gates, layers)
    return output, h_n, c_n, of


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for tensors such as this one."""
    return (
        is_any_autocast_enabled()
        and not input.is_meta
        and torch.is_autocast_enabled(input.device.type)
    )


def _under_autocast(stack: Stack, keep_dtype: bool) -> Returned:
    call = stack.call
    device = call.input.device.type
    dtype = compute = torch.get_autocast_dtype(device)
    if (whole := _by_cudnn(stack, dtype)) is not None:
        return whole
    if gpu.on_gpu(call.input):
        if dispatch.choose(_cast(call, compute), stack.layers, stack.traced) is reference:
            compute = torch.float32
    else:
        narrow = dispatch.choose(call, traced=stack.traced) is cudnn and cudnn.narrows(call, dtype)
        compute = dtype if narrow else torch.float32
        dtype = call.h0.dtype if keep_dtype or call.cell == "gru" else dtype
    with torch.autocast(device, enabled=False):
        results = _layers(stack._replace(call=_cast(call, compute)))
    if results[0].dtype == torch.float64:
        return results
    return map_tensors(lambda result: result.to(dtype), results)


def _by_cudnn(stack: Stack, dtype: torch.dtype) -> Returned | None:
    """What PyTorch's own kernels make of it under autocast, or None where they are not chosen.

    PyTorch's rule for cuDNN casts to float16, whatever autocast's dtype is. On a CPU float16 is
    slow, and oneDNN's LSTM has no second derivative in what autocast makes of it.
    """
    call = stack.call
    input = call.input
    if stack.states or torch.compiler.is_compiling():
        return None
    if input.is_cuda and dtype is not torch.float16:
        return None
    if not gpu.on_gpu(input) and (dtype is not torch.bfloat16 or cudnn.fused_lstm(call)):
        return None
    if input.is_cuda and input.dtype in _CAST:
        call = call._replace(input=input.to(dtype))
    if dispatch.choose(call, stack.layers) is not cudnn:
        return None
    return *cudnn.run_stack(stack._replace(call=call))[:3], None


def _cast(call: Call, dtype: torch.dtype) -> Call:
    """The call in the dtype, where its tensors are of one that autocast changes."""
    return call.with_tensors([t.to(dtype) if t.dtype in _CAST else t for t in call.tensors()])
