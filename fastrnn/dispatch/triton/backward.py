"""The backward loop over time of one layer, the mirror of `forward.py`: same words, schedules and
matrices.

Where a step forward needs h of the step before, a step backward needs du, the gradient of the
hidden pre-activations, of the step after; that is all that the programs of a group exchange.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import first_row, hold, load, meet, place, product, span, step, store, widen


@triton.jit
def _attached(t, other, detach_every):
    """Whether no multiple of detach_every separates the neighbouring steps t and other."""
    return (detach_every == 0) | (tl.maximum(t, other) % tl.maximum(detach_every, 1) != 0)


@triton.jit
def _clip(x, limit):
    """x clamped to [-limit, limit]; a NaN stays, as in torch."""
    x = tl.where(x > limit, limit, x)
    return tl.where(x < -limit, -limit, x)


@triton.jit
def _either(p, at, mask, first_p, first_at, first_mask):
    """A state before a step: of the step before, or the initial one, or zero."""
    value = tl.load(p + at, mask=mask, other=0.0)
    return value + tl.load(first_p + first_at, mask=first_mask, other=0.0)


@triton.jit
def _given(
    dy, d_cells, h0, c0, y, gates, cells, reset, offsets, t, active, row, T, N, rows, d, n, length,
    j, S: tl.constexpr, KEEPS: tl.constexpr, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """All that a step is given and the steps after it do not make: (dy, saved, h_prev, h, c_prev,
    c, dc). What the cell does not need is zero."""
    mask = active[:, None] & (j < H)[None, :]
    zero = tl.zeros(mask.shape, y.dtype.element_ty)
    dy_t = zero
    h_prev = zero
    h = zero
    c_prev = zero
    c = zero
    dc = zero
    at_y = (row * D + d)[:, None] * P + j[None, :]
    at_row = (d.to(tl.int64) * rows + row)[:, None]
    saved = load(gates + at_row * (S * H) + j[None, :], mask, S, H)
    if dy is not None:
        dy_t = tl.load(dy + at_y, mask=active[:, None] & (j < P)[None, :], other=0.0)
    if KEEPS == "":
        h = tl.load(y + at_y, mask=mask, other=0.0)
    if KEEPS == "c":
        c = tl.load(cells + at_row * H + j[None, :], mask=mask, other=0.0)
        if d_cells is not None:
            dc = tl.load(d_cells + at_row * H + j[None, :], mask=mask, other=0.0)
    if KEEPS != "":
        before = active
        if reset is not None:
            at_t = reset + t.to(tl.int64) * N + n
            before = (tl.load(at_t, mask=active, other=1) == 0) & active
        initial = t == tl.where(d == 0, 0, length - 1)
        first = (before & initial)[:, None] & (j < H)[None, :]
        later = (before & (initial == 0))[:, None] & (j < H)[None, :]
        row_before = first_row(tl.where(d == 0, t - 1, t + 1), T, N, offsets) + n
        at = (d * N + n)[:, None] * H + j[None, :]
        if KEEPS == "h":
            at_before = (row_before * D + d)[:, None] * P + j[None, :]
            h_prev = _either(y, at_before, later, h0, at, first)
        else:
            at_before = (d.to(tl.int64) * rows + row_before)[:, None] * H + j[None, :]
            c_prev = _either(cells, at_before, later, c0, at, first)
    return dy_t, saved, h_prev, h, c_prev, c, dc


@triton.jit(do_not_specialize=["T", "N", "rows", "first", "last", "detach_every", "grad_clip"])
def backward(
    dy,  # [rows, D, P] given gradients, like the two that follow; None: zero
    dh_n,  # [D, N, P]
    d_cells,  # [D, rows, H]
    d_kept,  # [D, N, H] float32, or None: the gradient of what the last step kept (cells.py), in
    #          the end that of the initial one, without what goes through w_hh
    w_hh,  # [D, G, H, P]
    w_hr,  # [D, P, H] or None
    h0,  # [D, N, P]
    c0,  # [D, N, H] or None
    y,  # [rows, D, P]
    gates,  # [D, rows, S, H]
    cells,  # [D, rows, H] or None
    dx,  # [rows, D, G, H] gradient of the input part, or None where it equals du
    du,  # [rows, D, G, H] gradient of the hidden part
    d_state,  # [rows, D, P] complete gradient of each h of a projected layer, or None
    lengths, offsets, reset, meetings,  # as in `forward`
    T, N, rows, first, last,
    detach_every,  # no gradient crosses a time that is a multiple of it; 0: all do
    grad_clip,  # if CLIP, limit of the gradient that each step sends to h of the step before
    CELL: tl.constexpr,
    G: tl.constexpr, S: tl.constexpr, KEEPS: tl.constexpr, D: tl.constexpr, H: tl.constexpr,
    P: tl.constexpr, UNIT_TILES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, PRECISION: tl.constexpr,
    PART: tl.constexpr,  # for the step schedule of a projected layer: 1 d_state, 2 cell; 0 all
    CLIP: tl.constexpr,
):  # fmt: skip
    group, d, n, length, j = place(T, N, lengths, D, UNIT_TILES, BLOCK_N, BLOCK_U)
    first, last = span(T, d, length, first, last, PERSISTENT)
    state = d * N + n
    unit = (j < H)[None, :]
    at = state[:, None] * H + j[None, :]
    w_hh += d.to(tl.int64) * (G * H * P)
    held = hold(w_hh, j, G, H, P, False, BLOCK_K, PERSISTENT)
    held_hr = ()
    if w_hr is not None:
        w_hr += d.to(tl.int64) * (P * H)
        held_hr = hold(w_hr, j, 1, P, H, False, BLOCK_K, PERSISTENT)
    arrivals = 0

    t, active, row = step(last - 1, T, N, d, n, length, offsets, first < last)
    given = _given(
        dy, d_cells, h0, c0, y, gates, cells, reset, offsets, t, active, row, T, N, rows, d, n,
        length, j, S, KEEPS, D, H, P,
    )  # fmt: skip

    for q in tl.range(first, last, num_stages=1):
        i = first + last - 1 - q
        dy_t, saved, h_prev, h, c_prev, c, dc = given
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

        if PART != 2:
            row_after = first_row(t_after, T, N, offsets) + n
            sums = product(
                du + (row_after * D + d) * (G * H), comes, w_hh, held, j, G, H, P, False, BLOCK_N,
                BLOCK_U, BLOCK_K, PERSISTENT, PRECISION,
            )  # fmt: skip
            dh = sums[0]
            for g in tl.static_range(1, G):
                dh += sums[g]
            if KEEPS == "h":
                dh += tl.load(d_kept + at, mask=mask, other=0.0)
            if CLIP:
                dh = _clip(dh, grad_clip)
            dh += dy_t.to(tl.float32)
            if dh_n is not None:
                ends = mask_p & (t == last_step)[:, None]
                at_end = state[:, None] * P + j[None, :]
                dh += tl.load(dh_n + at_end, mask=ends, other=0.0).to(tl.float32)
            if w_hr is not None:
                store(d_state + (row * D + d)[:, None] * P + j[None, :], (dh,), mask_p, 1, 0)
        if w_hr is not None:
            if PART == 0:
                arrivals += UNIT_TILES
                meet(meetings + group, arrivals, UNIT_TILES == 1)
            if PART != 1:
                (dh,) = product(
                    d_state + (row * D + d) * P, active, w_hr, held_hr, j, 1, P, H, False, BLOCK_N,
                    BLOCK_U, BLOCK_K, PERSISTENT, PRECISION,
                )  # fmt: skip
        if (w_hr is None) or (PART != 1):
            h_prev, h, c_prev, c, dc = widen((h_prev, h, c_prev, c, dc), 5)
            if KEEPS == "c":
                dc += tl.load(d_kept + at, mask=mask, other=0.0)
            d_old, dx_t, du_t = CELL(widen(saved, S), h_prev, h, c_prev, c, dh, dc)
            if KEEPS != "":
                tl.store(d_kept + at, tl.where(goes[:, None], d_old, 0.0), mask=mask)
            at_u = (row * D + d)[:, None] * (G * H) + j[None, :]
            store(du + at_u, du_t, mask, G, H)
            if dx is not None:
                store(dx + at_u, dx_t, mask, G, H)
        if PERSISTENT:
            t, active, row = step(i - 1, T, N, d, n, length, offsets, first < i)
            given = _given(
                dy, d_cells, h0, c0, y, gates, cells, reset, offsets, t, active, row, T, N, rows,
                d, n, length, j, S, KEEPS, D, H, P,
            )  # fmt: skip
            arrivals += UNIT_TILES
            meet(meetings + group, arrivals, UNIT_TILES == 1)
