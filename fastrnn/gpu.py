"""The three ops for GPUs: one product for the inputs, the loop over time, and, backward, one
product each for the gradients of the input and of every weight.

The products are torch's, with TF32 where its settings say so. The loop comes from a backend, see
`Loops`. Signatures, but for the loops in front, and results are those of `reference_ops`, and all
raise RuntimeError where it does. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference, reference_ops
from .packing import packing
from .reference import Sizes


class Cell(NamedTuple):
    """What the host must know of a cell; its arithmetic is in each backend's own language."""

    name: str
    gates: int  # G
    saved: int  # S, planes that forward saves for backward
    keeps: str  # what a unit keeps for itself, unrounded, from step to step: "c", "h" or ""
    split: bool  # whether the gradients of its input part and of its hidden part differ


CELLS = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, 4, "c", False),
        Cell("gru", 3, 4, "h", True),
        Cell("rnn_tanh", 1, 0, "", False),
        Cell("rnn_relu", 1, 0, "", False),
    )
}

Tensors = dict[str, Tensor | None]


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor is where kernels for GPUs, ours or PyTorch's, may take it."""
    return not (tensor.is_cpu or tensor.is_meta)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device, for which PyTorch takes 3 us each time."""
    return torch.cuda.get_device_capability(device)


def precision(dtype: torch.dtype) -> str:
    """How products are made: in the dtype, or "tf32" where torch's own of float32 are."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


class Loops(Protocol):
    """The loops over time of a backend. Tensors are dense, aligned to 16 bytes and on one device.

    Of the input's dtype, or, `kept` and `d_kept`, float32, float64 where that is the input's. None
    stands for what the cell or the call does not have. T, N, D, H, P, rows: `reference.Sizes`.
    """

    @staticmethod
    def forward(cell: Cell, size: Sizes, tensors: Tensors) -> None:
        """Reads x [rows, D, G, H], the input part of the pre-activations with b_ih; w_hh [D, G, H,
        P]; b_hh [D, G, H]; w_hr [D, P, H]; lengths [N] int64, offsets [T] int64, the first row of
        each step of packed input, and reset [T, N] bool.

        Writes y [rows, D, P]; h_n [D, N, P], in which h0 stands before; kept [D, N, H], the initial
        state that the cell keeps and then the final one; where they are wanted gates [D, rows, S,
        H], cells [D, rows, H] and hidden [D, rows, H]. Rows without a step stay as they were.
        """

    @staticmethod
    def backward(
        cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
    ) -> None:
        """Reads dy [rows, D, P], dh_n [D, N, P] and d_cells [D, rows, H], None if zero; w_hh, w_hr,
        lengths, offsets, reset; h0, c0, y, gates and cells of the forward call.

        Writes du [rows, D, G, H], dx [rows, D, G, H] if `cell.split`, d_state [rows, D, P], the
        complete gradient of each h of a projected layer; and d_kept [D, N, H], in which the
        gradient of the final state stands before and that of the initial one, without what goes
        through w_hh, after.
        """


def _dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous and aligned to 16 bytes: what is compiled for one call then serves all. And as the
    numbers are, not stored negated as those of a conjugate's imaginary part."""
    if tensor is None:
        return None
    tensor = tensor.resolve_neg().contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


