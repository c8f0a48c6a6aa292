"""Which schedule runs a layer, in which tiles: a pure function of sizes.

Its estimates come from data sheets; nothing here was timed on a GPU yet. What is checked without
one (`aot.py`): that the tiles chosen compile for each architecture without spilling registers and
within its shared memory.
"""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """What the choice reads of a GPU."""

    processors: int  # that a cooperative launch can fill; 0 where there is none
    shared: int  # bytes of fast memory that one program can have


class Plan(NamedTuple):
    """A schedule and its tiles, as in `forward.py`."""

    persistent: bool
    block_n: int  # batch rows of a program
    block_u: int  # units of a program
    block_k: int  # depth of one step of a product
    num_warps: int
    num_stages: int

    def unit_tiles(self, units: int) -> int:
        """Programs that share a block of rows."""
        return -(-units // self.block_u)

    def row_blocks(self, N: int) -> int:
        return -(-N // self.block_n)


ROWS = 16, 32, 64
# Beside the weights a program needs room for a block of h and for changes of register layout.
RESERVED = 40 << 10


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, at least 16, the least that a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def choose(
    units: int, depth: int, N: int, D: int, itemsize: int, ieee: bool, device: Device
) -> Plan:
    """The plan for a layer of N rows and D directions.

    Args:
        units: columns that a step makes: the hidden size, or the projection's if that is larger.
        depth: terms of the sums for one unit, over all gates and products: G*P forward.
        itemsize: bytes of an element.
        ieee: whether products are float32 without TF32, which no tensor core computes: they go
            through registers, where only little fits.
        device: see `Device`.
    """
    smallest = next((b for b in ROWS if b >= N), ROWS[-1])
    if ieee:
        return Plan(False, min(smallest, 32), 16, 16, 4, 2)
    room = device.shared - RESERVED
    alone = power_of_two(units)
    if alone <= 128 and depth * alone * itemsize <= room:
        # One program owns all units: nothing to exchange, so rows may be spread thin.
        block_n = next((b for b in ROWS if D * -(-N // b) <= device.processors), smallest)
        return Plan(True, min(block_n, smallest), alone, min(64, alone), 8 if alone > 64 else 4, 2)
    for block_n in ROWS[: ROWS.index(smallest) + 1]:
        for block_u in (16, 32):
            plan = Plan(True, block_n, block_u, 64, 4, 2)
            programs = plan.unit_tiles(units) * plan.row_blocks(N) * D
            if programs <= device.processors and depth * block_u * itemsize <= room:
                return plan
    return Plan(False, smallest, 32, 64, 4, 3)
