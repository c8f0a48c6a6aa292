"""Which schedule runs a layer, in which tiles: a pure function of sizes.

Its estimates come from data sheets. The times on an H200 are in `bench/NOTES.md`, and changed no
estimate. What is checked without a GPU (`tools/aot.py`): that the tiles chosen compile for each
architecture without spilling registers and within its shared memory. Sums over more than 1024 units
do spill, see there.
"""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """What the choice reads of a GPU."""

    processors: int  # that a cooperative launch can fill; 0 where there is none
    shared: int  # bytes of fast memory that one program can have
    lanes: int = 32  # of a warp
    tall: bool = False  # whether one instruction multiplies 64 rows: Hopper, datacenter Blackwell
    # Whether only one launch for each step will do, in which no program waits for another.
    stepwise: bool = False


class Plan(NamedTuple):
    """A schedule and its tiles, as in `forward.py`."""

    persistent: bool
    block_n: int  # batch rows of a program
    block_u: int  # units of a program
    block_k: int  # depth of one block of a product
    num_warps: int
    num_stages: int

    def unit_tiles(self, units: int) -> int:
        """Programs that share a block of rows."""
        return -(-units // self.block_u)

    def row_blocks(self, N: int) -> int:
        """Blocks that N rows make."""
        return -(-N // self.block_n)


# Beside the weights a program needs room for a block of h and for changes of register layout.
RESERVED = 44 << 10
# Units over which a step may sum: all of a row are in one program, in its registers.
SUMMED = 4096
# Products with weights that are held are unrolled. Matrix instructions of one warp at which both
# kernels together take about ten seconds to compile, on one core of a server.
UNROLLED = 400


# The stages of a step, in the order of forward. Those without a product work on units alone, or on
# sums over all of them.
STATE_PRODUCT = 1  # of h and W_hh; backward: of du of the later step, which makes dh
FIRST_STAGE = 2  # of a cell with a second product, up to it
SECOND_PRODUCT = 4
CELL_STAGE = 8
PROJECTION = 16  # backward: second
ALL = 31


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, at least 16, the least that a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def choose(
    units: int,
    depth: int,
    N: int,
    D: int,
    itemsize: int,
    ieee: bool,
    device: Device,
    whole: bool = False,
) -> Plan:
    """The plan for a layer of N rows and D directions, for its products where they are apart.

    Args:
        units: columns that a step makes: the hidden size, or the projection's if that is larger.
        depth: terms of the sums for one unit, over all gates and products: G*P forward.
        itemsize: bytes of an element.
        ieee: whether products are float32 without TF32. No tensor core computes those; they go
            through registers, which hold no weights besides.
        device: see `Device`.
        whole: whether one program must own all units of a row where it does all stages, as the
            step sums over them.

    Tiles of tensor cores have fewer rows than units, but for `tall` instructions: the compiler
    (Triton 3.9) then gives each warp units of its own; otherwise all repeat each other's work.
    """
    alone = power_of_two(units)
    if ieee:
        return _plan(False, 16 if N <= 16 else 32, 16, 16, device)
    room = device.shared - RESERVED
    if alone <= 128 and depth * alone * itemsize <= room and not device.stepwise:
        # One program owns all units, so there is nothing to exchange.
        crowded = not whole and alone >= 64 and device.processors < (N + 15) // 16 * D
        return _plan(True, 32 if crowded else 16, alone, min(256 // itemsize, alone), device)
    for block_u, repeated in ((32, 1), (16, 2)) if not whole else ():
        plan = _plan(True, 16, block_u, 256 // itemsize, device)
        programs = plan.unit_tiles(units) * plan.row_blocks(N) * D
        unrolled = depth * itemsize // 32 * repeated
        fits = depth * block_u * itemsize <= room and unrolled <= UNROLLED
        if programs <= device.processors and fits and not device.stepwise:
            return plan
    if device.tall and N > 32:
        return _plan(False, 64, 32, 128 // itemsize, device)
    return _plan(False, 16, 64, 128 // itemsize, device)


def of_rows(units: int, device: Device) -> Plan:
    """The plan for stages without a product that sum over units: a program has some rows."""
    alone = power_of_two(units)
    # Two units for each thread, four from 1024 on, eight from 4096 on.
    warps = 16 if alone > 1024 else min(max(alone // 64, 4), 8)
    return Plan(False, max(1, 256 // alone), alone, 16, warps * 32 // device.lanes, 1)


def launches(
    plan: Plan, rows: Plan | None, second: bool, projected: bool, backward: bool
) -> list[tuple[int, Plan]]:
    """The stages of each launch for a step, in order, and its plan.

    Args:
        plan: what `choose` says.
        rows: what `of_rows` says for a step that sums over units, else None.
        second: whether the cell has a second product, which excludes a projection.
    """
    if plan.persistent or not (rows or second or projected):
        return [(ALL, plan)]
    if second:
        stages = [STATE_PRODUCT, FIRST_STAGE, SECOND_PRODUCT, CELL_STAGE]
    elif projected and backward:
        stages = [STATE_PRODUCT, PROJECTION, CELL_STAGE]
    elif projected:
        stages = [STATE_PRODUCT, CELL_STAGE, PROJECTION]
    else:
        stages = [STATE_PRODUCT, CELL_STAGE]
    if rows:
        return [(each, rows if each in (FIRST_STAGE, CELL_STAGE) else plan) for each in stages]
    # A product is together with what follows from it for the same units.
    cut = 1 if projected and backward else 2
    return [(sum(stages[:cut]), plan), (sum(stages[cut:]), plan)]


def _plan(persistent: bool, block_n: int, block_u: int, block_k: int, device: Device) -> Plan:
    warps = 4 if block_n * block_u < 512 or (block_n, block_u) == (16, 32) else 8
    return Plan(persistent, block_n, block_u, block_k, warps * 32 // device.lanes, 2)
