"""A layer's loop over time: one kernel for the forward, one for the backward, each body once.

A program owns BLOCK_N batch rows and BLOCK_U units of one direction. At every step it needs the
whole of what its row group made in the step before (h forward, the gate gradients backward), so
the programs of a group, `UNIT_TILES` of them, meet between steps. Two schedules run one body:

persistent  the whole sequence in one launch. A program loads its share of the weights once and
            keeps it on chip (HOLD); the group meets at a barrier in global memory, which needs a
            cooperative launch, or, when one program owns all units, at the program's own barrier.
step        one launch per time step, which is the barrier; weights are streamed.

Memory, row-major. `row` runs over [T, N], or over the rows of packed input.
  x, dx, du  [rows, D, G, H]   input part of the pre-activations; gradients of x and u
  w_hh       [D, G, H, P]      b_hh [D, G, H] or None       w_hr [D, P, H] or None
  h          [2, D, N, P]      h_{t-1} and h_t in turn, both begin as h0
  kept       [D, N, H] float32 see cells.py; begins as c0 or h0, ends as the final one
  y          [rows, D, P]      h_n [D, N, P]                m [D, N, H] o tanh(c) of a projection
  gates      [D, rows, S, H]   cells, hidden [D, rows, H]   None where not wanted
  lengths    [N] int64 or None: row n has the steps t < lengths[n]
  offsets    [T] int64 or None: first row of each step of packed input; else t N
  reset      [T, N] bool or None: zero state before the step
  meetings   [row groups * D] int32 zeros: arrivals at the barrier

T, N and every other run-time number are not specialised, so that one compilation serves all.
Offsets that depend on a row are 64 bits wide. Every sum has a fixed order: the same bits on every
run. Between batches of different N, tiles, and with them the order, may differ.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _meet(counter, arrivals, ALONE: tl.constexpr):
    """Waits until all programs of the group have come `arrivals` times in all.

    What each stored before is visible to all after it: the program's own barrier orders the stores
    of its threads before the release, and their loads after the acquire.
    """
    tl.debug_barrier()
    if not ALONE:
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        while arrived < arrivals:
            arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


@triton.jit
def _weights(w, k0, column, K: tl.constexpr, COLUMNS: tl.constexpr, STRIDE_K: tl.constexpr,
             STRIDE_C: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Block [BLOCK_K, columns] of w[k * STRIDE_K + column * STRIDE_C], zero outside."""
    k = k0 + tl.arange(0, BLOCK_K)
    at = k.to(tl.int64)[:, None] * STRIDE_K + column.to(tl.int64)[None, :] * STRIDE_C
    return tl.load(w + at, mask=(k < K)[:, None] & (column < COLUMNS)[None, :], other=0.0)


@triton.jit
def _hold(w, column, PLANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr,
          STRIDE_K: tl.constexpr, STRIDE_C: tl.constexpr, BLOCK_K: tl.constexpr,
          HOLD: tl.constexpr):  # fmt: skip
    """The program's share of the weights for `_product`: a tuple of blocks, empty unless HOLD."""
    held = ()
    if HOLD:
        for k0 in tl.static_range(0, K, BLOCK_K):
            for plane in tl.static_range(PLANES):
                base = w + plane * (COLUMNS * STRIDE_C)
                held = held + (_weights(base, k0, column, K, COLUMNS, STRIDE_K, STRIDE_C, BLOCK_K),)
    return held


