"""The backend "cudnn": PyTorch's own kernels, by the functions that `torch.nn` calls.

On an NVIDIA GPU these are cuDNN's, wherever `torch.nn` takes them. Autograd goes through them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Call, Stack
from ...results import Results
from .. import gpu

NAME = "cudnn"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_STEPS = 65_535


def status() -> str | None:
    """Why there is nothing to run on, or None."""
    return None if torch.accelerator.is_available() else "there is no GPU that torch can use"


def obstacle(call: Call, traced: bool = False) -> str | None:
    """Why a call cannot be torch.nn's, or None. traced: it is to return what each step computed."""
    if not gpu.on_gpu(call.input):
        return f"tensors are on {call.input.device}; move them and the module to 'cuda'"
    if call.input.dtype not in DTYPES:
        return f"dtype is {call.input.dtype}"
    if traced or call.has_features:
        return "torch.nn has no reset, lengths, states of every step, detach_every or grad_clip"
    if call.input.is_cuda and torch.version.hip is None and not torch.compiler.is_compiling():
        steps = call.mean_steps() if call.batch_sizes is None else call.batch_sizes.size(0)
        if steps > MOST_STEPS and torch.backends.cudnn.enabled:
            return f"cuDNN takes at most {MOST_STEPS} steps, the input has {steps}"
    return None


def takes_stack(stack: Stack) -> bool:
    """Whether one call may take all layers, and what is between them.

    On MPS it makes wrong gradients where there is dropout (torch 2.13).
    """
    return not (stack.dropout and _is_mps(stack.call.input))


def _is_mps(input: Tensor) -> bool:
    return input.is_mps


def run(call: Call, save: bool) -> Results:
    """One layer. Nothing can be saved."""
    return run_stack(Stack(call, 1, call.h0.size(0), 0.0, False))


def run_stack(stack: Stack) -> Results:
    """All layers in one call, in which cuDNN overlaps them.

    Backward in eval mode works, other than in `torch.nn` on cuDNN: what is saved for it depends on
    whether it can come.

    Raises:
        RuntimeError: a rank, size, dtype or device does not fit.
    """
    call = stack.call
    if not torch.is_autocast_enabled(call.input.device.type):
        call.check_alike()
    _check(stack)
    h0, c0 = call.h0.contiguous(), None if call.c0 is None else call.c0.contiguous()
    train = stack.dropout > 0
    train = train or (torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors()))
    function = getattr(torch, call.cell)
    hx = h0 if c0 is None else (h0, c0)
    bias, bidirectional = "b_ih" in call.names, stack.directions == 2
    options = (list(call.weights), bias, stack.layers, stack.dropout, train, bidirectional)
    if call.batch_sizes is None:
        output, h_n, *rest = function(call.input, hx, *options, stack.batch_first)
    else:
        output, h_n, *rest = function(call.input, call.batch_sizes, hx, *options)
    return Results(output, h_n, rest[0] if rest else call.input.new_empty(0))


def _check(stack: Stack) -> None:
    """RuntimeError where shapes do not fit: kernels that are not ours may read past the end."""
    call = stack.call
    input = call.input.transpose(0, 1) if stack.transposed else call.input
    if call.c0 is not None and call.c0.size(0) != call.h0.size(0):
        raise RuntimeError(f"c0 must have {call.h0.size(0)} states, got {call.c0.size(0)}")
    for k, layer in enumerate(stack._replace(call=call._replace(input=input)).each()):
        if k == 0:
            size = layer.sizes()
            layer.steps(size)
            output = torch.empty(layer.output_shape(size), device="meta")
        else:
            layer._replace(input=output).sizes()
