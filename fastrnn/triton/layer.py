"""The three ops on Triton kernels: one product for the inputs, the loop over time, and, backward,
one product each for the gradients of the input and of every weight.

Signatures and results are those of `reference_ops`, and all raise RuntimeError where it does
and for dtypes that the kernels do not take. The products are torch's, with TF32 where its setting
says so. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference, reference_ops
from .backward import backward
from .cells import CELLS
from .forward import forward
from .launch import launch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous and aligned to 16 bytes: what is compiled for one call then serves all."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


class _Layer:
    """The arguments of a call: checked, dense, the weights stacked over directions."""

    def __init__(self, input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths):
        self.size = size = reference.sizes(
            input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths
        )
        if lengths is not None and lengths.is_cpu:
            reference_ops.check_lengths(lengths, size.T)
        if input.dtype not in DTYPES:
            raise RuntimeError(
                f"the Triton kernels take float16, bfloat16 and float32, got {input.dtype}"
            )
        for tensor in (h0, c0, *weights):
            if tensor is not None and (tensor.dtype, tensor.device) != (input.dtype, input.device):
                raise RuntimeError("input, hx and weights must share one dtype and one device")
        self.cell, self.input = CELLS[cell], _dense(input)
        self.h0, self.c0 = _dense(h0), _dense(c0)
        D, k = size.D, size.per_direction
        stacks = [weights[i : i + 1] if D == 1 else (weights[i], weights[i + k]) for i in range(k)]
        stacked = [_dense(w[0][None]) if D == 1 else torch.stack(w) for w in stacks]
        self.w_ih, self.w_hh = stacked[0].flatten(0, 1), stacked[1]
        self.b_ih, self.b_hh = (stacked[2].flatten(), stacked[3]) if bias else (None, None)
        self.w_hr = stacked[-1] if k % 2 else None
        self.reset, self.lengths, self.offsets = _dense(reset), _dense(lengths), None
        self.earlier = slice(0, size.rows - size.N)
        if batch_sizes is not None:
            self._pack(batch_sizes)
        elif size.T == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    def _pack(self, batch_sizes: Tensor) -> None:
        """Packed rows as rows of given lengths. Sorted by them, so counted by the batch sizes."""
        size = self.size
        steps = torch.tensor(reference._step_sizes(size, batch_sizes))
        lengths = (steps > torch.arange(size.N)[:, None]).sum(1)
        earlier = torch.arange(size.N, size.rows) - steps[:-1].repeat_interleave(steps[1:])
        packed = (lengths, steps.cumsum(0) - steps, earlier)
        if self.input.is_cuda:
            packed = (t.pin_memory().to(self.input.device, non_blocking=True) for t in packed)
        self.lengths, self.offsets, self.earlier = packed

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


def _forward(call: _Layer, save: bool) -> tuple[Tensor | None, ...]:
    """(output, h_n, c_n, gates, cells, hidden); the last three are None where not saved."""
    size, cell = call.size, call.cell
    D, N, H, P, rows = size.D, size.N, size.H, size.P, size.rows
    projected = call.w_hr is not None
    x = call.input.reshape(rows, call.input.size(-1))
    if call.b_ih is None:
        x = torch.mm(x, call.w_ih.t())
    else:
        x = torch.addmm(call.b_ih, x, call.w_ih.t())
    kept = {"c": call.c0, "h": call.h0, "": None}[cell.keeps]
    kept = None if kept is None else kept.to(torch.float32, copy=True)
    tensors = {
        "x": x,
        "w_hh": call.w_hh,
        "b_hh": call.b_hh,
        "w_hr": call.w_hr,
        "h": torch.stack((call.h0, call.h0)),
        "kept": kept,
        "y": call.matrix(rows, D * P),
        "h_n": call.h0.clone(),
        "m": x.new_empty(D, N, H) if projected else None,
        "gates": call.matrix(D, rows, cell.saved, H) if save and cell.saved else None,
        "cells": call.matrix(D, rows, H) if save and cell.keeps == "c" else None,
        "hidden": call.matrix(D, rows, H) if save and projected else None,
        "lengths": call.lengths,
        "offsets": call.offsets,
        "reset": call.reset,
    }
    launch(forward, cell, size, tensors, {})
    y = tensors["y"]
    y = y if call.offsets is not None else y.view(size.T, N, D * P)
    c_n = kept.to(y.dtype) if cell.keeps == "c" else y.new_empty(0)
    return y, tensors["h_n"], c_n, tensors["gates"], tensors["cells"], tensors["hidden"]


def layer_inference(
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
    return _forward(call, save=False)[:3]


def layer_forward(
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
    y, h_n, c_n, gates, cells, hidden = _forward(call, save=True)
    if gates is None:
        gates = y.new_empty(call.size.D, call.size.rows, 0, call.size.H)
    empty = [y.new_empty(0) if t is None else t for t in (cells, hidden)]
    return y, h_n, c_n, gates, *empty


def layer_backward(
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
        d_kept = torch.zeros(D, N, H, dtype=torch.float32, device=input.device)
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
    limits = {"detach_every": detach_every, "grad_clip": float(grad_clip), "CLIP": grad_clip > 0}
    launch(backward, kind, size, tensors, limits)
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
        grads += [dx.sum(0), du.sum(0)]
    return grads
