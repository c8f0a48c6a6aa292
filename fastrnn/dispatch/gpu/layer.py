"""A layer on a GPU: one product for the inputs, the loop over time, and, backward, one product each
for the gradients of the input and of every weight.

The products are torch's, with TF32 where its settings say so. The loop comes from a backend, see
`Loops`. Everything raises RuntimeError where the reference does. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...call import Call, Sizes, check_lengths
from ...results import Cotangents, Gradients, Needs, Results, Saved
from ...table import Cell
from .packing import packing

Tensors = dict[str, Tensor | None]


class Loops(Protocol):
    """The loops over time of a backend. Tensors are dense, aligned to 16 bytes and on one device.

    Of the input's dtype, or, `kept` and `d_kept`, float32, float64 where that is the input's. None
    stands for what the cell or the call does not have. T, N, D, H, P, rows: `call.Sizes`.
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
    """A call: checked, dense, its weights stacked over directions."""

    def __init__(self, call: Call):
        self.size = size = call.sizes()
        call.check_alike()
        if call.lengths is not None and call.lengths.is_cpu:
            check_lengths(call.lengths, size.T)
        self.cell, self.input = call.kind, _dense(call.input)
        self.h0, self.c0 = _dense(call.h0), _dense(call.c0)
        first, *others = call.by_name()
        if others:
            weights = {name: torch.stack((w, others[0][name])) for name, w in first.items()}
        else:
            weights = {name: _dense(w) for name, w in first.items()}
        D, G = size.D, self.cell.gates
        self.w_ih = weights["w_ih"].view(D * G * size.H, size.I)
        self.w_hh = weights["w_hh"].view(D, G * size.H, size.P)
        self.b_ih, self.b_hh = weights.get("b_ih"), weights.get("b_hh")
        if self.b_ih is not None:
            self.b_ih = self.b_ih.flatten()
        self.w_hr = weights["w_hr"].view(D, size.P, size.H) if call.projected else None
        self.reset, self.lengths, self.offsets = _dense(call.reset), _dense(call.lengths), None
        self.earlier = slice(0, size.rows - size.N)
        steps = call.steps(size)
        if call.batch_sizes is not None:
            self.lengths, self.offsets, self.earlier = packing(steps, call.input.device)

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


def run(loops: Loops, call: Call, save: bool) -> Results:
    """As `dispatch.Backend.run`, without gradients, on a backend's loops."""
    layer = _Layer(call)
    size, cell = layer.size, layer.cell
    D, H, P, rows = size.D, size.H, size.P, size.rows
    x = F.linear(layer.input.reshape(rows, size.I), layer.w_ih, layer.b_ih)
    kept = {"c": layer.c0, "h": layer.h0, "": None}[cell.keeps]
    kept = None if kept is None else kept.to(_kept_dtype(x), copy=True)
    tensors = {
        "x": x,
        "w_hh": layer.w_hh,
        "b_hh": layer.b_hh,
        "w_hr": layer.w_hr,
        "kept": kept,
        "y": layer.matrix(rows, D * P),
        "h_n": layer.h0.clone(),
        "gates": layer.matrix(D, rows, cell.saved, H) if save and cell.saved else None,
        "cells": layer.matrix(D, rows, H) if save and cell.has_c else None,
        "hidden": layer.matrix(D, rows, H) if save and call.projected else None,
        "lengths": layer.lengths,
        "offsets": layer.offsets,
        "reset": layer.reset,
    }
    loops.forward(cell, size, tensors)
    y = tensors["y"].view(call.output_shape(size))
    c_n = kept.to(y.dtype) if cell.has_c else y.new_empty(0)
    if not save:
        return Results(y, tensors["h_n"], c_n)
    gates = tensors["gates"]
    if gates is None:
        gates = y.new_empty(D, rows, 0, H)
    cells, hidden = (y.new_empty(0) if tensors[k] is None else tensors[k] for k in _SAVED)
    return Results(y, tensors["h_n"], c_n, gates, cells, hidden)


_SAVED = ("cells", "hidden")