class _Layer:
    """The arguments of a call: checked, dense, the weights stacked over directions."""

    def __init__(self, input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths):
        self.size = size = reference.sizes(
            input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths
        )
        if lengths is not None and lengths.is_cpu:
            reference_ops.check_lengths(lengths, size.T)
        for tensor in (h0, c0, *weights):
            if tensor is not None and (tensor.dtype, tensor.device) != (input.dtype, input.device):
                raise RuntimeError("input, hx and weights must share one dtype and one device")
        self.cell, self.input = CELLS[cell], _dense(input)
        self.h0, self.c0 = _dense(h0), _dense(c0)
        D, k = size.D, size.per_direction
        if D == 1:
            weights = [_dense(w) for w in weights]
        else:
            weights = [torch.stack((weights[i], weights[i + k])) for i in range(k)]
            weights[0] = weights[0].flatten(0, 1)
            if bias:
                weights[2] = weights[2].flatten()
        self.w_ih = weights[0]
        self.w_hh = weights[1].view(D, self.cell.gates * size.H, size.P)
        self.b_ih, self.b_hh = weights[2:4] if bias else (None, None)
        self.w_hr = weights[-1].view(D, size.P, size.H) if k % 2 else None
        self.reset, self.lengths, self.offsets = _dense(reset), _dense(lengths), None
        self.earlier = slice(0, size.rows - size.N)
        if batch_sizes is not None:
            steps = reference._step_sizes(size, batch_sizes)
            self.lengths, self.offsets, self.earlier = packing(steps, input.device)
        elif size.T == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    def matrix(self, *shape: int) -> Tensor:
        """For results of the loop, which leaves what is past the end of a padded row: zero."""
        ragged = self.lengths is not None and self.offsets is None
        return (self.input.new_zeros if ragged else self.input.new_empty)(shape)

    def first(self, d: int, matrix: Tensor) -> Tensor:
        """What a (rows, ...) matrix holds of the first step of each batch row; 0 without one."""
        N = self.size.N
        if d == 0:
            values = matrix[:N]
        elif self.lengths is None:
            values = matrix[self.size.rows - N :]
        else:
            step = (self.lengths - 1).clamp(0, self.size.T - 1)
            offset = step * N if self.offsets is None else self.offsets[step]
            values = matrix.index_select(0, offset + torch.arange(N, device=offset.device))
        alive = None
        if self.lengths is not None:
            alive = self.lengths > 0
        if self.reset is not None:
            alive = ~self.reset[0] if alive is None else alive & ~self.reset[0]
        return values if alive is None else torch.where(alive[:, None], values, 0)


