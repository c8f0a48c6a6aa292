"""The short way of a call on a CPU that records nothing: from the module to the kernels at once.

A layer of one time step takes less time than the dispatcher and the Python above it. All other
calls take the long way, which can do everything and has the error messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, is_grad_enabled
from torch.nn import Parameter

from . import dispatch
from .dispatch import gpu
from .features import Asked, states_of
from .results import Results
from .table import CELLS, weight_names
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


def stack(
    module: torch.nn.RNNBase,
    input: Tensor,
    hx,
    batch_sizes: Tensor | None = None,
    asked: Asked | None = None,
) -> tuple | None:
    """What `module(input, hx)` returns in eval mode, or None if that takes the long way.

    Args:
        input: (T, N, input_size), (N, T, input_size) if the module is `batch_first`, or the data
            (rows, input_size) of a PackedSequence with its `batch_sizes`.
        hx: None, or the initial states in the form that the module takes for such input.
        asked: features of the call, for input that is not packed.
    """
    if not open_to(input) or (module.training and module.dropout and module.num_layers > 1):
        return None
    cell, layers, batch_first = module.mode.lower(), module.num_layers, module.batch_first
    directions, hidden = 2 if module.bidirectional else 1, module.hidden_size
    width = module.proj_size or hidden
    transposed = batch_first and batch_sizes is None
    if transposed:
        input = input.transpose(0, 1)
    if not input.is_contiguous():
        input = input.contiguous()
    reset = lengths = None
    if asked is not None:
        if batch_sizes is not None or asked.reset_state is not None:
            return None
        if type(asked.lengths) not in (type(None), Tensor):
            return None
        asked.limits()  # which have nothing to limit, but may be wrong
        reset, lengths = asked.reset, asked.lengths
        if reset is not None:
            if type(reset) is not Tensor or reset.dim() != 2:
                return None
            reset = (reset.t() if transposed else reset).contiguous()
    new_empty = input.new_empty
    if batch_sizes is None:
        steps, batch, _ = input.shape
        shape = steps, batch, directions * width
    else:
        batch = int(batch_sizes[0]) if len(batch_sizes) else 0
        shape = input.size(0), directions * width
    h0, c0, c_n = hx, None, None
    if cell == "lstm":
        if hx is not None:
            if len(hx) != 2:
                return None
            h0, c0 = hx
        c_n = new_empty(layers * directions, batch, hidden)
    h_n = new_empty(layers * directions, batch, width)
    ys, saved, states = (new_empty(shape),), (), False
    if asked is not None and (asked.return_states or asked.return_gates):
        states, ys = True, [new_empty(shape) for _ in range(layers)]
        saved = _room_for_states(new_empty, cell, layers, (directions, shape[0] * batch), module)
    names = weight_names(module.bias, module.proj_size > 0)
    if not _direct.run(
        cell, names, directions, input, batch_sizes, h0, c0, module._parameters,
        module._flat_weights_names, reset, lengths, ys, h_n, c_n, saved,
    ):  # fmt: skip
        return None
    output = ys[-1].transpose(0, 1) if transposed else ys[-1]
    state = h_n if c_n is None else (h_n, c_n)
    if not states:
        return output, state
    results = [Results(y, h_n, c_n, *saved[3 * k : 3 * k + 3]) for k, y in enumerate(ys)]
    of = states_of(CELLS[cell], directions, batch_first, asked.return_gates, results)
    return output, state, of


def _room_for_states(new_empty, cell: str, layers: int, rows: tuple[int, int], module) -> list:
    """Gates, cells and hidden of each layer, for the kernels to write; rows: (D, rows)."""
    kind, hidden = CELLS[cell], module.hidden_size
    room = []
    for _ in range(layers):
        room += [
            new_empty(*rows, kind.saved, hidden),
            new_empty((*rows, hidden) if kind.has_c else 0),
            new_empty((*rows, hidden) if module.proj_size else 0),
        ]
    return room


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
    if not _direct.run(
        cell, weight_names(module.bias, False), 1, input, None, h0, c0, module._parameters, names,
        None, None, (h,), h, c, (),
    ):  # fmt: skip
        return None
    return (h,) if c is None else (h, c)
