"""What the two kernels share: where a program works, products of blocks, meeting of programs."""

from __future__ import annotations

import triton
import triton.language as tl

from . import choose

# The bits of `choose.py`, as a kernel can read them. Each is the first operand of `&`:
# Triton's interpreter has no other way.
STATE_PRODUCT = tl.constexpr(choose.STATE_PRODUCT)
FIRST_STAGE = tl.constexpr(choose.FIRST_STAGE)
SECOND_PRODUCT = tl.constexpr(choose.SECOND_PRODUCT)
CELL_STAGE = tl.constexpr(choose.CELL_STAGE)
PROJECTION = tl.constexpr(choose.PROJECTION)

POLLS = tl.constexpr(1 << 22)  # of `meet`; each takes an H200 0.6 us or more
NEVER = tl.constexpr(1 << 30)  # more arrivals than there are


@triton.jit
def place(
    T, N, lengths, D: tl.constexpr, UNIT_TILES: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
):  # fmt: skip
    """This program's (group, direction, rows n [BLOCK_N] 64-bit, their lengths, units).

    A row outside the batch has length 0. A length above T counts as T.
    """
    program = tl.program_id(0)
    group = program // UNIT_TILES
    n = group // D * BLOCK_N + tl.arange(0, BLOCK_N)
    length = tl.where(n < N, T, 0).to(tl.int64)
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + n, mask=n < N, other=0), length)
    units = program % UNIT_TILES * BLOCK_U + tl.arange(0, BLOCK_U)
    return group, group % D, n.to(tl.int64), length, units


@triton.jit
def span(T, d, length, first, last, PERSISTENT: tl.constexpr):
    """Steps to walk, counted in the direction's own order: all that a row of the block has."""
    if PERSISTENT:
        longest = tl.max(length, 0).to(tl.int32)
        first = tl.where(d == 0, 0, T - longest)
        last = tl.where(d == 0, longest, T)
    return first, last


@triton.jit
def step(i, T, N, d, n, length, offsets, inside):
    """Step i of direction d: (time t, rows active then [BLOCK_N], their rows of the matrices).

    inside: whether the step is one to do; if not, no row is active.
    """
    t = tl.where(d == 0, i, T - 1 - i)
    return t, t < tl.where(inside, length, 0), first_row(t, T, N, offsets) + n


@triton.jit
def first_row(t, T, N, offsets):
    """First row of step t, 64 bits, of the nearest step if there is no such."""
    t = tl.minimum(tl.maximum(t, 0), T - 1)
    row = t.to(tl.int64) * N
    if offsets is not None:
        row = tl.load(offsets + t)
    return row


@triton.jit
def load(p, mask, PLANES: tl.constexpr, STRIDE: tl.constexpr):
    """A tuple of PLANES blocks, STRIDE elements apart; zero outside the mask."""
    out = ()
    for plane in tl.static_range(PLANES):
        out = out + (tl.load(p + plane * STRIDE, mask=mask, other=0.0),)
    return out


@triton.jit
def widen(planes, PLANES: tl.constexpr):
    """The blocks of a tuple in float32."""
    out = ()
    for plane in tl.static_range(PLANES):
        out = out + (planes[plane].to(tl.float32),)
    return out


@triton.jit
def store(p, planes, mask, PLANES: tl.constexpr, STRIDE: tl.constexpr):
    """Stores a tuple of blocks, STRIDE elements apart, in the pointer's dtype."""
    for plane in tl.static_range(PLANES):
        tl.store(p + plane * STRIDE, planes[plane].to(p.dtype.element_ty), mask=mask)


@triton.jit
def parameters(
    params, d, row, active, j, rows, KINDS: tl.constexpr, D: tl.constexpr, H: tl.constexpr
):
    """A tuple of float32 blocks, one for each of KINDS, which broadcast to rows and units.

    params: all tensors one after the other; each is of the kind "u" [D, H], of units, "w" [D, rows,
    H] or "n" [D, rows, 1].
    """
    out = ()
    for k in tl.static_range(len(KINDS)):
        if KINDS[k] == "u":
            block = tl.load(params + d * H + j, mask=j < H, other=0.0)[None, :]
            params += D * H
        elif KINDS[k] == "w":
            at = (d.to(tl.int64) * rows + row)[:, None] * H + j[None, :]
            block = tl.load(params + at, mask=active[:, None] & (j < H)[None, :], other=0.0)
            params += rows.to(tl.int64) * (D * H)
        else:
            block = tl.load(params + d.to(tl.int64) * rows + row, mask=active, other=0.0)[:, None]
            params += rows.to(tl.int64) * D
        out = out + (block.to(tl.float32),)
    return out


