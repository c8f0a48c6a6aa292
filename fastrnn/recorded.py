"""The short way of a call on a CPU that autograd records: from a module, a cell or a function to
the layers at once.

None stands for a call that takes the long way, which does it otherwise or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import autograd, dispatch, stack
from .call import Call, Stack
from .dispatch import cpu
from .features import Asked
from .restart import Returned
from .table import cell_named
from .torch_private import is_any_autocast_enabled

PLAIN = (torch.nn.Parameter, Tensor)  # classes that change no operation


def _takes(input: Tensor, others: Iterable[Tensor | None]) -> bool:
    """Whether the kernels compute a call with this input, for which `direct` is open, in its own
    dtype, and all other tensors are like it."""
    dtype = input.dtype
    if not input.is_cpu or dtype is torch.float16 or is_any_autocast_enabled():
        return False
    for each in others:
        if type(each) not in PLAIN or each.dtype is not dtype:
            return False
        if not each.is_cpu or each.layout is not torch.strided:
            return False
    return True


def run(call: Call, form: tuple, asked: Asked | None) -> Returned | None:
    """(output, h_n, c_n, States or None) of a stack of layers, or None.

    Args:
        call: that of the first layer, with the states and the weights of all.
        form: number of layers, directions D, dropout between them, `batch_first`.
    """
    layers, directions, _, batch_first = form
    if asked is not None and asked.reset_state is not None:
        return None
    states = (call.h0,) if call.c0 is None else (call.h0, call.c0)
    if not _takes(call.input, (*states, *call.weights)):
        return None
    if not (call.input.numel() and call.h0.numel()) or call.h0.size(0) != layers * directions:
        return None
    if asked is not None:
        whole = asked.of(Stack(call, *form))
    elif layers > 1:
        whole = Stack(call, *form)
    else:
        whole = None
    try:
        if whole is not None:
            return stack.run_on(cpu, whole, whole.states and whole.traced)
        transposed = batch_first and call.batch_sizes is None
        layer = call._replace(input=call.input.transpose(0, 1)) if transposed else call
        layer = cpu.asked(layer) if cpu.asks else layer
        output, h_n, c_n, *_ = autograd.layer(cpu, False, layer)
    except (IndexError, RuntimeError):
        whole = whole or Stack(call, *form)
        whole.check_weights(alike=False)  # in the names of parameters, if that is what is wrong
        raise
    output = output.transpose(0, 1) if transposed else output
    return output, h_n, None if call.c0 is None else c_n, None  # an op gives (0,)


def of_module(
    call: tuple, form: tuple, widths: tuple[int, int], asked: Asked | None
) -> Returned | None:
    """`run` of the first fields of a module's `Call`, in which the initial states may be None.
    `widths` are the module's H and P."""
    input, batch_sizes, h0, c0, weights, cell, names = call
    layers, directions, _, batch_first = form
    H, P = widths
    if batch_sizes is None:
        batch = input.size(0 if batch_first else 1)
    elif type(batch_sizes) is Tensor and batch_sizes.is_cpu and len(batch_sizes):
        batch = int(batch_sizes[0])
    else:
        return None
    planes, K = layers * directions, cell_named(cell).own
    if h0 is None:
        h0 = input.new_zeros(planes, batch, P)
        if K:
            c0 = h0 if P == K * H else input.new_zeros(planes, batch, K * H)
    for state, width in ((h0, P), (c0, K * H)):
        if state is not None and getattr(state, "shape", None) != (planes, batch, width):
            return None
    weights = weights[: planes * (names.count(" ") + 1)]  # there may be more by now
    return run(Call(input, batch_sizes, h0, c0, weights, cell, names), form, asked)


def step(call: tuple, parameters: dict, hidden_size: int) -> tuple[Tensor, ...] | None:
    """The states after one step of a cell, (h',) or (h', c'), or None. `call` is as of `of_module`,
    but nothing in it has a time."""
    input, _, h0, c0, names, cell, form = call
    weights = [parameters.get(name) for name in names]
    if h0 is None:
        h0 = input.new_zeros(input.size(0), hidden_size)
        c0 = h0 if cell == "lstm" else None
    if not _takes(input, (h0, *weights) if c0 is None else (h0, c0, *weights)):
        return None
    (N, I), w_ih, w_hh = input.shape, *weights[:2]
    if not (N and I and w_ih.dim() == w_hh.dim() == 2 and w_ih.size(1) == I):
        return None
    if not h0.numel() or h0.shape != (N, w_hh.size(1)):
        return None
    if c0 is not None and c0.shape != h0.shape:
        return None
    call = Call(input, None, h0, c0, weights, cell, form)
    if dispatch.takes_torch_step(call):
        return None
    try:
        h, c = autograd.step(cpu, cpu.asked(call) if cpu.asks else call)
    except (IndexError, RuntimeError):
        call.check_weights(I)  # as in `run`
        raise
    return (h,) if c is None else (h, c)
