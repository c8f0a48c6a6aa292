"""The table of cells: what everything but the arithmetic itself must know of each.

The arithmetic of a cell stands once in each language, under the cell's name: in `csrc/cells.h`, in
`dispatch/triton/cells.py` and in `dispatch/reference/definition.py`. Tests hold these against the
table. Cells that users make of functions join it while a process runs: see `programs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .base import RNNBase


class Cell(NamedTuple):
    """A cell. G gates, S saved planes; a plane holds one number for each hidden unit."""

    name: str
    gates: int  # G, planes of the weights, in the order of `torch.nn`
    saved: int  # S, planes that forward saves for backward
    keeps: str  # the states that a unit carries unrounded from step to step: "c", "h", both or ""
    split: bool  # whether the gradients of the input part and of the hidden part differ
    hidden_gates: int  # planes of w_hh; G is those of w_ih
    own: int = 0  # K, planes of c, which lie one after the other
    params: int = 0  # what a unit has besides weights of products and states
    second: int = 0  # of hidden_gates, the last ones: products of what the step makes, not of h
    output: int = 0  # which state is the output: 0 for h, k for plane k - 1 of c
    # step(x, u, h, c, *params, product) -> (h, c): the definition of a cell that a user made, where
    # product(v) is that of the last hidden gates; see `programs`
    step: Callable | None = None

    @property
    def has_c(self) -> bool:
        """Whether there is a cell state c beside h. Among the built-in cells only these can have a
        projection."""
        return self.own > 0

    def keeps_hidden(self, projected: bool) -> bool:
        """Whether h of every step is saved beside the output."""
        return projected or self.output > 0


CELLS = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, 4, "c", False, hidden_gates=4, own=1),
        Cell("gru", 3, 4, "h", True, hidden_gates=3),
        Cell("rnn_tanh", 1, 0, "", False, hidden_gates=1),
        Cell("rnn_relu", 1, 0, "", False, hidden_gates=1),
    )
}
_MADE: dict[str, Cell] = {}  # by users


def add(cell: Cell) -> None:
    """Has the table know a cell of a user's. One of the same name does the same, but its function
    may be of no use any more, as in a notebook whose variables were reset. So the last one counts.
    """
    _MADE[cell.name] = cell


_NAMES = {
    (bias, projected): "w_ih w_hh" + " b_ih b_hh" * bias + " w_hr" * projected
    for bias in (False, True)
    for projected in (False, True)
}


RNNS = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}  # the cell of an RNN by its `mode`

# How `torch.nn` calls the parameters; what follows names the layer and the direction.
PARAMETERS = {
    "w_ih": "weight_ih",
    "w_hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "w_hr": "weight_hr",
}


def weight_names(bias: bool, projected: bool) -> str:
    """The names of a direction's weights in the order of `torch.nn`, with a space between them."""
    return _NAMES[bool(bias), projected]


def parameter(names: str, k: int, suffix: str = "") -> str:
    """The name in `torch.nn` of a layer's k-th weight, with `suffix`, "_l0" of the first layer."""
    of = names.split()
    name = of[k % len(of)]
    own = name.removeprefix("p_") if suffix else name  # of the module, and of the op
    return PARAMETERS.get(name, own) + suffix + ("_reverse" if k >= len(of) else "")


def weight_shapes(kind: Cell, I: int, H: int, P: int) -> dict[str, tuple[int, ...]]:
    """The shape of a weight by its name."""
    X, U = kind.gates * H, kind.hidden_gates * H
    return {"w_ih": (X, I), "w_hh": (U, P), "b_ih": (X,), "b_hh": (U,), "w_hr": (P, H)}


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


def cell_of(module: RNNBase) -> str:
    """The name of a layer's cell; AssertionError for an RNN of another mode than its two."""
    try:
        return module._cell_ or RNNS[module.mode]
    except (KeyError, TypeError):
        message = f"mode must be RNN_TANH or RNN_RELU, got {module.mode}"
        raise AssertionError(message) from None


def cell_named(name: str) -> Cell:
    """The cell. Raises RuntimeError if there is none of this name."""
    cell = CELLS.get(name) or _MADE.get(name)
    if cell is None:
        hint = ": make its `Cell` first" if name.startswith("cell_") else ""
        raise RuntimeError(f"unknown cell '{name}'. Select from {', '.join(CELLS)}{hint}")
    return cell