@triton.jit
def weights(
    w, k0, plane, column, K: tl.constexpr, COLUMNS: tl.constexpr, K_LAST: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Block [BLOCK_K, columns] of the factor of `product`, zero outside."""
    k = k0 + tl.arange(0, BLOCK_K)
    if K_LAST:
        at = (plane * COLUMNS + column).to(tl.int64)[None, :] * K + k[:, None]
    else:
        at = (plane * K + k).to(tl.int64)[:, None] * COLUMNS + column[None, :]
    return tl.load(w + at, mask=(k < K)[:, None] & (column < COLUMNS)[None, :], other=0.0)


@triton.jit
def hold(
    w, column, PLANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, K_LAST: tl.constexpr,
    BLOCK_K: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The blocks of w that `product` needs for these columns, if HOLD; else nothing."""
    held = ()
    if HOLD:
        for k0 in tl.static_range(0, K, BLOCK_K):
            for plane in tl.static_range(PLANES):
                held = held + (weights(w, k0, plane, column, K, COLUMNS, K_LAST, BLOCK_K),)
    return held


@triton.jit
def _add_block(
    sums, a, mask, k0, w, held, column, PLANES: tl.constexpr, K: tl.constexpr,
    COLUMNS: tl.constexpr, K_LAST: tl.constexpr, BLOCK_K: tl.constexpr, HOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of `product` with the part of BLOCK_K terms from k0 added."""
    k = k0 + tl.arange(0, BLOCK_K)
    out = ()
    for plane in tl.static_range(PLANES):
        if (plane == 0) or (not K_LAST):
            # .cg: past the first-level cache, as another program may have written this
            block = tl.load(
                a[:, None] + ((0 if K_LAST else plane * K) + k)[None, :],
                mask=mask[:, None] & (k < K)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
        if HOLD:
            factor = held[k0 // BLOCK_K * PLANES + plane]
        else:
            factor = weights(w, k0, plane, column, K, COLUMNS, K_LAST, BLOCK_K)
        if PRECISION == "widen":
            term = tl.dot(
                block.to(tl.float32), factor.to(tl.float32), sums[plane], input_precision="ieee"
            )
        else:
            term = tl.dot(block, factor, sums[plane], input_precision=PRECISION)
        out = out + (term,)
    return out


@triton.jit
def product(
    a, mask, w, held, column, PLANES: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr,
    K_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
    HOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tuple of PLANES sums over k < K, each [BLOCK_N, BLOCK_U] float32.

    K_LAST, as forward needs it: w is [PLANES, COLUMNS, K], the sums are of a[n][k] w[plane, column,
    k]. Else, as backward does: w is [PLANES, K, COLUMNS], the sums are of a[n][plane * K + k]
    w[plane, k, column]; their own sum is wanted, but as one chain it would take PLANES as long.

    a: pointers [BLOCK_N] to rows, of which those outside the mask count as zero. HOLD: w was loaded
    before, by `hold`. The terms are added in the order of k either way. PRECISION: of `tl.dot`, or
    "widen" to multiply in float32 what the interpreter cannot.
    """
    sums = ()
    for _ in tl.static_range(PLANES):
        sums = sums + (tl.zeros((BLOCK_N, BLOCK_U), tl.float32),)
    if HOLD:
        for k0 in tl.static_range(0, K, BLOCK_K):
            sums = _add_block(
                sums, a, mask, k0, w, held, column, PLANES, K, COLUMNS, K_LAST, BLOCK_K, HOLD,
                PRECISION,
            )  # fmt: skip
    else:
        for k0 in range(0, K, BLOCK_K):
            sums = _add_block(
                sums, a, mask, k0, w, held, column, PLANES, K, COLUMNS, K_LAST, BLOCK_K, HOLD,
                PRECISION,
            )  # fmt: skip
    return sums


@triton.jit
def total(blocks, PLANES: tl.constexpr):
    """The sum of the blocks of a tuple."""
    out = blocks[0]
    for plane in tl.static_range(1, PLANES):
        out += blocks[plane]
    return out


@triton.jit
def biased(sums, bias, AT: tl.constexpr, PLANES: tl.constexpr):
    """Sums with the blocks of `bias` from number AT on added, if there are any."""
    out = sums
    if len(bias) > 0:
        out = ()
        for plane in tl.static_range(PLANES):
            out = out + (sums[plane] + bias[AT + plane].to(tl.float32)[None, :],)
    return out


@triton.jit
def meet(counter, arrivals, lost, ALONE: tl.constexpr):
    """Waits until the programs of a group have come `arrivals` times in all.

    What each stored before it came, all can load afterwards: the program's own barrier orders the
    stores of its threads before the release, and their loads after the acquire. ALONE: one program
    is the whole group, and its own barrier does.

    Who has looked POLLS times goes on, and leaves a 1 at `lost` for the launcher, `launch.py`. It
    also has everyone go on who waits there, or will: the launch ends.
    """
    tl.debug_barrier()
    if not ALONE:
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        polls = 0
        while (arrived < arrivals) & (polls < POLLS):
            arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
            polls += 1
        if arrived < arrivals:
            tl.atomic_max(counter, NEVER)
            tl.store(lost, 1)
        tl.debug_barrier()