def run_backward(
    loops: Loops, call: Call, cotangents: Cotangents, saved: Saved, needs: Needs
) -> Gradients:
    """As `dispatch.Backend.run_backward`, on a backend's loops."""
    layer = _Layer(call)
    input, size, cell = call.input, layer.size, layer.cell
    D, N, H, P, rows, G = size.D, size.N, size.H, size.P, size.rows, cell.gates
    d_kept = None
    if cell.keeps:
        d_kept = torch.zeros(D, N, H, dtype=_kept_dtype(input), device=input.device)
        if cell.has_c and cotangents.c_n is not None:
            d_kept.copy_(cotangents.c_n)
    du = layer.matrix(rows, D, G * H)
    dx = layer.matrix(rows, D, G * H) if cell.split else du
    d_state = layer.matrix(rows, D, P) if call.projected else None
    y = _dense(saved.output).view(rows, D, P)
    tensors = {
        "dy": _dense(cotangents.output),
        "dh_n": _dense(cotangents.h_n),
        "d_cells": _dense(cotangents.cells),
        "d_kept": d_kept,
        "w_hh": layer.w_hh,
        "w_hr": layer.w_hr,
        "h0": layer.h0,
        "c0": layer.c0,
        "y": y,
        "gates": _dense(saved.gates),
        "cells": _dense(saved.cells) if cell.has_c else None,
        "dx": dx if cell.split else None,
        "du": du,
        "d_state": d_state,
        "lengths": layer.lengths,
        "offsets": layer.offsets,
        "reset": layer.reset,
    }
    loops.backward(cell, size, tensors, call.detach_every, call.grad_clip)
    grad_input = grad_h0 = grad_c0 = input.new_empty(0)
    grad_weights: list[Tensor] = []
    if needs.input:
        grad_input = torch.mm(dx.flatten(1), layer.w_ih).view(input.shape)
    if needs.state:
        grad_h0 = _state_gradient(layer, du, d_kept, cotangents.h_n, call.grad_clip)
        grad_c0 = d_kept.to(input.dtype) if cell.has_c else grad_c0
    if needs.weights:
        for d in range(D):
            grads = _weight_gradients(layer, d, dx[:, d], du[:, d], y[:, d])
            if call.projected:
                grads["w_hr"] = torch.mm(d_state[:, d].t(), saved.hidden[d])
            grad_weights += [grads[name] for name in call.names.split()]
    return Gradients(grad_input, grad_h0, grad_c0, grad_weights)


def _state_gradient(
    layer: _Layer, du: Tensor, d_kept: Tensor | None, grad_h_n: Tensor | None, grad_clip: float
) -> Tensor:
    """Gradient of h0 (D, N, P): what the first step of each row sends back."""
    grad = torch.bmm(
        torch.stack([layer.first(d, du[:, d]) for d in range(layer.size.D)]),
        layer.w_hh.flatten(1, -2),
    )
    if layer.cell.keeps == "h":
        grad = grad + d_kept
    if grad_clip:
        grad = grad.clamp(-grad_clip, grad_clip)
    if layer.lengths is not None and grad_h_n is not None:
        grad = torch.where((layer.lengths == 0)[:, None], grad_h_n, grad)
    return grad.to(du.dtype)


def _weight_gradients(
    layer: _Layer, d: int, dx: Tensor, du: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Gradients of w_ih, w_hh and the biases of direction d; dx, du (rows, G*H), y (rows, P)."""

    def pick(matrix: Tensor) -> Tensor:
        if isinstance(layer.earlier, slice):
            return matrix[layer.earlier]
        return matrix.index_select(0, layer.earlier)

    # Rows after the first step of padded or packed input, against the rows one step before.
    N = layer.size.N
    after, before = (du[N:], pick(y)) if d == 0 else (pick(du), y[N:])
    if layer.reset is not None:
        before = before.masked_fill(layer.reset.flatten()[N:, None], 0)
    # The short sum, of the first steps, is rounded once more than the long one that is added to it.
    w_hh = torch.mm(layer.first(d, du).t(), layer.h0[d])
    grads = {
        "w_ih": torch.mm(dx.t(), layer.input.reshape(len(dx), layer.size.I)),
        "w_hh": torch.addmm(w_hh, after.t(), before),
    }
    if layer.b_ih is not None:
        grads["b_hh"] = b_hh = du.sum(0)
        grads["b_ih"] = dx.sum(0) if layer.cell.split else b_hh.clone()
    return grads
