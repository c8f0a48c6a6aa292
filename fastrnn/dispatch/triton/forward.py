"""The forward loop over time of one layer: all directions, all cells, both schedules.

A program owns BLOCK_N batch rows and BLOCK_U units of one direction. At every step it needs all
that the `UNIT_TILES` programs of its group, those with the same rows, made in the step before. Two
schedules run the one body:

persistent  the whole sequence in one launch. A program loads its share of the weights once and
            keeps it on chip. The group meets in global memory, for which the launch must be
            cooperative, or, if one program owns all units, within that program.
step        one launch or more per time step, between which everyone has met; weights are streamed.
            Each does some stages of a step, see `choose.py`.

Matrices are dense and row-major; `row` runs over (T, N), or over the rows of packed input.
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
    biased,
    hold,
    load,
    meet,
    parameters,
    place,
    product,
    span,
    step,
    store,
    widen,
)


@triton.jit(do_not_specialize=["T", "N", "rows", "first", "last"])
def forward(
    x,  # [rows, D, G, H] input part of the pre-activations
    w_hh,  # [D, U, H, P]
    b_hh,  # [D, U, H] or None
    w_hr,  # [D, P, H] or None
    step_params,  # what `p` of cells.py is made of, see `parameters`; or None. Not named `params`,
    #               which is a variable of Triton's launcher
    h,  # [2, D, N, P] h_{t-1} and h_t in turn; both begin as h0
    kept,  # [D, N, planes, H] float32, see cells.py: initial ones, in the end the final ones; or
    #        None
    y,  # [rows, D, P]
    h_n,  # [D, N, P] begins as h0, for rows without a step
    m,  # [D, N, H] room for what the second product of a step multiplies: o tanh(c) of a projected
    #     layer, v of a cell; or None
    sums,  # [D, N, U, H] float32 room for the products, where another launch takes them; or None
    gates,  # [D, rows, S, H] or None, like the two that follow, where not wanted
    cells,  # [D, rows, OWN, H]
    hidden,  # [D, rows, H]
    lengths,  # [N] int64: row n has the steps t < lengths[n]; None: all T
    offsets,  # [T] int64 first row of each step of packed input, or None: t N
    reset,  # [T, N] bool: whether the state is zero before the step; or None
    meetings,  # [row blocks * D] int32 zeros
    lost,  # int32, see `meet`; None where nobody meets
    T, N, rows,  # not specialised, like all run-time numbers: one compilation serves all
    first, last,  # steps to do, in the direction's own order, for the step schedule
    CELL: tl.constexpr,  # of cells.py
    G: tl.constexpr, U: tl.constexpr, S: tl.constexpr,  # planes of x, of w_hh and of gates
    FIRST: tl.constexpr,  # of a cell with a second product: its first function in cells.py,
    W: tl.constexpr, V: tl.constexpr,  # the last W planes of w_hh and the first V ones of gates
    KEEPS_H: tl.constexpr,  # whether h is what `kept` begins with; its other planes are OWN of c
    OWN: tl.constexpr, OUTPUT: tl.constexpr,  # the state that y has: 0 for h, k for plane k - 1
    KINDS: tl.constexpr,  # of `step_params`
    D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, UNIT_TILES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,  # that this launch does: bits of `choose.py`
):  # fmt: skip
    PRODUCED: tl.constexpr = (STATE_PRODUCT & STAGES) > 0
    ELEMENTWISE: tl.constexpr = ((FIRST_STAGE | CELL_STAGE) & STAGES) > 0
    IN_CELL: tl.constexpr = (CELL_STAGE & STAGES) > 0
    PROJECTS: tl.constexpr = (w_hr is not None) and ((PROJECTION & STAGES) > 0)
    group, d, n, length, j = place(T, N, lengths, D, UNIT_TILES, BLOCK_N, BLOCK_U)
    first, last = span(T, d, length, first, last, PERSISTENT)
    state = d * N + n
    unit = (j < H)[None, :]
    at = state[:, None] * H + j[None, :]
    at_kept = state[:, None] * ((KEEPS_H + OWN) * H) + j[None, :]
    w_hh += d.to(tl.int64) * (U * H * P)
    held = hold(w_hh, j, U - W, P, H, True, BLOCK_K, PERSISTENT)
    w_w = w_hh + (U - W) * H * P
    held_w = hold(w_w, j, W, P, H, True, BLOCK_K, PERSISTENT)
    held_hr = ()
    if w_hr is not None:
        w_hr += d.to(tl.int64) * (P * H)
        held_hr = hold(w_hr, j, 1, H, P, True, BLOCK_K, PERSISTENT)
    bias = ()
    if b_hh is not None:
        bias = load(b_hh + d * (U * H) + j, j < H, U, H)
    arrivals = 0

    t, active, row = step(first, T, N, d, n, length, offsets, first < last)
    x += j[None, :]
    if ELEMENTWISE:
        x_t = load(x + (row * D + d)[:, None] * (G * H), active[:, None] & unit, G, H)

    for i in tl.range(first, last, num_stages=1):  # unpipelined: a step loads what the last stored
        before = active
        if reset is not None:
            at_t = reset + t.to(tl.int64) * N + n
            before = (tl.load(at_t, mask=active, other=1) == 0) & active
        ends = t == tl.where(d == 0, length - 1, 0)
        mask = active[:, None] & unit
        h_old = h + (i % 2 * D * N + state) * P
        h_new = (h + ((1 - i % 2) * D * N + state) * P)[:, None] + j[None, :]
        y_t = (y + (row * D + d) * P)[:, None] + j[None, :]

        at_row = (d.to(tl.int64) * rows + row)[:, None]
        at_sums = sums
        if sums is not None:
            at_sums = sums + state[:, None] * (U * H) + j[None, :]
        u = ()
        if (U > W) and PRODUCED:
            u = product(
                h_old, before, w_hh, held, j, U - W, P, H, True, BLOCK_N, BLOCK_U, BLOCK_K,
                PERSISTENT, PRECISION,
            )  # fmt: skip
            u = biased(u, bias, 0, U - W)
            if not IN_CELL:
                store(at_sums, u, mask, U - W, H)
        if (U > W) and ELEMENTWISE and (not PRODUCED):
            u = load(at_sums, mask, U - W, H)
        if ELEMENTWISE:
            old = ()
            if kept is not None:
                old = load(kept + at_kept, before[:, None] & unit, KEEPS_H + OWN, H)
            p = parameters(step_params, d, row, active, j, rows, KINDS, D, H)
        if W > 0:
            if FIRST_STAGE & STAGES:
                v, first_saved = FIRST(widen(x_t, G), u, old, p, unit)
                store(m + at, (v,), mask, 1, 0)
                if gates is not None:
                    store(gates + at_row * (S * H) + j[None, :], first_saved, mask, V, H)
                if SECOND_PRODUCT & STAGES:
                    arrivals += UNIT_TILES
                    meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
            if SECOND_PRODUCT & STAGES:
                of_v = product(
                    m + state * H, active, w_w, held_w, j, W, P, H, True, BLOCK_N, BLOCK_U, BLOCK_K,
                    PERSISTENT, PRECISION,
                )  # fmt: skip
                of_v = biased(of_v, bias, U - W, W)
                if not IN_CELL:
                    store(at_sums + (U - W) * H, of_v, mask, W, H)
            elif IN_CELL:
                of_v = load(at_sums + (U - W) * H, mask, W, H)
            if IN_CELL:
                u = u + of_v
        if IN_CELL:
            value, new, saved = CELL(widen(x_t, G), u, old, p, unit)
            if kept is not None:
                store(kept + at_kept, new, mask, KEEPS_H + OWN, H)
            if cells is not None:
                at_cells = at_row * (OWN * H) + j[None, :]
                for k in tl.static_range(OWN):
                    store(cells + at_cells + k * H, (new[KEEPS_H + k],), mask, 1, 0)
            if gates is not None:
                store(gates + at_row * (S * H) + V * H + j[None, :], saved, mask, S - V, H)
            if hidden is not None:
                store(hidden + at_row * H + j[None, :], (value,), mask, 1, 0)
            if w_hr is not None:
                store(m + at, (value,), mask, 1, 0)
        if PROJECTS:
            if IN_CELL:
                arrivals += UNIT_TILES
                meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
            (value,) = product(
                m + state * H, active, w_hr, held_hr, j, 1, H, P, True, BLOCK_N, BLOCK_U, BLOCK_K,
                PERSISTENT, PRECISION,
            )  # fmt: skip
        if PROJECTS or (IN_CELL and (w_hr is None)):
            mask_p = active[:, None] & (j < P)[None, :]
            store(h_new, (value,), mask_p, 1, 0)
            if OUTPUT > 0:
                store(y_t, (new[KEEPS_H + OUTPUT - 1],), mask_p, 1, 0)
            else:
                store(y_t, (value,), mask_p, 1, 0)
            store(h_n + state[:, None] * P + j[None, :], (value,), mask_p & ends[:, None], 1, 0)
        if PERSISTENT:
            # what the next step needs beside h is on its way while the group meets
            t, active, row = step(i + 1, T, N, d, n, length, offsets, i + 1 < last)
            x_t = load(x + (row * D + d)[:, None] * (G * H), active[:, None] & unit, G, H)
            arrivals += UNIT_TILES
            meet(meetings + group, arrivals, lost, UNIT_TILES == 1)
