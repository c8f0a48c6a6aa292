"""Rows that begin anew from states that the user gives, in the middle of a call.

A part of a row goes from one reset to the next. It depends on no other part, because the user gives
the state that it starts from. So the parts become the rows of a packed batch, which every backend
takes. The results are then put back into the places of the parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .call import Call, Stack
from .checks import check_lengths
from .features import States
from .torch_private import are_transforms_active
from .trees import map_tensors

Returned = tuple[Tensor, Tensor, Tensor | None, States | None]


def run(stack: Stack, layers: Callable[[Stack], Returned]) -> Returned:
    """What `layers(stack)` gives for a stack with `reset_state`; `layers` need not know that.

    It reads the values of `reset` to find the parts, and waits for them on a GPU. Compiled graphs
    and transforms cannot read values: there it goes one step at a time, which is slow.
    """
    call, every, time = stack.call, stack.call.detach_every, 1 if stack.transposed else 0
    T = call.input.size(time)
    call.check_alike()
    check_lengths(call.lengths, T)
    unread = torch.compiler.is_compiling() or are_transforms_active() or call.input.is_meta
    length = 1 if unread else every or T or 1
    state = _state(call)
    stack = stack._replace(reset_state=tuple(each.to(call.h0.dtype) for each in stack.reset_state))
    pieces = []
    for start in range(0, max(T, 1), length):
        if every and start and start % every == 0:
            state = tuple(_detached(each, call.lengths, start) for each in state)
        piece = _piece(stack, start, min(length, T - start), state)
        results = layers(piece) if piece.reset_state is None else _in_parts(piece, layers)
        pieces.append(results)
        state = results[1 : 1 + len(state)]
    if len(pieces) == 1:
        return pieces[0]
    output = torch.cat([each[0] for each in pieces], time)
    return output, *pieces[-1][1:3], _joined([each[3] for each in pieces], time)


def _detached(state: Tensor, lengths: Tensor | None, start: int) -> Tensor:
    """No gradient goes to rows that go on at `start`."""
    if lengths is None:
        return state.detach()
    return torch.where((lengths > start).view(1, -1, 1), state.detach(), state)


def _joined(states: list[States | None], time: int) -> States | None:
    if states[0] is None:
        return None

    def cat(kind: list[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
        if kind[0] is None:
            return None
        return tuple(torch.cat(of_layer, time) for of_layer in zip(*kind, strict=True))

    return States(*map(cat, zip(*states, strict=True)))


def _state(call: Call) -> tuple[Tensor, ...]:
    return (call.h0,) if call.c0 is None else (call.h0, call.c0)


def _with_state(call: Call, state: tuple[Tensor, ...]) -> Call:
    h0, *c0 = state
    return call._replace(h0=h0, c0=c0[0] if c0 else None)


def _piece(stack: Stack, start: int, length: int, state: tuple[Tensor, ...]) -> Stack:
    """The stack of so many steps, from `state` or where the first of them resets it."""
    call, given = stack.call, stack.reset_state
    input = call.input.narrow(1 if stack.transposed else 0, start, length)
    weights = _by_row(call, lambda each: each.narrow(0, start, length))
    call = _with_state(call, state)._replace(input=input, detach_every=0, weights=weights)
    if call.lengths is not None:
        call = call._replace(lengths=(call.lengths - start).clamp(0, length))
    if length == 0:
        return stack._replace(call=call._replace(reset=None), reset_state=None)
    reset = call.reset.narrow(0, start, length)
    given = tuple(each.narrow(0, start, length) if each.dim() == 4 else each for each in given)
    begins = reset[0] if call.lengths is None else reset[0] & (call.lengths > 0)
    state = tuple(
        torch.where(begins.view(1, -1, 1), new[0] if new.dim() == 4 else new, old)
        for new, old in zip(given, state, strict=True)
    )
    call = _with_state(call, state)
    if length == 1:
        return stack._replace(call=call._replace(reset=None), reset_state=None)
    return stack._replace(call=call._replace(reset=reset), reset_state=given)


def _by_row(call: Call, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The weights, with those changed that have numbers for each row, (T, N, ...). These are the
    inputs of a cell that is a function, and one tensor serves all layers."""
    changed = {id(w): change(w) for w in call.weights if w.dim() == 3}
    return [changed.get(id(w), w) for w in call.weights]


