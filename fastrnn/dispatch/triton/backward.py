"""The backward loop over time of one layer, the mirror of `forward.py`: same words, schedules and
matrices.

Where a step forward needs h of the step before, a step backward needs du, the gradient of the
hidden pre-activations, of the step after; that is all that the programs of a group exchange.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    CELL_STAGE,
    FIRST_STAGE,
    PROJECTION,
    SECOND_PRODUCT,
    STATE_PRODUCT,
    first_row,
    hold,
    load,
    meet,
    parameters,
    place,
    product,
    span,
    step,
    store,
    total,
    widen,
)


@triton.jit
def _attached(t, other, detach_every):
    """Whether no multiple of detach_every separates the neighbouring steps t and other."""
    return (detach_every == 0) | (tl.maximum(t, other) % tl.maximum(detach_every, 1) != 0)


@triton.jit
def _clip(x, limit):
    """x clamped to [-limit, limit]; a NaN stays, as in torch."""
    return tl.where(x < -limit, -limit, tl.where(x > limit, limit, x))


@triton.jit
def _either(p, at, mask, first_p, first_at, first_mask):
    """A state before a step: of the step before, or the initial one, or zero."""
    value = tl.load(p + at, mask=mask, other=0.0)
    return value + tl.load(first_p + first_at, mask=first_mask, other=0.0)


@triton.jit
def _given(
    dy, d_cells, h0, c0, y, gates, cells, hidden, reset, offsets, t, active, row, T, N, rows, d, n,
    length, j, S: tl.constexpr, OWN: tl.constexpr, OLD: tl.constexpr, NEW: tl.constexpr,
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """All that a step is given and the steps after it do not make: (dy, saved, old, new, d_own),
    where old and new are all states before and after it, and d_own has gradients of the planes of
    c. What the cell does not need is zero."""
    mask = active[:, None] & (j < H)[None, :]
    zero = tl.zeros(mask.shape, y.dtype.element_ty)
    dy_t = zero
    at_row = (d.to(tl.int64) * rows + row)[:, None]
    saved = load(gates + at_row * (S * H) + j[None, :], mask, S, H)
    if dy is not None:
        at_y = (row * D + d)[:, None] * P + j[None, :]
        dy_t = tl.load(dy + at_y, mask=active[:, None] & (j < P)[None, :], other=0.0)

    before = active
    if (OLD != 0) and (reset is not None):
        at_t = reset + t.to(tl.int64) * N + n
        before = (tl.load(at_t, mask=active, other=1) == 0) & active
    initial = t == tl.where(d == 0, 0, length - 1)
    first = (before & initial)[:, None] & (j < H)[None, :]
    later = (before & (initial == 0))[:, None] & (j < H)[None, :]
    row_before = first_row(tl.where(d == 0, t - 1, t + 1), T, N, offsets) + n
    at_row_before = (d.to(tl.int64) * rows + row_before)[:, None]
    state = (d * N + n)[:, None]
    at = state * H + j[None, :]
    h = zero
    h_prev = zero
    if hidden is None:
        if NEW & 1:
            h = tl.load(y + (row * D + d)[:, None] * P + j[None, :], mask=mask, other=0.0)
        if OLD & 1:
            at_before = (row_before * D + d)[:, None] * P + j[None, :]
            h_prev = _either(y, at_before, later, h0, at, first)
    else:
        if NEW & 1:
            h = tl.load(hidden + at_row * H + j[None, :], mask=mask, other=0.0)
        if OLD & 1:
            h_prev = _either(hidden, at_row_before * H + j[None, :], later, h0, at, first)
    old = (h_prev,)
    new = (h,)
    d_own = ()
    for k in tl.static_range(OWN):
        c = zero
        c_prev = zero
        dc = zero
        plane = k * H + j[None, :]
        if (NEW >> (k + 1)) & 1:
            c = tl.load(cells + at_row * (OWN * H) + plane, mask=mask, other=0.0)
        if (OLD >> (k + 1)) & 1:
            at_before = at_row_before * (OWN * H) + plane
            c_prev = _either(cells, at_before, later, c0, state * (OWN * H) + plane, first)
        if d_cells is not None:
            dc = tl.load(d_cells + at_row * (OWN * H) + plane, mask=mask, other=0.0)
        old = old + (c_prev,)
        new = new + (c,)
        d_own = d_own + (dc,)
    return dy_t, saved, old, new, d_own


@triton.jit
def _store_parameters(
    d_units, d_rows, dp, d, n, row, mask, j, N, rows, KINDS: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """Adds gradients of parameters of units to the sums of their rows; stores those of others."""
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == "u":
            at = d_units + (d * N + n)[:, None] * H + j[None, :]
            store(at, (tl.load(at, mask=mask, other=0.0) + dp[k],), mask, 1, 0)
            d_units += N.to(tl.int64) * (D * H)
        else:
            at = d_rows + (d.to(tl.int64) * rows + row)[:, None] * H + j[None, :]
            store(at, (dp[k],), mask, 1, 0)
            d_rows += rows.to(tl.int64) * (D * H)


@triton.jit(do_not_specialize=["T", "N", "rows", "first", "last", "detach_every", "grad_clip"])
def backward(
    dy,  # [rows, D, P] given gradients, like the three that follow; None: zero
    dh_n,  # [D, N, P]
    d_cells,  # [D, rows, OWN, H]
    d_hidden,  # [D, rows, H]
    d_kept,  # [D, N, planes, H] float32, or None: the gradient of what the last step kept
    #          (cells.py), in the end that of the initial one, without what goes through w_hh
    w_hh,  # [D, U, H, P]
    w_hr,  # [D, P, H] or None
    step_params,  # as in `forward`
    h0,  # [D, N, P]
    c0,  # [D, N, OWN, H] or None
    y,  # [rows, D, P]
    gates,  # [D, rows, S, H]
    cells,  # [D, rows, OWN, H] or None
    hidden,  # [D, rows, H]: h, where y is not what the cell calls h; or None
    dx,  # [rows, D, G, H] gradient of the input part, or None where it equals du
    du,  # [rows, D, U, H] gradient of the hidden part
    d_units,  # [parameters of units, D, N, H] float32 zeros, for their gradients; or None
    d_rows,  # [other parameters, D, rows, H] for theirs, or None
    d_state,  # [rows, D, P] complete gradient of each h of a projected layer, or None
    sums,  # [D, N, 2, H] float32 room, where another launch takes them: for the gradient of h and,
    #        of a second product, for that of v; or None
    lengths, offsets, reset, meetings, lost,  # as in `forward`
    T, N, rows, first, last,
    detach_every,  # no gradient crosses a time that is a multiple of it; 0: all do
    grad_clip,  # if CLIP, limit of the gradient that each step sends to h of the step before
    CELL: tl.constexpr,
    G: tl.constexpr, U: tl.constexpr, S: tl.constexpr,  # these and the next six as in `forward`
    FIRST: tl.constexpr, W: tl.constexpr,
    KEEPS_H: tl.constexpr, OWN: tl.constexpr, OUTPUT: tl.constexpr, KINDS: tl.constexpr,
    OLD: tl.constexpr, NEW: tl.constexpr,  # bit k: whether the cell reads state k before, after
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, UNIT_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,  # as in `forward`
    CLIP: tl.constexpr,
):  # fmt: skip
    MAKES: tl.constexpr = STATE_PRODUCT if w_hr is None else PROJECTION  # the gradient of h
    ELEMENTWISE: tl.constexpr = ((FIRST_STAGE | CELL_STAGE) & STAGES) > 0
    IN_CELL: tl.constexpr = (CELL_STAGE & STAGES) > 0
    group, d, n, length, j = place(T, N, lengths, D, UNIT_TILES, BLOCK_N, BLOCK_U)
    first, last = span(T, d, length, first, last, PERSISTENT)
    state = d * N + n
    unit = (j < H)[None, :]
    at = state[:, None] * ((KEEPS_H + OWN) * H) + j[None, :]
    w_hh += d.to(tl.int64) * (U * H * P)
    held = hold(w_hh, j, U - W, H, P, False, BLOCK_K, PERSISTENT)
    w_w = w_hh + (U - W) * H * P
    held_w = hold(w_w, j, W, H, P, False, BLOCK_K, PERSISTENT)
    held_hr = ()
    if w_hr is not None:
        w_hr += d.to(tl.int64) * (P * H)
        held_hr = hold(w_hr, j, 1, P, H, False, BLOCK_K, PERSISTENT)
    arrivals = 0

    t, active, row = step(last - 1, T, N, d, n, length, offsets, first < last)
    given = _given(
        dy, d_cells, h0, c0, y, gates, cells, hidden, reset, offsets, t, active, row, T, N, rows, d,
        n, length, j, S, OWN, OLD, NEW, D, H, P,
    )  # fmt: skip

    for q in tl.range(first, last, num_stages=1):
        i = first + last - 1 - q
        dy_t, saved, old, new, d_own = given
        first_step = tl.where(d == 0, 0, length - 1)
        last_step = tl.where(d == 0, length - 1, 0)
        t_after = tl.where(d == 0, t + 1, t - 1)
        t_before = tl.where(d == 0, t - 1, t + 1)
        comes = (t < tl.where(_attached(t, t_after, detach_every), length, 0)) & (t != last_step)
        comes = comes & active
        goes = (t < tl.where(_attached(t, t_before, detach_every), length, 0)) | (t == first_step)
        if reset is not None:
            at_t = reset + t.to(tl.int64) * N + n
            comes = (tl.load(at_t + N, mask=comes, other=1) == 0) & comes
            goes = (tl.load(at_t, mask=active, other=1) == 0) & goes
        mask = active[:, None] & unit
        mask_p = active[:, None] & (j < P)[None, :]

        if STATE_PRODUCT & STAGES:
            row_after = first_row(t_after, T, N, offsets) + n
            dh = tl.zeros((BLOCK_N, BLOCK_U), tl.float32)
            if U > W:
                of_h = product(
                    du + (row_after * D + d) * (U * H), comes, w_hh, held, j, U - W, H, P, False,
                    BLOCK_N, BLOCK_U, BLOCK_K, PERSISTENT, PRECISION,
                )  # fmt: skip
                dh = total(of_h, U - W)
            if KEEPS_H:
                dh += tl.load(d_kept + at, mask=mask, other=0.0)
            if CLIP:
                dh = _clip(dh, grad_clip)
            if OUTPUT == 0:
                dh += dy_t.to(tl.float32)
            if d_hidden is not None:
                at_row = (d.to(tl.int64) * rows + row)[:, None]
                dh += tl.load(d_hidden + at_row * H + j[None, :], mask=mask, other=0.0)
            if dh_n is not None:
                ends = mask_p & (t == last_step)[:, None]
                at_end = state[:, None] * P + j[None, :]
                dh += tl.load(dh_n + at_end, mask=ends, other=0.0).to(tl.float32)
            if w_hr is not None:
                store(d_state + (row * D + d)[:, None] * P + j[None, :], (dh,), mask_p, 1, 0)
        if (w_hr is not None) and (PROJECTION & STAGES):
            if STATE_PRODUCT & STAGES:
                arrivals += UNIT_TILES
                meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
            (dh,) = product(
                d_state + (row * D + d) * P, active, w_hr, held_hr, j, 1, P, H, False, BLOCK_N,
                BLOCK_U, BLOCK_K, PERSISTENT, PRECISION,
            )  # fmt: skip
        at_sums = sums
        if sums is not None:
            at_sums = sums + state[:, None] * (2 * H) + j[None, :]
        if (MAKES & STAGES) and (not IN_CELL):
            store(at_sums, (dh,), mask, 1, 0)
        if ELEMENTWISE and ((MAKES & STAGES) == 0):
            dh = tl.load(at_sums, mask=mask, other=0.0)
        if ELEMENTWISE:
            grads = (dh,)
            for k in tl.static_range(OWN):
                dc = d_own[k].to(tl.float32)
                dc += tl.load(d_kept + at + (KEEPS_H + k) * H, mask=mask, other=0.0)
                if k + 1 == OUTPUT:
                    dc += dy_t.to(tl.float32)
                grads = grads + (dc,)
            p = parameters(step_params, d, row, active, j, rows, KINDS, D, H)
            saved = widen(saved, S)
            old = widen(old, OWN + 1)
            new = widen(new, OWN + 1)
        if W > 0:
            dw = du + (row * D + d) * (U * H) + (U - W) * H
            if FIRST_STAGE & STAGES:
                dw_t = FIRST(saved, old, new, p, grads, unit)
                store(dw[:, None] + j[None, :], dw_t, mask, W, H)
                if SECOND_PRODUCT & STAGES:
                    arrivals += UNIT_TILES
                    meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
            if SECOND_PRODUCT & STAGES:
                of_v = product(
                    dw, active, w_w, held_w, j, W, H, P, False, BLOCK_N, BLOCK_U, BLOCK_K,
                    PERSISTENT, PRECISION,
                )  # fmt: skip
                dv = total(of_v, W)
                if not IN_CELL:
                    store(at_sums + H, (dv,), mask, 1, 0)
            elif IN_CELL:
                dv = tl.load(at_sums + H, mask=mask, other=0.0)
            if IN_CELL:
                grads = grads + (dv,)
        if IN_CELL:
            d_old, dx_t, du_t, dp = CELL(saved, old, new, p, grads, unit)
            for k in tl.static_range(KEEPS_H + OWN):
                sent = tl.where(goes[:, None], d_old[k], 0.0)
                tl.store(d_kept + at + k * H, sent, mask=mask)
            store(du + (row * D + d)[:, None] * (U * H) + j[None, :], du_t, mask, U - W, H)
            if dx is not None:
                store(dx + (row * D + d)[:, None] * (G * H) + j[None, :], dx_t, mask, G, H)
            _store_parameters(d_units, d_rows, dp, d, n, row, mask, j, N, rows, KINDS, D, H)
        if PERSISTENT:
            t, active, row = step(i - 1, T, N, d, n, length, offsets, first < i)
            given = _given(
                dy, d_cells, h0, c0, y, gates, cells, hidden, reset, offsets, t, active, row, T, N,
                rows, d, n, length, j, S, OWN, OLD, NEW, D, H, P,
            )  # fmt: skip
            arrivals += UNIT_TILES
            meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
