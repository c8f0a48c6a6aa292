"""The three ops in plain PyTorch: they stand in for the kernels where none are built.

Signatures and results are those of the schemas in `ops`; the arithmetic is that of `reference`, in
float32 for half precision on the CPU, as in the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference, torch_private


def check_lengths(lengths: Tensor | None, T: int) -> None:
    """RuntimeError if a length is not in [0, T].

    Only where reading costs nothing: on the CPU, and neither traced nor in a transform.
    """
    if (
        lengths is not None
        and lengths.is_cpu
        and type(lengths) is Tensor
        and lengths.numel()
        and not torch.compiler.is_compiling()
        and not torch_private.are_transforms_active()
        and not 0 <= lengths.min() <= lengths.max() <= T
    ):
        raise RuntimeError(f"lengths must be between 0 and {T}, got {lengths.tolist()}")


@reference.in_float32
@torch.no_grad()
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
    """`reference.layer` without gradients: (output, h_n, c_n)."""
    check_lengths(lengths, len(input))
    return reference.layer(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)


@reference.in_float32
@torch.no_grad()
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
    """The same and what backward needs: (output, h_n, c_n, gates, cells, hidden)."""
    check_lengths(lengths, len(input))
    return reference.layer(
        input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths, trace=True
    )


@reference.in_float32
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
    """Gradients of `reference.layer`, by computing it again: (grad_input, grad_h0, grad_c0,
    grad_weights).

    Those that are not needed are (0,), or an empty list. A gradient of None means zero. Saved
    tensors are not read.
    """
    check_lengths(lengths, len(input))
    x, h, *w = (t.detach().requires_grad_() for t in (input, h0, *weights))
    c = None if c0 is None else c0.detach().requires_grad_()
    y, h_n, c_n, _, c_t, _ = torch_private.recording(
        lambda: reference.layer(
            x, batch_sizes, h, c, w, cell, bias, reset, lengths, detach_every, grad_clip, trace=True
        )
    )
    wanted = [x] * need_input + [t for t in (h, c) if t is not None] * need_state
    wanted += w * need_weights
    pairs = zip((y, h_n, c_n, c_t), (grad_output, grad_h_n, grad_c_n, grad_cells), strict=True)
    pairs = [(result, grad) for result, grad in pairs if grad is not None]
    grads = ()
    if wanted and pairs:
        results, seeds = zip(*pairs, strict=True)
        grads = torch.autograd.grad(results, wanted, seeds, materialize_grads=True)
    elif wanted:
        grads = [torch.zeros_like(t) for t in wanted]
    grad = iter([g.contiguous() for g in grads])
    return (
        next(grad) if need_input else input.new_empty(0),
        next(grad) if need_state else input.new_empty(0),
        next(grad) if need_state and c is not None else input.new_empty(0),
        list(grad),
    )
