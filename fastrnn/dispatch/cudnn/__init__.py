"""The backend "cudnn": PyTorch's own kernels, by the functions that `torch.nn` calls.

On an NVIDIA GPU these are cuDNN's, wherever `torch.nn` takes them. On a CPU they serve where no
kernels are built. Autograd goes through them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...call import Call, Stack
from ...results import Results
from .. import cpu, gpu
from . import twice

NAME = "cudnn"
NO_GPU = "there is no GPU that torch can use"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_STEPS = 65_535


def status() -> str | None:
    """Why there is nothing to run on, or None."""
    if cpu.not_built or torch.accelerator.is_available():
        return None
    return NO_GPU


def obstacle(call: Call, traced: bool = False) -> str | None:
    """Why a call cannot be torch.nn's, or None. traced: it is to return what each step computed."""
    if not (gpu.on_gpu(call.input) or (call.input.is_cpu and cpu.not_built)):
        return f"tensors are on {call.input.device}; move them and the module to 'cuda'"
    if call.input.dtype not in DTYPES:
        return f"dtype is {call.input.dtype}"
    if call.kind.step:
        return "torch.nn has no cells made of functions"
    if traced or call.has_features:
        return "torch.nn has no reset, lengths, states of every step, detach_every or grad_clip"
    if call.input.is_cuda and torch.version.hip is None and not torch.compiler.is_compiling():
        steps = call.mean_steps() if call.batch_sizes is None else call.batch_sizes.size(0)
        if steps > MOST_STEPS and torch.backends.cudnn.enabled:
            return f"cuDNN takes at most {MOST_STEPS} steps, the input has {steps}"
    return None


def _is_mps(input: Tensor) -> bool:
    return input.is_mps


def fused_lstm(call: Call) -> bool:
    """Whether PyTorch hands a layer to oneDNN, on a CPU."""
    return (
        call.cell == "lstm"
        and not (call.projected or gpu.on_gpu(call.input))
        and call.input.dtype in (torch.float32, torch.bfloat16)
    )


def narrows(call: Call, dtype: torch.dtype) -> bool:
    """Whether a layer is faster in autocast's dtype, where autocast is to pass it by."""
    fused = fused_lstm(call) and dtype is torch.bfloat16 and not torch.compiler.is_compiling()
    return fused and _fused_lstm_has_bfloat16()


@functools.cache
def _fused_lstm_has_bfloat16() -> bool:
    """Whether oneDNN has it for this CPU: for others PyTorch raises."""
    x, weight = (torch.zeros(shape, device="cpu") for shape in ((1, 1, 1), (4, 1)))
    options = [weight, weight], False, 1, 0.0, False, False, False
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.lstm(x, (x, x), *options)
    except RuntimeError:
        return False
    return True


def _attached(call: Call) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors())


def takes_whole(stack: Stack) -> bool:
    """Whether `run_stack` may take a stack, where each of its layers could be taken by `run`.

    On MPS its gradients are wrong where there is dropout between layers (torch 2.13).
    """
    call = stack.call
    if stack.states or torch.compiler.is_compiling():
        return False
    if gpu.on_gpu(call.input):
        return not (stack.dropout and _is_mps(call.input))
    # float16 is widened, and `twice` looks at one layer.
    return call.input.dtype is not torch.float16 and not (fused_lstm(call) and _attached(call))


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
    attached = _attached(call)
    train = stack.dropout > 0 or attached
    function = getattr(torch, call.cell)
    hx = h0 if c0 is None else (h0, c0)
    bias, bidirectional = "b_ih" in call.names, stack.directions == 2
    options = (list(call.weights), bias, stack.layers, stack.dropout, train, bidirectional)
    if call.batch_sizes is None:
        output, h_n, *rest = function(call.input, hx, *options, stack.batch_first)
    else:
        output, h_n, *rest = function(call.input, call.batch_sizes, hx, *options)
    results = Results(output, h_n, rest[0] if rest else call.input.new_empty(0))
    if attached and fused_lstm(call):
        twice.extend(call, results)
    return results


LIMIT = 256
_fitting: set[tuple] = set()  # forms of padded calls that were checked


def _check(stack: Stack) -> None:
    """RuntimeError where shapes do not fit: kernels that are not ours may read past the end."""
    call = stack.call
    if call.batch_sizes is not None or type(call.input) is not Tensor:
        return _check_shapes(stack)
    tensors = (call.input, call.h0, *(() if call.c0 is None else (call.c0,)), *call.weights)
    form = (call.cell, call.names, *stack[1:3], stack.batch_first, *[t.shape for t in tensors])
    if form not in _fitting:
        _check_shapes(stack)
        if len(_fitting) >= LIMIT:
            _fitting.clear()
        _fitting.add(form)


def _check_shapes(stack: Stack) -> None:
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
