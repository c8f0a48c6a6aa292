"""What backward makes of what its loop over time gave: gradients of states and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layer import Layer


def shaped(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a weight in its shape; of w_hh with heads the blocks of the diagonal."""
    if grad.numel() == weight.numel():
        return grad.view(weight.shape)
    width = weight.size(-1)
    blocks = grad.unflatten(0, (-1, grad.size(-1) // width, width)).unflatten(-1, (-1, width))
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1).reshape(weight.shape)


def part(matrix: Tensor, d: int, D: int) -> Tensor:
    """The columns of direction d."""
    return matrix if D == 1 else matrix.chunk(D, 1)[d]


def of_state(layer: Layer, hidden: Tensor, dim: int) -> Tensor:
    """Of what a direction has for each hidden gate along `dim`, that of gates which see h."""
    return hidden.narrow(dim, 0, (layer.cell.hidden_gates - layer.cell.second) * layer.size.H)


def state_gradient(
    layer: Layer, du: Tensor, d_kept: Tensor | None, grad_h_n: Tensor | None, grad_clip: float
) -> Tensor:
    """Gradient of h0 (D, N, P): what the first step of each row sends back."""
    D, N, P = layer.size.D, layer.size.N, layer.size.P
    weights = layer.w_hh.chunk(D)
    grads = [
        torch.mm(layer.first(d, of_state(layer, part(du, d, D), 1)), of_state(layer, weights[d], 0))
        for d in range(D)
    ]
    grad = grads[0].view(D, N, P) if D == 1 else torch.stack(grads)
    if "h" in layer.cell.keeps:
        grad = grad + d_kept[..., : layer.size.H]
    return of_h0(grad, grad_h_n, layer.lengths, grad_clip).to(du.dtype)


def of_h0(
    grad: Tensor, grad_h_n: Tensor | None, lengths: Tensor | None, grad_clip: float
) -> Tensor:
    """The gradient of h0 of what the first steps send back, which it may overwrite. A row without a
    step hands out its state: what comes for h_n is its gradient, and is not clipped."""
    if grad_clip:
        grad.clamp_(-grad_clip, grad_clip)
    if lengths is not None and grad_h_n is not None:
        grad = torch.where((lengths == 0)[:, None], grad_h_n, grad)
    return grad


def weight_gradients(
    layer: Layer, d: int, dx: Tensor, du: Tensor, y: Tensor, gates: Tensor | None
) -> list[Tensor]:
    """Gradients of w_ih, w_hh and the biases of direction d; dx (rows, G*H), du (rows, U*H), y
    (rows, P), every h; gates as saved, of which the first plane is what a second product took."""

    def pick(matrix: Tensor) -> Tensor:
        if isinstance(layer.earlier, slice):
            return matrix[layer.earlier]
        return matrix.index_select(0, layer.earlier)

    # Rows after the first step of padded or packed input, against the rows one step before.
    N = layer.size.N
    du_h = of_state(layer, du, 1)
    after, before = (du_h[N:], pick(y)) if d == 0 else (pick(du_h), y[N:])
    if layer.reset is not None:
        before = before.masked_fill(layer.reset.flatten()[N:, None], 0)
    # The short sum, of the first steps, is rounded once more than the long one that is added to it.
    w_hh = torch.mm(layer.first(d, du_h).t(), layer.h0[d]).addmm_(after.t(), before)
    if layer.cell.second:
        w_hh = torch.cat((w_hh, torch.mm(du[:, len(w_hh) :].t(), gates[d][:, 0])))
    grads = [torch.mm(dx.t(), layer.input), w_hh]
    if layer.b_ih is not None:
        b_hh = du.sum(0)
        grads += [dx.sum(0) if layer.cell.split else b_hh.clone(), b_hh]
    return grads