def _kept_dtype(input: Tensor) -> torch.dtype:
    """Of what a unit keeps from step to step, which is not rounded to a short dtype."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _forward(loops: Loops, call: _Layer, save: bool) -> tuple[Tensor | None, ...]:
    """(output, h_n, c_n, gates, cells, hidden); the last three are None where not saved."""
    size, cell = call.size, call.cell
    D, N, H, P, rows = size.D, size.N, size.H, size.P, size.rows
    projected = call.w_hr is not None
    x = call.input.reshape(rows, call.input.size(-1))
    x = F.linear(x, call.w_ih, call.b_ih)
    kept = {"c": call.c0, "h": call.h0, "": None}[cell.keeps]
    kept = None if kept is None else kept.to(_kept_dtype(x), copy=True)
    tensors = {
        "x": x,
        "w_hh": call.w_hh,
        "b_hh": call.b_hh,
        "w_hr": call.w_hr,
        "kept": kept,
        "y": call.matrix(rows, D * P),
        "h_n": call.h0.clone(),
        "gates": call.matrix(D, rows, cell.saved, H) if save and cell.saved else None,
        "cells": call.matrix(D, rows, H) if save and cell.keeps == "c" else None,
        "hidden": call.matrix(D, rows, H) if save and projected else None,
        "lengths": call.lengths,
        "offsets": call.offsets,
        "reset": call.reset,
    }
    loops.forward(cell, size, tensors)
    y = tensors["y"]
    y = y if call.offsets is not None else y.view(size.T, N, D * P)
    c_n = kept.to(y.dtype) if cell.keeps == "c" else y.new_empty(0)
    return y, tensors["h_n"], c_n, tensors["gates"], tensors["cells"], tensors["hidden"]


def layer_inference(
    loops: Loops,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int = 0,
    grad_clip: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference_ops.layer_inference`."""
    call = _Layer(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    return _forward(loops, call, save=False)[:3]


def layer_forward(
    loops: Loops,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int = 0,
    grad_clip: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference_ops.layer_forward`."""
    call = _Layer(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    y, h_n, c_n, gates, cells, hidden = _forward(loops, call, save=True)
    if gates is None:
        gates = y.new_empty(call.size.D, call.size.rows, 0, call.size.H)
    empty = [y.new_empty(0) if t is None else t for t in (cells, hidden)]
    return y, h_n, c_n, gates, *empty


def layer_backward(
    loops: Loops,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    hidden: Tensor,
    cell: str,
    bias: bool,
    need_input: bool,
    need_state: bool,
    need_weights: bool,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int = 0,
    grad_clip: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """As `reference_ops.layer_backward`, from what `layer_forward` saved."""
    call = _Layer(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    size, kind = call.size, call.cell
    D, N, H, P, rows, G = size.D, size.N, size.H, size.P, size.rows, kind.gates
    d_kept = None
    if kind.keeps:
        d_kept = torch.zeros(D, N, H, dtype=_kept_dtype(input), device=input.device)
        if kind.keeps == "c" and grad_c_n is not None:
            d_kept.copy_(grad_c_n)
    du = call.matrix(rows, D, G * H)
    dx = call.matrix(rows, D, G * H) if kind.split else du
    d_state = None if call.w_hr is None else call.matrix(rows, D, P)
    y = _dense(output).view(rows, D, P)
    tensors = {
        "dy": _dense(grad_output),
        "dh_n": _dense(grad_h_n),
        "d_cells": _dense(grad_cells),
        "d_kept": d_kept,
        "w_hh": call.w_hh,
        "w_hr": call.w_hr,
        "h0": call.h0,
        "c0": call.c0,
        "y": y,
        "gates": _dense(gates),
        "cells": _dense(cells) if kind.keeps == "c" else None,
        "dx": dx if kind.split else None,
        "du": du,
        "d_state": d_state,
        "lengths": call.lengths,
        "offsets": call.offsets,
        "reset": call.reset,
    }
    loops.backward(kind, size, tensors, detach_every, grad_clip)
    grad_input = grad_h0 = grad_c0 = input.new_empty(0)
    grad_weights: list[Tensor] = []
    if need_input:
        grad_input = torch.mm(dx.flatten(1), call.w_ih).view(input.shape)
    if need_state:
        grad_h0 = _state_gradient(call, du, d_kept, grad_h_n, grad_clip)
        grad_c0 = d_kept.to(input.dtype) if kind.keeps == "c" else grad_c0
    if need_weights:
        for d in range(D):
            grad_weights += _weight_gradients(call, d, dx[:, d], du[:, d], y[:, d])
            if call.w_hr is not None:
                grad_weights.append(torch.mm(d_state[:, d].t(), hidden[d]))
    return grad_input, grad_h0, grad_c0, grad_weights


def _state_gradient(
    call: _Layer, du: Tensor, d_kept: Tensor | None, grad_h_n: Tensor | None, grad_clip: float
) -> Tensor:
    """Gradient of h0 (D, N, P): what the first step of each row sends back."""
    grad = torch.bmm(
        torch.stack([call.first(d, du[:, d]) for d in range(call.size.D)]), call.w_hh.flatten(1, -2)
    )
    if call.cell.keeps == "h":
        grad = grad + d_kept
    if grad_clip:
        grad = grad.clamp(-grad_clip, grad_clip)
    if call.lengths is not None and grad_h_n is not None:
        grad = torch.where((call.lengths == 0)[:, None], grad_h_n, grad)
    return grad.to(du.dtype)


def _weight_gradients(call: _Layer, d: int, dx: Tensor, du: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of w_ih, w_hh and the biases of direction d; dx, du (rows, G*H), y (rows, P)."""

    def pick(matrix: Tensor) -> Tensor:
        if isinstance(call.earlier, slice):
            return matrix[call.earlier]
        return matrix.index_select(0, call.earlier)

    # Rows after the first step of padded or packed input, against the rows one step before.
    N = call.size.N
    after, before = (du[N:], pick(y)) if d == 0 else (pick(du), y[N:])
    if call.reset is not None:
        before = before.masked_fill(call.reset.flatten()[N:, None], 0)
    # The short sum, of the first steps, is rounded once more than the long one that is added to it.
    w_hh = torch.mm(call.first(d, du).t(), call.h0[d])
    grads = [
        torch.mm(dx.t(), call.input.reshape(len(dx), call.input.size(-1))),
        torch.addmm(w_hh, after.t(), before),
    ]
    if call.b_ih is not None:
        b_hh = du.sum(0)
        grads += [dx.sum(0) if call.cell.split else b_hh.clone(), b_hh]
    return grads
