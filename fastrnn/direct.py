"""The short way of a call on a CPU: from a module, a cell or a function to the kernels at once. A
call that autograd records goes on in `recorded`.

A layer of one time step takes less time than the dispatcher and the Python above it. All other
calls take the long way, which can do everything and has the error messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_not
from types import NoneType

import torch
from torch import Tensor

from . import autocast, dispatch, recorded
from .call import Call, Stack
from .dispatch import cpu, gpu
from .features import Asked, states_of
from .recorded import PLAIN
from .restart import Returned
from .results import Results, room_to_save
from .table import CELLS, RNNS, cell_named, weight_names
from .torch_private import is_any_autocast_enabled, unseen

_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # the last for one step


def _records(module: torch.nn.Module, input: Tensor, hx) -> bool:
    """Whether autograd may record a call. Of a frozen module it does not, whatever the mode.

    Weights of a class of their own may answer anything, and count as recorded.
    """
    if not torch.is_grad_enabled():
        return False
    for each in module._parameters.values():
        if each is not None and (type(each) not in PLAIN or each.requires_grad):
            return True
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    return any(getattr(each, "requires_grad", False) for each in (input, *states))


def open_to(input: Tensor) -> bool:
    """Whether a call with this input may go to the kernels at once."""
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
    if not open_to(input) or module._has_own_checks_:
        return None
    layers, projection = module.num_layers, module.proj_size
    dropout = module.dropout if layers > 1 and module.training else 0.0
    records = _records(module, input, hx)
    if records:
        if input.size(-1) != module.input_size:
            return None
    elif dropout:
        return None
    names, weights = module._flat_weights_names, module._flat_weights
    parameters = module._parameters
    if len(weights) != len(names) or any(map(is_not, weights, map(parameters.get, names))):
        return None  # the module has to bring its list up to date, or the user changed it
    try:
        cell = module._cell_ or RNNS[module.mode]
    except (KeyError, TypeError):
        return None
    h0, c0 = hx, None
    if cell not in CELLS:
        if not module._as_they_are:
            return None
        if asked is not None and (asked.inputs or asked.reset_state is not None):
            return None
        form = module._names
        if hx is not None:
            try:
                h0, c0 = module._parts_(hx)
            except RuntimeError:  # of states whose sizes differ
                return None
    else:
        form = weight_names(module.bias, projection > 0)
        if cell == "lstm" and hx is not None:
            if len(hx) != 2:
                return None
            h0, c0 = hx
    H, P = module.hidden_size, projection or module.hidden_size
    directions, batch_first = 2 if module.bidirectional else 1, module.batch_first
    if records:
        call = input, batch_sizes, h0, c0, weights, cell, form
        of_stack = layers, directions, dropout, batch_first
        results = recorded.of_module(call, of_stack, (H, P), asked)
    else:
        call = input, batch_sizes, h0, c0, names, cell, form
        results = _run(call, parameters, (layers, directions, H, P, batch_first), asked)
    if results is None:
        return None
    output, h_n, c_n, states = results
    state = h_n if c_n is None else module._joined_(h_n, c_n)
    return (output, state) if states is None else (output, state, states)


def run(stack: Stack, asked: Asked | None) -> Returned | None:
    """What `stack.run` returns of a stack without features and those that are `asked` for, or
    None if that takes the long way."""
    input, batch_sizes, h0, c0, weights, cell, names = call = stack.call[:7]
    if h0 is None or not open_to(input):
        return None
    batch, P = h0.shape[1:]
    if batch_sizes is not None and (
        type(batch_sizes) is not Tensor
        or not batch_sizes.is_cpu
        or batch_sizes[:1].tolist() != [batch]
    ):
        return None
    if torch.is_grad_enabled():
        for each in (input, h0, c0, *weights):
            if each is not None and (type(each) not in PLAIN or each.requires_grad):
                form = stack.layers, stack.directions, stack.dropout, stack.batch_first
                return recorded.run(stack.call, form, asked)
    if stack.layers > 1 and stack.dropout:
        return None
    H = P if c0 is None else c0.size(2)
    return _run(call, None, (stack.layers, stack.directions, H, P, stack.batch_first), asked)


def _run(call: tuple, parameters: dict | None, form: tuple, asked: Asked | None):
    """What both share: (output, h_n, c_n, States or None), or None.

    Args:
        call: the first fields of a `Call`. Initial states may be None; with `parameters`, the
            weights are their names.
        form: number of layers, directions D, hidden size H, width P of h, `batch_first`.
    """
    input, batch_sizes, h0, c0, weights, cell, names = call
    layers, directions, hidden, width, batch_first = form
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
            begun = None if directions == 2 else _begun(asked, h0, c0, input, transposed)
            if begun is None:
                return None
            h0, c0 = begun
            asked = asked._replace(reset=None, reset_state=None)
        if type(asked.lengths) not in (NoneType, Tensor):
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
    planes = layers * directions
    h_n = new_empty(planes, batch, width)
    c_n = None
    if cell == "lstm":
        c_n = new_empty(planes, batch, hidden)
    elif cell not in CELLS and (kept := cell_named(cell).own):
        c_n = new_empty(planes, batch, kept * hidden)
    ys, saved = (y,), ()
    traced = asked is not None and (asked.return_states or asked.return_gates)
    if traced:
        room = cell_named(cell), new_empty, (directions, steps * batch), hidden, "w_hr" in names
        for _ in range(layers - 1):
            ys = (y.new_empty(y.shape), *ys)
        for _ in range(layers):
            saved += room_to_save(*room)
    call = input, batch_sizes, h0, c0, weights, cell, names, reset, lengths
    dtypes = None
    if is_any_autocast_enabled() and autocast.is_on(input):
        like = Call(input, batch_sizes, h_n, c_n, (), cell, names)
        dtypes = autocast.returned_of_few_rows(like, step=False)
        if dtypes is None or traced:
            return None
    if cpu.asks and cpu.is_large(steps, batch, width):
        call += 0, 0.0, cpu.allowed()
    if not cpu.direct.run(call, directions, parameters, ys, h_n, c_n, saved):
        return None
    states = None
    if traced:
        results = [Results(y, h_n, c_n, *saved[3 * k : 3 * k + 3]) for k, y in enumerate(ys)]
        states = states_of(cell_named(cell), directions, batch_first, asked.return_gates, results)
    elif dtypes is not None:
        y, h_n, c_n = _cast(dtypes, y, h_n, c_n)
    return y.transpose(0, 1) if transposed else y, h_n, c_n, states


def _begun(asked: Asked, h0, c0, input: Tensor, transposed: bool) -> tuple | None:
    """The states (h0, c0) with which a call of one step begins where some rows begin anew from
    `reset_state`; None of a call of several, with gradients, or if something does not fit."""
    reset, steps, batch = asked.reset, input.size(0), input.size(1)
    if steps != 1 or asked.lengths is not None or torch.is_grad_enabled():
        return None
    old, new = ((h0,) if c0 is None else (h0, c0)), asked.reset_state
    new = (new,) if c0 is None else new
    if type(new) is not tuple or len(new) != len(old):
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
    h, *c = [torch.where(begins, b, a) for a, b in zip(old, new, strict=True)]
    return h, c[0] if c else None


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
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    parameters = module._parameters
    bare = parameters.get("bias_ih", ()) is parameters.get("bias_hh", ()) is None
    names = _CELL_WEIGHTS[:2] if bare else _CELL_WEIGHTS
    form = weight_names(not bare, False)
    if _records(module, input, states):
        call = input, None, h0, c0, names, cell, form
        return recorded.step(call, parameters, module.hidden_size)
    h = input.new_empty(input.shape[0], module.hidden_size)
    c = torch.empty_like(h) if cell == "lstm" else None
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
