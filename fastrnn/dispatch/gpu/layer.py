"""A layer on a GPU: one product for the inputs, the loop over time, and, backward, one product each
for the gradients of the input and of every weight.

The products are torch's, with TF32 where its settings say so. The loop comes from a backend, see
`Loops`; the backend "cuda" has all of this in C++, csrc/cuda/layer.cpp. Everything raises
RuntimeError where the reference does. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...call import Call, Sizes
from ...checks import check_lengths
from ...results import Cotangents, Gradients, Needs, Results, Saved
from ...table import Cell
from ..reference.definition import block_diagonal
from .gradients import part, shaped, state_gradient, weight_gradients
from .loops import Loops
from .packing import packing


def _dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous and aligned to 16 bytes: what is compiled for one call then serves all. And as the
    numbers are, not stored negated as those of a conjugate's imaginary part."""
    if tensor is None:
        return None
    if not tensor.is_contiguous() or tensor.is_neg():
        tensor = tensor.resolve_neg().contiguous()
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise RuntimeError("a tensor has no memory: its storage was freed")
    return tensor.clone() if address % 16 else tensor


class _Form(NamedTuple):
    """What follows from the names, shapes, dtypes, devices and layouts of a call alone."""

    size: Sizes
    cell: Cell
    wide: torch.dtype  # of what a unit keeps from step to step, which is not rounded to a short one
    output: tuple[int, ...]  # shape


def checked(call: Call) -> Sizes:
    """The sizes of a call. Raises RuntimeError where the reference does."""
    if call.input.is_nested:  # has no shape
        call.check_alike()
    size = call.sizes()
    call.check_alike()
    if call.batch_sizes is None:
        call.steps(size)  # that there are any
    return size


LIMIT = 256  # forms remembered

# Threads that miss the same form make two that are equal.
_forms: dict[tuple, _Form] = {}


def _form(call: Call) -> _Form:
    """The form of a call. One that was seen before is checked by being equal."""
    input, batch_sizes, h0, c0, weights, cell, names, reset, lengths, *_ = call
    tensors = (input, batch_sizes, h0, c0, reset, lengths, *weights)
    if input.is_nested:
        checked(call)
    key = (
        cell,
        names,
        *[t if t is None else (t.shape, t.dtype, t.device, t.layout) for t in tensors],
    )
    form = _forms.get(key)
    if form is None:
        size = checked(call)
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        form = _Form(size, call.kind, wide, call.output_shape(size))
        if len(_forms) >= LIMIT:
            _forms.clear()
        _forms[key] = form
    return form


