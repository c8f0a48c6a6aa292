"""The table of cells: what everything but the arithmetic itself must know of each.

The arithmetic of a cell stands once in each language, under the cell's name: in `csrc/cells.h`, in
`dispatch/triton/cells.py` and in `dispatch/reference/definition.py`. Tests hold these against the
table.
"""

from __future__ import annotations

from typing import NamedTuple


class Cell(NamedTuple):
    """A cell. G gates, S saved planes; a plane holds one number for each hidden unit."""

    name: str
    gates: int  # G, planes of the weights, in the order of `torch.nn`
    saved: int  # S, planes that forward saves for backward
    keeps: str  # what a unit keeps for itself, unrounded, from step to step: "c", "h" or ""
    split: bool  # whether the gradients of the input part and of the hidden part differ

    @property
    def has_c(self) -> bool:
        """Whether there is a cell state c beside h. Only such a cell can be projected."""
        return self.keeps == "c"


CELLS = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, 4, "c", False),
        Cell("gru", 3, 4, "h", True),
        Cell("rnn_tanh", 1, 0, "", False),
        Cell("rnn_relu", 1, 0, "", False),
    )
}


_NAMES = {
    (bias, projected): "w_ih w_hh" + " b_ih b_hh" * bias + " w_hr" * projected
    for bias in (False, True)
    for projected in (False, True)
}


def weight_names(bias: bool, projected: bool) -> str:
    """The names of a direction's weights in the order of `torch.nn`, with a space between them."""
    return _NAMES[bool(bias), projected]


def weight_shapes(kind: Cell, I: int, H: int, P: int) -> dict[str, tuple[int, ...]]:
    """The shape of a weight by its name."""
    GH = kind.gates * H
    return {"w_ih": (GH, I), "w_hh": (GH, P), "b_ih": (GH,), "b_hh": (GH,), "w_hr": (P, H)}


def names_in(cell: str, bias: bool, count: int) -> str:
    """The names of `count` weights of one direction.

    Raises:
        RuntimeError: the cell cannot take so many.
    """
    kind = cell_named(cell)
    names = weight_names(bias, False)
    if count == len(names.split()):
        return names
    names = weight_names(bias, True)
    if kind.has_c and count == len(names.split()):
        return names
    raise RuntimeError(f"{cell} with bias={bias} cannot take {count} weights in a direction")


def cell_named(name: str) -> Cell:
    """The cell. Raises RuntimeError if there is none of this name."""
    if name not in CELLS:
        raise RuntimeError(f"unknown cell '{name}'. Select from {', '.join(CELLS)}")
    return CELLS[name]
