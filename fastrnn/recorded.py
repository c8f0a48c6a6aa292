"""The short way of a call on a CPU that autograd records: from a module, a cell or a function to
the layers at once.

A call that does not fit takes the long way, which does it otherwise or says what is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import autograd, dispatch, stack
from .call import Call, Stack
from .dispatch import cpu
from .features import Asked
from .restart import Returned
from .table import CELLS, cell_named
from .torch_private import is_any_autocast_enabled

PLAIN = (torch.nn.Parameter, Tensor)  # classes that change no operation
# What a call raises that does not fit.
_MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def _takes(input: Tensor) -> bool:
    """Whether the kernels compute a call with this input, for which `direct` is open, in its own
    dtype."""
    return input.is_cpu and input.dtype is not torch.float16 and not is_any_autocast_enabled()


def run(
    call: tuple, parameters: dict | None, form: tuple, widths: tuple[int, int], asked: Asked | None
) -> Returned | None:
    """(output, h_n, c_n, States or None) of a stack of layers, or None.

    Args:
        call: the first fields of a `Call`. Initial states may be None; with `parameters`, the
            weights are their names.
        form: number of layers, directions D, dropout between them, `batch_first`.
        widths: H and P, for initial states that are None.
    """
    input, batch_sizes, h0, c0, weights, cell, names = call
    if not _takes(input) or (asked is not None and asked.reset_state is not None):
        return None
    layers, directions, _, batch_first = form
    try:
        if parameters is not None:
            weights = [parameters[name] for name in weights]
        for each in weights:
            if type(each) not in PLAIN:
                return None
        if h0 is None:
            batch = input.size(0 if batch_first else 1) if batch_sizes is None else batch_sizes[0]
            planes, (hidden, width) = layers * directions, widths
            h0 = input.new_zeros(planes, batch, width)
            if cell == "lstm":
                c0 = h0 if width == hidden else input.new_zeros(planes, batch, hidden)
            elif cell not in CELLS and (kept := cell_named(cell).own):
                c0 = input.new_zeros(planes, batch, kept * hidden)
        elif type(h0) not in PLAIN or (c0 is not None and type(c0) not in PLAIN):
            return None
        if not (input.size(-1) and h0.size(-1)):
            return None
        if layers == 1 and asked is None:
            transposed = batch_first and batch_sizes is None
            input = input.transpose(0, 1) if transposed else input
            call = Call(input, batch_sizes, h0, c0, weights, cell, names)
            if not call.attached():  # which checks that dtypes and devices are alike
                return None
            call = cpu.asked(call) if cpu.asks else call
            output, h_n, c_n, *_ = autograd.layer(cpu, False, call)
            return output.transpose(0, 1) if transposed else output, h_n, c_n, None
        whole = Stack(Call(input, batch_sizes, h0, c0, weights, cell, names), *form)
        whole = whole if asked is None else asked.of(whole)
        return stack.run_on(cpu, whole, whole.states and whole.traced)
    except _MISFITS:
        return None


def step(call: tuple, parameters: dict, hidden_size: int) -> tuple[Tensor, ...] | None:
    """The states after one step of a cell, (h',) or (h', c'), or None; `call` as of `run`, in which
    nothing has a time."""
    input, _, h0, c0, names, cell, form = call
    if not _takes(input):
        return None
    try:
        weights = [parameters[name] for name in names]
        if h0 is None:
            h0 = input.new_zeros(input.size(0), hidden_size)
            c0 = h0 if cell == "lstm" else None
        for each in (h0, *weights) if c0 is None else (h0, c0, *weights):
            if type(each) not in PLAIN:
                return None
        if not (input.size(-1) and h0.size(-1)):
            return None
        call = Call(input, None, h0, c0, weights, cell, form)
        if dispatch.takes_torch_step(call) or not call.attached():
            return None
        h, c = autograd.step(cpu, cpu.asked(call) if cpu.asks else call)
    except _MISFITS:
        return None
    return (h,) if c is None else (h, c)
