"""What a backend for GPUs brings: the loops over time, forward and backward."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...call import Sizes
from ...table import Cell

Tensors = dict[str, Tensor | None]


class Loops(Protocol):
    """The loops over time of a backend. Tensors are dense, aligned to 16 bytes and on one device.
    Shapes say how the numbers lie; a tensor may fold some of its dimensions into one.

    Of the input's dtype, or, `kept` and `d_kept`, float32, float64 where that is the input's. None
    stands for what the cell or the call does not have. T, N, D, H, P, rows: `call.Sizes`; G, U, S,
    K: gates, hidden_gates, saved and own of the cell; B: planes that it keeps, h and then those of
    c. Only where cells are functions U is not G, K and B can be above 1, and there is more:
    `params`, a list of [D, H], [D, rows, H] or [D, rows, 1], and backward, where y is not what the
    cell calls h, `hidden` and its gradient `d_hidden`, None if zero.
    """

    @staticmethod
    def forward(cell: Cell, size: Sizes, tensors: Tensors) -> None:
        """Reads x [rows, D, G, H], the input part of the pre-activations with b_ih; w_hh [D, U, H,
        P]; b_hh [D, U, H]; w_hr [D, P, H]; h0 [D, N, P]; lengths [N] int64, offsets [T] int64, the
        first row of each step of packed input, and reset [T, N] bool.

        Writes y [rows, D, P]; h_n [D, N, P]; kept [D, N, B, H], the initial states that the cell
        keeps and then the final ones; where they are wanted gates [D, rows, S, H], cells [D, rows,
        K, H] and hidden [D, rows, H]. Rows without a step stay as they were.
        """

    @staticmethod
    def backward(
        cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
    ) -> list[Tensor] | None:
        """Reads dy [rows, D, P], dh_n [D, N, P] and d_cells [D, rows, K, H], None if zero; w_hh,
        w_hr, lengths, offsets, reset; h0, c0, y, gates and cells of the forward call.

        Writes du [rows, D, U, H], dx [rows, D, G, H] if `cell.split`, d_state [rows, D, P], the
        complete gradient of each h of a projected layer; and d_kept [D, N, B, H], in which
        the gradients of the final states stand before and those of the initial ones, without what
        goes through w_hh, after. Returns the gradients of `params`, if there are any.
        """