@triton.jit
def _add_product(sums, a, a_mask, k0, w, held, column, PLANES: tl.constexpr, K: tl.constexpr,
                 COLUMNS: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_C: tl.constexpr,
                 BLOCK_K: tl.constexpr, HOLD: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """One block of K of `_product`: the sums with its part added."""
    k = k0 + tl.arange(0, BLOCK_K)
    # past the first-level cache: another program wrote this
    block = tl.load(a[:, None] + k[None, :], mask=a_mask[:, None] & (k < K)[None, :], other=0.0,
                    cache_modifier=".cg")  # fmt: skip
    if WIDEN:
        block = block.to(tl.float32)
    out = ()
    for plane in tl.static_range(PLANES):
        if HOLD:
            weight = held[k0 // BLOCK_K * PLANES + plane]
        else:
            base = w + plane * (COLUMNS * STRIDE_C)
            weight = _weights(base, k0, column, K, COLUMNS, STRIDE_K, STRIDE_C, BLOCK_K)
        if WIDEN:
            weight = weight.to(tl.float32)
        out = out + (tl.dot(block, weight, sums[plane], input_precision=PRECISION),)
    return out


@triton.jit
def _product(a, a_mask, w, held, column, PLANES: tl.constexpr, K: tl.constexpr,
             COLUMNS: tl.constexpr, STRIDE_K: tl.constexpr, STRIDE_C: tl.constexpr,
             BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
             HOLD: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """PLANES sums over k < K of a[n][k] * w[plane][k, column], each [BLOCK_N, BLOCK_U] float32.

    a: pointers [BLOCK_N] to rows; those that a_mask leaves out count as zero. Planes of w are
    COLUMNS * STRIDE_C elements apart. In order of k, held or streamed.
    """
    sums = ()
    for _ in tl.static_range(PLANES):
        sums = sums + (tl.zeros((BLOCK_N, BLOCK_U), tl.float32),)
    if HOLD:
        for k0 in tl.static_range(0, K, BLOCK_K):
            sums = _add_product(sums, a, a_mask, k0, w, held, column, PLANES, K, COLUMNS, STRIDE_K,
                                STRIDE_C, BLOCK_K, HOLD, PRECISION, WIDEN)  # fmt: skip
    else:
        for k0 in range(0, K, BLOCK_K):
            sums = _add_product(sums, a, a_mask, k0, w, held, column, PLANES, K, COLUMNS, STRIDE_K,
                                STRIDE_C, BLOCK_K, HOLD, PRECISION, WIDEN)  # fmt: skip
    return sums


@triton.jit
def _planes(p, mask, PLANES: tl.constexpr, STRIDE: tl.constexpr):
    """PLANES blocks, STRIDE elements apart, in float32; zero outside the mask."""
    out = ()
    for plane in tl.static_range(PLANES):
        out = out + (tl.load(p + plane * STRIDE, mask=mask, other=0.0).to(tl.float32),)
    return out


@triton.jit
def _store_planes(p, planes, mask, PLANES: tl.constexpr, STRIDE: tl.constexpr):
    for plane in tl.static_range(PLANES):
        value = planes[plane]
        tl.store(p + plane * STRIDE, value.to(p.dtype.element_ty), mask=mask)


@triton.jit
def _first_row(offsets, t, N):
    """First row of step t, 64 bits."""
    if offsets is None:
        row = t.to(tl.int64) * N
    else:
        row = tl.load(offsets + t)
    return row


@triton.jit
def _place(T, N, lengths, D: tl.constexpr, UNIT_TILES: tl.constexpr, BLOCK_N: tl.constexpr,
           BLOCK_U: tl.constexpr):  # fmt: skip
    """Where this program works: (group, d, n, their lengths, first unit)."""
    program = tl.program_id(0)
    group = program // UNIT_TILES
    d = group % D
    n = group // D * BLOCK_N + tl.arange(0, BLOCK_N)
    if lengths is None:
        length = tl.where(n < N, T, 0).to(tl.int64)
    else:
        length = tl.load(lengths + n, mask=n < N, other=0)
    return group, d, n.to(tl.int64), length, program % UNIT_TILES * BLOCK_U


@triton.jit
def _span(T, d, length, first, last, PERSISTENT: tl.constexpr):
    """Steps to walk, counted in the order of the direction: all that a row of the block has."""
    if PERSISTENT:
        longest = tl.max(length, 0).to(tl.int32)
        first = tl.where(d == 0, 0, T - longest)
        last = tl.where(d == 0, longest, T)
    return first, last


@triton.jit(do_not_specialize=["T", "N", "rows", "first", "last"])
def forward(
    x, w_hh, b_hh, w_hr, h, kept, y, h_n, m, gates, cells, hidden, lengths, offsets, reset, meetings,
    T, N, rows, first, last,
    CELL: tl.constexpr, G: tl.constexpr, S: tl.constexpr, KEEPS: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, UNIT_TILES: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Steps first ... last - 1. Grid: row groups * D * UNIT_TILES.

    PART of a projected layer for the step schedule: 1 the cell, 2 the projection; 0 is all.
    """
    group, d, n, length, j0 = _place(T, N, lengths, D, UNIT_TILES, BLOCK_N, BLOCK_U)
    first, last = _span(T, d, length, first, last, PERSISTENT)
    j = j0 + tl.arange(0, BLOCK_U)
    state = d * N + n
    w_hh += d.to(tl.int64) * (G * H * P)
    held = _hold(w_hh, j, G, P, H, 1, P, BLOCK_K, PERSISTENT)
    held_hr = ()
    if w_hr is not None:
        w_hr += d.to(tl.int64) * (P * H)
        held_hr = _hold(w_hr, j, 1, H, P, 1, H, BLOCK_K, PERSISTENT)
    arrivals = 0

    for i in tl.range(first, last, num_stages=1):
        t = tl.where(d == 0, i, T - 1 - i)
        active = t < length
        row = _first_row(offsets, t, N) + n
        keep = active
        if reset is not None:
            keep = active & (tl.load(reset + t.to(tl.int64) * N + n, mask=active, other=0) == 0)
        is_last = active & (t == tl.where(d == 0, length - 1, 0))
        even = i % 2
        h_old = h + (even * D * N + state) * P
        h_new = h + ((1 - even) * D * N + state) * P

        if PART != 2:
            mask = active[:, None] & (j < H)[None, :]
            at = state[:, None] * H + j[None, :]
            at_x = (row * D + d)[:, None] * (G * H) + j[None, :]
            at_row = (d.to(tl.int64) * rows + row)[:, None] * H + j[None, :]
            x_t = _planes(x + at_x, mask, G, H)
            old = tl.zeros((BLOCK_N, BLOCK_U), tl.float32)
            if KEEPS != "":
                old = tl.load(kept + at, mask=keep[:, None] & (j < H)[None, :], other=0.0)
            sums = _product(h_old, keep, w_hh, held, j, G, P, H, 1, P, BLOCK_N, BLOCK_U, BLOCK_K,
                            PERSISTENT, PRECISION, WIDEN)  # fmt: skip
            u = sums
            if b_hh is not None:
                u = ()
                for g in tl.static_range(G):
                    b = tl.load(b_hh + (d * G + g) * H + j, mask=j < H, other=0.0)
                    u = u + (sums[g] + b.to(tl.float32)[None, :],)
            value, new, saved = CELL(x_t, u, old)
            if KEEPS != "":
                tl.store(kept + at, new, mask=mask)
            if cells is not None:
                tl.store(cells + at_row, new.to(cells.dtype.element_ty), mask=mask)
            if gates is not None:
                at_gates = (d.to(tl.int64) * rows + row)[:, None] * (S * H) + j[None, :]
                _store_planes(gates + at_gates, saved, mask, S, H)
            value = value.to(y.dtype.element_ty)
            if w_hr is None:
                tl.store(h_new[:, None] + j[None, :], value, mask=mask)
                tl.store(y + (row * D + d)[:, None] * P + j[None, :], value, mask=mask)
                tl.store(h_n + at, value, mask=is_last[:, None] & (j < H)[None, :])
            else:
                tl.store(m + at, value, mask=mask)
                if hidden is not None:
                    tl.store(hidden + at_row, value, mask=mask)
        if w_hr is not None:
            if PART == 0:
                arrivals += UNIT_TILES
                _meet(meetings + group, arrivals, UNIT_TILES == 1)
            if PART != 1:
                p_mask = (j < P)[None, :]
                (value,) = _product(m + state * H, active, w_hr, held_hr, j, 1, H, P, 1, H,
                                    BLOCK_N, BLOCK_U, BLOCK_K, PERSISTENT, PRECISION, WIDEN)  # fmt: skip
                value = value.to(y.dtype.element_ty)
                tl.store(h_new[:, None] + j[None, :], value, mask=active[:, None] & p_mask)
                tl.store(y + (row * D + d)[:, None] * P + j[None, :], value,
                         mask=active[:, None] & p_mask)  # fmt: skip
                tl.store(h_n + state[:, None] * P + j[None, :], value,
                         mask=is_last[:, None] & p_mask)  # fmt: skip
        if PERSISTENT:
            arrivals += UNIT_TILES
            _meet(meetings + group, arrivals, UNIT_TILES == 1)


@triton.jit
def _before(values, at, earlier, first_values, first_at, initial):
    """A state before a step, float32: of the step before, or the initial one, or zero."""
    value = tl.load(values + at, mask=earlier, other=0.0).to(tl.float32)
    return value + tl.load(first_values + first_at, mask=initial, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "N", "rows", "first", "last", "detach_every", "grad_clip"])
def backward(
    dy, dh_n, d_cells, d_kept, w_hh, w_hr, h0, c0, y, gates, cells, dx, du, d_state, lengths, offsets,
    reset, meetings, T, N, rows, first, last, detach_every, grad_clip,
    CELL: tl.constexpr, G: tl.constexpr, S: tl.constexpr, KEEPS: tl.constexpr, D: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, UNIT_TILES: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Steps last - 1 ... first, in the direction's own order of time. Grid as for `forward`.

    dy [rows, D, P], dh_n [D, N, P] and d_cells [D, rows, H] are given gradients, None for zero.
    d_kept [D, N, H] float32 begins as the gradient of what the last step kept and ends as that of
    the initial one. d_state [rows, D, P] takes the complete gradient of each h of a projection.
    dx is None where it equals du. detach_every 0 and CLIP False: neither.
    PART of a projected layer for the step schedule: 1 up to d_state, 2 the cell; 0 is all.
    """
    group, d, n, length, j0 = _place(T, N, lengths, D, UNIT_TILES, BLOCK_N, BLOCK_U)
    first, last = _span(T, d, length, first, last, PERSISTENT)
    j = j0 + tl.arange(0, BLOCK_U)
    state = d * N + n
    w_hh += d.to(tl.int64) * (G * H * P)
    held = _hold(w_hh, j, 1, G * H, P, P, 1, BLOCK_K, PERSISTENT)
    held_hr = ()
    if w_hr is not None:
        w_hr += d.to(tl.int64) * (P * H)
        held_hr = _hold(w_hr, j, 1, P, H, H, 1, BLOCK_K, PERSISTENT)
    arrivals = 0

    for q in tl.range(first, last, num_stages=1):
        i = first + last - 1 - q
        forward_in_time = d == 0
        t = tl.where(forward_in_time, i, T - 1 - i)
        active = t < length
        row = _first_row(offsets, t, N) + n
        first_step = tl.where(forward_in_time, 0, length - 1)
        last_step = tl.where(forward_in_time, length - 1, 0)
        t_later = tl.where(forward_in_time, t + 1, t - 1)
        t_before = tl.where(forward_in_time, t - 1, t + 1)
        comes = (t < tl.where(_attached(t, t_later, detach_every), length, 0)) & (t != last_step)
        goes = (t < tl.where(_attached(t, t_before, detach_every), length, 0)) | (t == first_step)
        kept_before = active
        if reset is not None:
            at_t = reset + t.to(tl.int64) * N + n
            kept_before = active & (tl.load(at_t, mask=active, other=0) == 0)
            comes = comes & (tl.load(at_t + N, mask=comes, other=0) == 0)
            goes = goes & kept_before
        unit = (j < H)[None, :]
        mask = active[:, None] & unit
        at = state[:, None] * H + j[None, :]

        if PART != 2:
            p_mask = active[:, None] & (j < P)[None, :]
            # clamped, as the last step has none after it
            row_later = _first_row(offsets, tl.minimum(tl.maximum(t_later, 0), T - 1), N) + n
            (dh,) = _product(du + (row_later * D + d) * (G * H), comes, w_hh, held, j, 1, G * H, P,
                             P, 1, BLOCK_N, BLOCK_U, BLOCK_K, PERSISTENT, PRECISION, WIDEN)  # fmt: skip
            if KEEPS == "h":
                dh += tl.load(d_kept + at, mask=mask, other=0.0)
            if CLIP:
                dh = _clip(dh, grad_clip)
            at_y = (row * D + d)[:, None] * P + j[None, :]
            if dy is not None:
                dh += tl.load(dy + at_y, mask=p_mask, other=0.0).to(tl.float32)
            if dh_n is not None:
                ends = p_mask & (t == last_step)[:, None]
                at_end = state[:, None] * P + j[None, :]
                dh += tl.load(dh_n + at_end, mask=ends, other=0.0).to(tl.float32)
            if w_hr is not None:
                tl.store(d_state + at_y, dh.to(d_state.dtype.element_ty), mask=p_mask)
        if w_hr is not None:
            if PART == 0:
                arrivals += UNIT_TILES
                _meet(meetings + group, arrivals, UNIT_TILES == 1)
            if PART != 1:
                (dh,) = _product(d_state + (row * D + d) * P, active, w_hr, held_hr, j, 1, P, H, H,
                                 1, BLOCK_N, BLOCK_U, BLOCK_K, PERSISTENT, PRECISION, WIDEN)  # fmt: skip
        if (w_hr is None) or (PART != 1):
            row_before = _first_row(offsets, tl.minimum(tl.maximum(t_before, 0), T - 1), N) + n
            at_gates = (d.to(tl.int64) * rows + row)[:, None] * (S * H) + j[None, :]
            saved = _planes(gates + at_gates, mask, S, H)
            h_prev = dh
            h = dh
            c_prev = dh
            c = dh
            dc = dh
            earlier = (kept_before & (t != first_step))[:, None] & unit
            initial = (kept_before & (t == first_step))[:, None] & unit
            if KEEPS == "h":
                at_before = (row_before * D + d)[:, None] * P + j[None, :]
                h_prev = _before(y, at_before, earlier, h0, at, initial)
            if KEEPS == "":
                h = tl.load(y + (row * D + d)[:, None] * P + j[None, :], mask=mask, other=0.0)
                h = h.to(tl.float32)
            if KEEPS == "c":
                at_cells = (d.to(tl.int64) * rows + row)[:, None] * H + j[None, :]
                at_before = (d.to(tl.int64) * rows + row_before)[:, None] * H + j[None, :]
                c_prev = _before(cells, at_before, earlier, c0, at, initial)
                c = tl.load(cells + at_cells, mask=mask, other=0.0).to(tl.float32)
                dc = tl.load(d_kept + at, mask=mask, other=0.0)
                if d_cells is not None:
                    dc += tl.load(d_cells + at_cells, mask=mask, other=0.0).to(tl.float32)
            new, dx_t, du_t = CELL(saved, h_prev, h, c_prev, c, dh, dc)
            if KEEPS != "":
                tl.store(d_kept + at, tl.where(goes[:, None], new, 0.0), mask=mask)
            at_u = (row * D + d)[:, None] * (G * H) + j[None, :]
            _store_planes(du + at_u, du_t, mask, G, H)
            if dx is not None:
                _store_planes(dx + at_u, dx_t, mask, G, H)
        if PERSISTENT:
            arrivals += UNIT_TILES
            _meet(meetings + group, arrivals, UNIT_TILES == 1)


@triton.jit
def _attached(t, other, detach_every):
    """Whether no multiple of detach_every separates the neighbouring steps t and other."""
    return (detach_every == 0) | (tl.maximum(t, other) % tl.maximum(detach_every, 1) != 0)


@triton.jit
def _clip(x, limit):
    """x clamped to [-limit, limit]; a NaN stays, as in torch."""
    x = tl.where(x > limit, limit, x)
    return tl.where(x < -limit, -limit, x)
