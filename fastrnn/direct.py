"""The short ways: past the dispatcher where nothing wants to see an op.

A layer of one time step takes less time than the dispatcher and the Python above it. A call on a
CPU that records nothing needs neither and goes from the module to the kernels at once. On a GPU the
ops are Python themselves and need no dispatcher to be found. All other calls take the long way,
which can do everything and has the error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, is_grad_enabled
from torch.nn import Parameter

from . import dispatch, gpu
from .torch_private import is_any_autocast_enabled, unseen

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _open() -> object | None:
    """`fastrnn._C.Direct` of torch's classes, or None without kernels or without DLPack."""
    try:
        from . import _C

        return _C.Direct(Tensor, Parameter)
    except (ImportError, AttributeError, ValueError):
        return None


_direct = _open()


def open_to(input: Tensor) -> bool:
    """Whether a call with this input may go from the module to the kernels for the CPU."""
    return not (
        is_grad_enabled()
        or _direct is None
        or type(input) is not Tensor
        or input.dtype not in _DTYPES
        or gpu.on_gpu(input)
        or is_any_autocast_enabled()
        or not unseen()
        or not dispatch.on_kernels()
    )


def op(name: str, input: Tensor) -> Callable:
    """The op, or in a call with this input on a GPU the function behind it, where that may be."""
    if dispatch.in_python(input) and type(input) in (Tensor, Parameter) and unseen():
        return dispatch.ON_LOOPS[name]
    return getattr(torch.ops.fastrnn, name).default


def stack(
    module: torch.nn.RNNBase, input: Tensor, hx, batch_sizes: Tensor | None = None
) -> tuple | None:
    """What `module(input, hx)` returns in eval mode, or None if that takes the long way.

    Args:
        input: (T, N, input_size), (N, T, input_size) if the module is `batch_first`, or the data
            (rows, input_size) of a PackedSequence with its `batch_sizes`.
        hx: None, or the initial states in the form that the module takes for such input.
    """
    if not open_to(input) or (module.training and module.dropout and module.num_layers > 1):
        return None
    mode = module.mode
    transposed = module.batch_first and batch_sizes is None
    if transposed:
        input = input.transpose(0, 1)
    directions = 2 if module.bidirectional else 1
    planes, hidden = module.num_layers * directions, module.hidden_size
    width = module.proj_size or hidden
    if batch_sizes is None:
        steps, batch, _ = input.shape
        output = input.new_empty(steps, batch, directions * width)
    else:
        batch = int(batch_sizes[0]) if len(batch_sizes) else 0
        output = input.new_empty(input.size(0), directions * width)
    h0, c0, c_n = hx, None, None
    if mode == "LSTM":
        if hx is not None:
            if len(hx) != 2:
                return None
            h0, c0 = hx
        c_n = input.new_empty(planes, batch, hidden)
    h_n = input.new_empty(planes, batch, width)
    if not _direct.run(
        mode.lower(), input, batch_sizes, h0, c0, module._parameters, module._flat_weights_names,
        output, h_n, c_n,
    ):  # fmt: skip
        return None
    if transposed:
        output = output.transpose(0, 1)
    return output, h_n if c_n is None else (h_n, c_n)


def step(
    module: torch.nn.RNNCellBase, cell: str, input: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, ...] | None:
    """The states after one step of `cell`, (h',) or (h', c'), or None as from `stack`.

    Args:
        input: (N, input_size).
        states: None, or h, and c of an LSTM, each (N, H).
    """
    if not open_to(input):
        return None
    h = input.new_empty(input.shape[0], module.hidden_size)
    c = torch.empty_like(h) if cell == "lstm" else None
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    names = _CELL_WEIGHTS if module.bias else _CELL_WEIGHTS[:2]
    if not _direct.run(cell, input, None, h0, c0, module._parameters, names, h, h, c):
        return None
    return (h,) if c is None else (h, c)
