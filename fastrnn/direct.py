"""The short way of a call on a CPU that records nothing: from the module to the kernels at once.

A layer of one time step takes less time than the dispatcher and the Python above it. All other
calls take the long way, which can do everything and has the error messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import autocast, dispatch
from .call import Call
from .dispatch import cpu, gpu
from .features import Asked, states_of
from .results import Results, room_to_save
from .table import CELLS, RNNS, cell_named, weight_names
from .torch_private import is_any_autocast_enabled, unseen

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_PLAIN = (torch.nn.Parameter, Tensor)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # the last for one step


def _records(module: torch.nn.Module, input: Tensor, hx) -> bool:
    """Whether autograd may record a call. Of a frozen module it does not, whatever the mode.

    Weights of a class of their own may answer anything, and count as recorded.
    """
    if not torch.is_grad_enabled():
        return False
    for each in module._parameters.values():
        if each is not None and (type(each) not in _PLAIN or each.requires_grad):
            return True
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    return any(getattr(each, "requires_grad", False) for each in (input, *states))


def open_to(input: Tensor) -> bool:
    """Whether a call with this input, which records no gradients, may go to the kernels at once."""
    return (
        type(input) is Tensor
        and not gpu.on_gpu(input)
        and input.dtype in _DTYPES
        and input.layout is torch.strided
        and not input.is_nested
        and cpu.direct is not None
        and unseen()
        and dispatch.on_kernels()
    )


def stack(
    module: torch.nn.RNNBase,
    input: Tensor,
    hx,
    batch_sizes: Tensor | None = None,
    asked: Asked | None = None,
) -> tuple | None:
    """What `module(input, hx)` returns, or None if that takes the long way, as with gradients.

    Args:
        input: (T, N, input_size), (N, T, input_size) if the module is `batch_first`, or the data
            (rows, input_size) of a PackedSequence with its `batch_sizes`.
        hx: None, or the initial states in the form that the module takes for such input.
        asked: features of the call, for input that is not packed.
    """
    if _records(module, input, hx) or not open_to(input):
        return None
    layers, batch_first = module.num_layers, module.batch_first
    if layers > 1 and module.training and module.dropout:
        return None
    try:
        cell = module._cell_ or RNNS[module.mode]
    except (KeyError, TypeError):
        return None
    hidden, projection = module.hidden_size, module.proj_size
    directions, width = 2 if module.bidirectional else 1, projection or hidden
    transposed = batch_first and batch_sizes is None
    if transposed:
        input = input.transpose(0, 1)
    if not input.is_contiguous():
        input = input.contiguous()
    reset = lengths = None
    if asked is not None:
        if batch_sizes is not None:
            return None
        if asked.reset_state is not None:
            if module.bidirectional or cell not in CELLS:  # whose states have a form of their own
                return None
            hx = _begun(asked, hx, input, transposed)
            if hx is None:
                return None
            asked = asked._replace(reset=None, reset_state=None)
        if type(asked.lengths) not in (type(None), Tensor):
            return None
        if not (asked.detach_every is asked.grad_clip is None):
            asked.limits()  # which have nothing to limit, but may be wrong
        reset, lengths = asked.reset, asked.lengths
        if reset is not None:
            if type(reset) is not Tensor or reset.dim() != 2 or reset.layout is not torch.strided:
                return None
            reset = reset.t() if transposed else reset
            if not reset.is_contiguous():
                reset = reset.contiguous()
    new_empty = input.new_empty
    if batch_sizes is None:
        steps, batch, _ = input.shape
        if steps > 1 and input.dtype is torch.float16:
            return None
        y = new_empty(steps, batch, directions * width)
    else:
        steps = batch_sizes.size(0)
        batch = int(batch_sizes[0]) if steps else 0
        y = new_empty(input.size(0), directions * width)
    planes, h0, c0, c_n = layers * directions, hx, None, None
    if cell not in CELLS:
        if not module._as_they_are or (asked is not None and asked.inputs):
            return None
        names, kept = module._names, cell_named(cell).own
        if hx is not None:
            h0, c0 = module._parts_(hx)
        if kept:
            c_n = new_empty(planes, batch, kept * hidden)
    else:
        names = weight_names(module.bias, projection > 0)
        if cell == "lstm":
            if hx is not None:
                if len(hx) != 2:
                    return None
                h0, c0 = hx
            c_n = new_empty(planes, batch, hidden)
    h_n = new_empty(planes, batch, width)
    ys, saved = (y,), ()
    states = asked is not None and (asked.return_states or asked.return_gates)
    if states:
        form = (
            cell_named(cell),
            new_empty,
            (directions, steps * batch),
            hidden,
            projection > 0,
        )
        for _ in range(layers - 1):
            ys = (y.new_empty(y.shape), *ys)
        for _ in range(layers):
            saved += room_to_save(*form)
    weights = module._flat_weights_names
    call = input, batch_sizes, h0, c0, weights, cell, names, reset, lengths
    dtypes = None
    if is_any_autocast_enabled() and autocast.is_on(input):
        like = Call(input, batch_sizes, h_n, c_n, (), cell, names)
        dtypes = autocast.returned_of_few_rows(like, step=False)
        if dtypes is None or states:
            return None
    if cpu.asks and cpu.is_large(steps, batch, width):
        call += 0, 0.0, cpu.allowed()
    if not cpu.direct.run(call, directions, module._parameters, ys, h_n, c_n, saved):
        return None
    if dtypes is not None:
        y, h_n, c_n = _cast(dtypes, y, h_n, c_n)
    output = y.transpose(0, 1) if transposed else y
    state = h_n if c_n is None else module._joined_(h_n, c_n)
    if not states:
        return output, state
    results = [Results(y, h_n, c_n, *saved[3 * k : 3 * k + 3]) for k, y in enumerate(ys)]
    of = states_of(cell_named(cell), directions, batch_first, asked.return_gates, results)
    return output, state, of


def _begun(asked: Asked, hx, input: Tensor, transposed: bool):
    """The states with which a call of one step begins where some rows begin anew from
    `reset_state`; None of a call of several, with gradients, or if something does not fit."""
    reset, steps, batch = asked.reset, input.size(0), input.size(1)
    if steps != 1 or asked.lengths is not None or torch.is_grad_enabled():
        return None
    several = isinstance(hx, tuple)
    old, new = (hx, asked.reset_state) if several else ((hx,), (asked.reset_state,))
    if not isinstance(new, tuple) or len(new) != len(old):
        return None
    for each in (reset, *old, *new):
        if type(each) is not Tensor or not each.is_cpu or each.layout is not torch.strided:
            return None
    if reset.dtype is not torch.bool or reset.shape != ((batch, 1) if transposed else (1, batch)):
        return None
    for a, b in zip(old, new, strict=True):
        if a.shape != b.shape or a.shape[1:2] != (batch,) or a.dtype is not b.dtype:
            return None
    begins = reset.view(1, batch, 1)
    begun = tuple([torch.where(begins, b, a) for a, b in zip(old, new, strict=True)])
    return begun if several else begun[0]


def step(
    module: torch.nn.RNNCellBase, cell: str, input: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, ...] | None:
    """The states after one step of `cell`, (h',) or (h', c'), or None as from `stack`.

    Args:
        input: (N, input_size).
        states: None, or h, and c of an LSTM, each (N, H).
    """
    if _records(module, input, states) or not open_to(input):
        return None
    h = input.new_empty(input.shape[0], module.hidden_size)
    c = torch.empty_like(h) if cell == "lstm" else None
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    parameters = module._parameters
    bare = parameters.get("bias_ih", ()) is parameters.get("bias_hh", ()) is None
    names = _CELL_WEIGHTS[:2] if bare else _CELL_WEIGHTS
    form = weight_names(not bare, False)
    call = input, None, h0, c0, names, cell, form, None, None
    dtypes = None
    if is_any_autocast_enabled() and autocast.is_on(input):
        dtypes = autocast.returned_of_few_rows(Call(input, None, h, c, (), cell, form), step=True)
        if dtypes is None:
            return None
    if cpu.asks and cpu.is_large(1, *h.shape):
        call += 0, 0.0, cpu.allowed()
    if not cpu.direct.run(call, 1, parameters, (h,), h, c, ()):
        return None
    if dtypes is not None:
        _, h, c = _cast(dtypes, None, h, c)
    return (h,) if c is None else (h, c)


def _cast(dtypes: tuple[torch.dtype, torch.dtype], *results: Tensor | None) -> list[Tensor | None]:
    """output, h and c in the dtypes of h and c."""
    h, c = dtypes
    return [r if r is None else r.to(dtype) for r, dtype in zip(results, (h, h, c), strict=True)]