class Layer:
    """A call: checked and dense. Matrices of two directions are one below the other."""

    def __init__(self, call: Call):
        self.form = form = _form(call)
        self.size, self.cell = size, cell = form[:2]
        if call.lengths is not None and call.lengths.is_cpu:
            check_lengths(call.lengths, size.T)
        input, weights = _dense(call.input), call.weights
        self.input = input.view(size.rows, size.I) if call.batch_sizes is None else input
        self.h0, self.c0 = _dense(call.h0), _dense(call.c0)
        self.params: list[Tensor] = []
        if cell.step is not None:
            weights = self._apart(call)
        if size.D == 1:
            self.w_ih, self.w_hh, *others = map(_dense, weights)
        else:
            pairs = zip(weights[: len(weights) // 2], weights[len(weights) // 2 :], strict=True)
            self.w_ih, self.w_hh, *others = map(torch.cat, pairs)
        self.w_hr = others.pop() if call.projected else None
        self.b_ih, self.b_hh = others or (None, None)
        self.reset, self.lengths, self.offsets = _dense(call.reset), _dense(call.lengths), None
        self.earlier = slice(0, size.rows - size.N)
        self.ragged = call.lengths is not None  # whether rows of the input are past an end
        if call.batch_sizes is not None:
            device = input.device
            self.lengths, self.offsets, self.earlier = packing(call.steps(size), device)

    def _apart(self, call: Call) -> list[Tensor]:
        """The weights without the parameters of a cell that is a function; heads as one matrix."""
        names = [name for name in call.names.split() if not name.startswith("p_")]
        directions = call.by_name()
        for name in call.names.split()[len(names) :]:
            each = [w[name] if w[name].dim() == 1 else w[name].flatten(0, -2) for w in directions]
            self.params.append(torch.stack(each))
        for w in directions:
            w["w_hh"] = block_diagonal(w["w_hh"], self.size.P)
        return [w[name] for w in directions for name in names]

    def matrix(self, *shape: int) -> Tensor:
        """For results of the loop, which leaves what is past the end of a padded row: zero."""
        return (self.input.new_zeros if self.ragged else self.input.new_empty)(shape)

    def initial(self, state: Tensor, wide: bool) -> Tensor:
        """A state as a loop may overwrite it."""
        dtype = self.form.wide if wide else state.dtype
        return state.clone() if state.dtype is dtype else state.to(dtype)

    def kept(self, h: Tensor, c: Tensor | None) -> Tensor | None:
        """What the cell keeps of a state, as a loop may overwrite it."""
        states = [h] * ("h" in self.cell.keeps) + [c] * self.cell.has_c
        if len(states) == 2:
            return torch.cat(states, -1).to(self.form.wide)
        return self.initial(states[0], wide=True) if states else None

    def own(self, kept: Tensor | None) -> Tensor:
        """c of what was kept; (0,) of a cell that has none."""
        if not self.cell.has_c:
            return self.input.new_empty(0)
        c = kept[..., self.size.H :] if "h" in self.cell.keeps else kept
        return c.to(self.input.dtype).contiguous()

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


def run(loops: Loops, call: Call, save: bool) -> Results:
    """As `dispatch.Backend.run`, without gradients, on a backend's loops."""
    layer = Layer(call)
    size, cell, h0 = layer.size, layer.cell, layer.h0
    D, H, rows = size.D, size.H, size.rows
    gates = cells = hidden = None
    kept = layer.kept(h0, layer.c0)
    # Where every row has a step, each element is written.
    h_n = layer.initial(h0, wide=False) if layer.ragged else torch.empty_like(h0)
    y = layer.matrix(*layer.form.output)
    if save:
        gates = layer.matrix(D, rows, cell.saved, H) if cell.saved else None
        cells = layer.matrix(D, rows, cell.own * H) if cell.has_c else None
        hidden = layer.matrix(D, rows, H) if cell.keeps_hidden(call.projected) else None
    tensors = {
        "x": F.linear(layer.input, layer.w_ih, layer.b_ih),
        "w_hh": layer.w_hh,
        "b_hh": layer.b_hh,
        "w_hr": layer.w_hr,
        "h0": h0,
        "kept": kept,
        "y": y,
        "h_n": h_n,
        "gates": gates,
        "cells": cells,
        "hidden": hidden,
        "lengths": layer.lengths,
        "offsets": layer.offsets,
        "reset": layer.reset,
    }
    if layer.params:
        tensors["params"] = layer.params
    loops.forward(cell, size, tensors)
    c_n = layer.own(kept)
    if not save:
        return Results(y, h_n, c_n)
    if gates is None:
        gates = y.new_empty(D, rows, 0, H)
    cells, hidden = (y.new_empty(0) if each is None else each for each in (cells, hidden))
    return Results(y, h_n, c_n, gates, cells, hidden)


def run_backward(
    loops: Loops, call: Call, cotangents: Cotangents, saved: Saved, needs: Needs
) -> Gradients:
    """As `dispatch.Backend.run_backward`, on a backend's loops."""
    layer = Layer(call)
    input, size, cell = call.input, layer.size, layer.cell
    D, N, H, P, rows = size.D, size.N, size.H, size.P, size.rows
    d_kept = None
    if cell.has_c and cotangents.c_n is not None:
        zero = torch.zeros_like(layer.h0) if "h" in cell.keeps else layer.h0
        d_kept = layer.kept(zero, _dense(cotangents.c_n))
    elif cell.keeps:
        planes = ("h" in cell.keeps) + cell.own
        d_kept = input.new_zeros((D, N, planes * H), dtype=layer.form.wide)
    du = layer.matrix(rows, D * cell.hidden_gates * H)
    dx = layer.matrix(rows, D * cell.gates * H) if cell.split else du
    d_state = layer.matrix(rows, D * P) if call.projected else None
    saved = saved.filled()
    y = _dense(saved.output)
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
    if cell.step is not None and cell.keeps_hidden(call.projected):
        tensors["hidden"] = _dense(saved.hidden)
        tensors["d_hidden"] = _dense(cotangents.hidden)
    if layer.params:
        tensors["params"] = layer.params
    d_params = loops.backward(cell, size, tensors, call.detach_every, call.grad_clip)
    grad_input = grad_h0 = grad_c0 = input.new_empty(0)
    grad_weights: list[Tensor] = []
    if needs.input:
        grad_input = torch.mm(dx, layer.w_ih).view(input.shape)
    if needs.state:
        grad_h0 = state_gradient(layer, du, d_kept, cotangents.h_n, call.grad_clip)
        grad_c0 = layer.own(d_kept)
    if needs.weights:
        y = y.view(rows, D * P)
        for d in range(D):
            h = saved.hidden[d] if cell.output else part(y, d, D)
            grads = weight_gradients(layer, d, part(dx, d, D), part(du, d, D), h, saved.gates)
            if call.projected:
                grads.append(torch.mm(part(d_state, d, D).t(), saved.hidden[d]))
            if layer.params:
                grads += [g[d] for g in d_params]
            grad_weights += grads
        if cell.step is not None:
            grad_weights = list(map(shaped, grad_weights, call.weights))
    return Gradients(grad_input, grad_h0, grad_c0, grad_weights)