class _Parts(NamedTuple):
    """The parts of all rows, the longest first, and the packed batch that they are."""

    row: Tensor  # of each part,
    start: Tensor  # and its first step
    batch_sizes: Tensor
    rows: Tensor  # which of the T*N rows of the input lies at each place of the batch,
    places: Tensor  # and where each row lies; 0 where it is in no part
    last: Tensor  # (N,), the last part of each row; 0 if it has none


def _cut(starts: Tensor, ends: Tensor, time_first: bool) -> _Parts:
    """starts: (T, N) bool; ends: (N,), where rows end. Rows of the input are in (T, N) order if
    `time_first`, else in (N, T) order. All on the CPU.
    """
    T, N = starts.shape
    arange = functools.partial(torch.arange, device=starts.device)
    starts = starts & (arange(T).unsqueeze(1) < ends)
    row, start = starts.t().nonzero().unbind(1)
    end = ends[row]
    end[:-1] = torch.where(row[1:] == row[:-1], start[1:], end[:-1])
    sizes = end - start
    order = sizes.argsort(descending=True, stable=True)
    ends_row = torch.ones_like(row, dtype=torch.bool)
    ends_row[:-1] = row[1:] != row[:-1]
    place = torch.empty_like(order)
    place[order] = arange(len(order))
    last = order.new_zeros(N)
    last[row[ends_row]] = place[ends_row]
    row, start = row[order], start[order]
    shorter = sizes.bincount(minlength=1).cumsum(0)[:-1]
    batch_sizes = len(order) - shorter
    step = arange(len(batch_sizes)).repeat_interleave(batch_sizes)
    part = arange(len(step)) - (batch_sizes.cumsum(0) - batch_sizes)[step]
    t, n = start[part] + step, row[part]
    rows = t * N + n if time_first else n * T + t
    places = order.new_zeros(T * N)
    places[rows] = arange(len(rows))
    return _Parts(row, start, batch_sizes, rows, places, last)


def _in_parts(stack: Stack, layers: Callable[[Stack], Returned]) -> Returned:
    """`run` of a stack whose h0 and c0 already have the resets of the first step."""
    call, lengths, time_first = stack.call, stack.call.lengths, not stack.transposed
    T, N = call.reset.shape
    starts = call.reset.cpu().clone()
    starts[0] = True
    ends = torch.full((N,), T, device="cpu") if lengths is None else lengths.cpu().clamp(0, T)
    if not ends.any():
        call = call._replace(reset=None)
        return layers(stack._replace(call=call, reset_state=None))
    parts = _cut(starts, ends, time_first)
    row, start, rows, places, last = (
        each.to(call.input.device)
        for each in (parts.row, parts.start, parts.rows, parts.places, parts.last)
    )
    first = (start == 0).view(1, -1, 1)
    state = tuple(
        torch.where(first, old.index_select(1, row), _at(new, start, row))
        for old, new in zip(_state(call), stack.reset_state, strict=True)
    )
    by_time = rows if time_first else rows % T * N + rows // T
    packed = _with_state(call, state)._replace(
        weights=_by_row(call, lambda each: each.flatten(0, 1).index_select(0, by_time)),
        input=call.input.flatten(0, 1).index_select(0, rows),
        batch_sizes=parts.batch_sizes,
        reset=None,
        lengths=None,
    )
    output, h_n, c_n, states = layers(
        stack._replace(call=packed, batch_first=False, reset_state=None)
    )
    live = moved = None
    if lengths is not None:
        live = torch.arange(T, device=lengths.device).unsqueeze(1) < lengths
        live = (live if time_first else live.t()).flatten()
        moved = (lengths > 0).view(1, -1, 1)

    def back(of_rows: Tensor) -> Tensor:
        laid = of_rows.index_select(0, places)
        if live is not None:
            laid = torch.where(live.view(-1, *[1] * (laid.dim() - 1)), laid, 0)
        return laid.unflatten(0, (T, N) if time_first else (N, T))

    def final(of_parts: Tensor, old: Tensor) -> Tensor:
        of_rows = of_parts.index_select(1, last)
        return of_rows if moved is None else torch.where(moved, of_rows, old)

    c_n = c_n if call.c0 is None else final(c_n, call.c0)
    return back(output), final(h_n, call.h0), c_n, map_tensors(back, states)


def _at(given: Tensor, start: Tensor, row: Tensor) -> Tensor:
    """What each part begins from: (layers*D, parts, width)."""
    if given.dim() == 3:
        return given.index_select(1, row)
    return given[start, :, row].transpose(0, 1)
