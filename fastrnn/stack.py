"""A stack: layers on top of each other with dropout between them, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from . import autocast, dispatch, features, ops, restart
from .call import Stack
from .checks import NO_STEPS
from .dispatch import cpu, cudnn, gpu, reference
from .dispatch.cudnn.weights import are_cast_flat, flat
from .features import States
from .restart import Returned


def run(stack: Stack, step: bool = False) -> Returned:
    """(output, h_n, c_n) of all layers, and the States if they are wanted.

    Under autocast the results have the dtypes of `torch.nn`, with `step` those of its cells.
    float64 stays float64. On a CPU a call computes in bfloat16 where autocast asks for that and it
    is faster, and otherwise in float32. On a GPU every backend but the reference computes in the
    dtype of autocast, and all return it. `torch.nn` does too, but its cuDNN computes in float16
    under autocast to bfloat16 (torch 2.11).

    Raises:
        RuntimeError: as `ops.layer`, or the states or weights are not those of so many layers.
    """
    if autocast.is_on(stack.call.input):
        return _under_autocast(stack, step)
    if stack.reset_state is not None:
        return restart.run(stack, run)
    traced = stack.states and stack.traced
    return run_on(dispatch.choose(stack.call, stack.layers, traced), stack, traced)


def run_named(stack: Stack) -> Returned:
    """As `run`. The error of a weight of a wrong shape, dtype or device has its name in
    `torch.nn`."""
    if torch.compiler.is_compiling():
        stack.check_weights(alike=False)
    try:
        return run(stack)
    except (IndexError, RuntimeError):
        stack.check_weights(alike=not autocast.is_on(stack.call.input))
        raise


def run_on(backend: dispatch.Backend, stack: Stack, traced: bool = False) -> Returned:
    """The same on a backend that can take the stack, and without autocast or `reset_state`."""
    call, transposed = stack.call, stack.transposed
    if backend is cudnn and cudnn.takes_whole(stack):
        return *cudnn.run_stack(stack)[:3], None
    if transposed:
        input = call.input.transpose(0, 1)
        if not torch.compiler.is_compiling() and input.is_inference() and torch.is_grad_enabled():
            input = input.clone()  # which autograd may save
        call = call._replace(input=input)
        stack = stack._replace(call=call)
    if call.batch_sizes is None and call.input.size(0) == 0:
        raise RuntimeError(NO_STEPS)
    layers = []
    for layer in stack.each():
        if layers:
            below = layers[-1].output
            below = torch.dropout(below, stack.dropout, True) if stack.dropout else below
            layer = layer._replace(input=below)
        layers.append(ops.layer(layer, backend, traced))
    graph = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if graph and torch.is_grad_enabled() and backend not in (reference, cudnn):
        layers = [ops.handed_out(results) for results in layers]
    output = layers[-1].output
    _, h_n, c_n, *_ = layers[0]
    if len(layers) > 1:
        h_n = torch.cat([results.h_n for results in layers])
    if call.c0 is None:
        c_n = None  # an op gives (0,)
    elif len(layers) > 1:
        c_n = torch.cat([results.c_n for results in layers])
    if transposed:
        output = output.transpose(0, 1)
    if not stack.states:
        return output, h_n, c_n, None
    of = features.states_of(call.kind, stack.directions, transposed, stack.gates, layers)
    return output, h_n, c_n, of


def _under_autocast(stack: Stack, step: bool) -> Returned:
    call = stack.call
    device = call.input.device.type
    h = c = compute = torch.get_autocast_dtype(device)
    if (whole := _by_cudnn(stack, compute)) is not None:
        return whole
    if not gpu.on_gpu(call.input):
        h, c = autocast.returned_on_cpu(call, compute, step)
        if not (cpu.not_built and _narrows(stack, compute)):
            compute = autocast.computed_on_cpu(call, compute)
    given = autocast.cast(call._replace(weights=()), compute)._replace(weights=call.weights)
    backend = dispatch.choose(given, stack.layers, stack.traced)
    if backend is reference:
        given = autocast.cast(call, torch.float32)
    elif backend is cudnn and are_cast_flat(stack, compute):
        given = given._replace(weights=flat(stack, compute))
    else:
        given = autocast.cast(given, compute)
    with torch.autocast(device, enabled=False):
        results = run(stack._replace(call=given))
    output, h_n, c_n, states = results
    if output.dtype == torch.float64:
        return results
    if states is not None:
        states = States(*map(_to, (h, c, h), states))
    return output.to(h), h_n.to(h), None if c_n is None else c_n.to(c), states


def _narrows(stack: Stack, dtype: torch.dtype) -> bool:
    """Whether PyTorch's own kernels compute a stack, and faster in autocast's dtype."""
    call = stack.call
    return dispatch.choose(call, traced=stack.traced) is cudnn and cudnn.narrows(call, dtype)


def _to(dtype: torch.dtype, of_layers: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    return of_layers and tuple(each.to(dtype) for each in of_layers)


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
    if gpu.on_gpu(input):
        if not cudnn.takes_whole(stack):
            return None
    elif dtype is not torch.bfloat16 or cudnn.fused_lstm(call):
        return None
    if input.is_cuda and input.dtype in autocast.CAST:
        call = call._replace(input=input.to(dtype))
    if dispatch.choose(call, stack.layers) is not cudnn:
        return None
    return *cudnn.run_stack(stack._replace(call=call))[:3], None
