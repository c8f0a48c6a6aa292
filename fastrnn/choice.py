"""What "auto" knows of the kernels for GPUs: where they were tried, and where they are faster.

Both tables hold what was measured and nothing else. Until a GPU has filled them, "auto" takes
PyTorch's own kernels for all that these can do, and the reference for the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Backends whose every test has passed on a GPU (`make gpu`). No other is taken unless forced.
TRIED: frozenset[str] = frozenset()


class Row(NamedTuple):
    """Calls in which a backend was faster than PyTorch's own kernels. Bounds are inclusive."""

    backend: str  # "cuda" or "triton"
    major: int  # of the GPU's compute capability
    cells: frozenset[str]
    dtypes: frozenset[torch.dtype]
    training: bool  # whether gradients are wanted
    packed: bool
    layers: tuple[int, int]
    batch: tuple[int, int]
    hidden: tuple[int, int]


FASTER: tuple[Row, ...] = ()


def faster(
    backend: str,
    major: int,
    cell: str,
    dtype: torch.dtype,
    training: bool,
    packed: bool,
    layers: int,
    batch: int,
    hidden: int,
) -> bool:
    """Whether a row says so of this call."""
    return any(
        row[:2] == (backend, major)
        and (row.training, row.packed) == (training, packed)
        and cell in row.cells
        and dtype in row.dtypes
        and row.layers[0] <= layers <= row.layers[1]
        and row.batch[0] <= batch <= row.batch[1]
        and row.hidden[0] <= hidden <= row.hidden[1]
        for row in FASTER
    )
