"""What a recurrent layer computes, in plain PyTorch: the definition of correctness.

A *cell* is the arithmetic of one time step, a *layer* is one layer in all its directions over
all time steps. `layer` is made of differentiable operations only, so autograd, `torch.func` and
forward-mode AD work through it to any order. `layer_inference`, `layer_forward` and
`layer_backward` have the signatures of the three custom ops and stand in for the kernels where
none are built.

Sizes: T time steps, N batch, I inputs, H hidden units, G gates, D directions (1 or 2), P width of
h (H, or the projection size). `rows` is T*N for padded input and sum(batch_sizes) for packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Step = tuple[Tensor, Tensor | None, tuple[Tensor, ...]]


def lstm(x: Tensor, u: Tensor, h: Tensor, c: Tensor) -> Step:
    """Long short-term memory with forget gate; gates in the order i, f, g, o. Saves all four."""
    i, f, g, o = (x + u).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, (i, f, g, o)


def gru(x: Tensor, u: Tensor, h: Tensor, c: None) -> Step:
    """Gated recurrent unit, reset after the product; gates in the order r, z, n.

    Saves r, z, n and q, the hidden part of the candidate, which the reset gate multiplies.
    """
    x_r, x_z, x_n = x.chunk(3, -1)
    u_r, u_z, q = u.chunk(3, -1)
    r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
    n = (x_n + r * q).tanh()
    return (h - n) * z + n, None, (r, z, n, q)


def rnn_tanh(x: Tensor, u: Tensor, h: Tensor, c: None) -> Step:
    """Elman network with tanh. Saves nothing: the derivative needs the output only."""
    return (x + u).tanh(), None, ()


def rnn_relu(x: Tensor, u: Tensor, h: Tensor, c: None) -> Step:
    """Elman network with ReLU. Saves nothing: the derivative needs the output only."""
    return (x + u).relu(), None, ()


class Cell(NamedTuple):
    """A cell: `step(x, u, h, c) -> (h before any projection, c, saved planes)`.

    x = W_ih x_t + b_ih and u = W_hh h + b_hh, both (N, G*H), come separately because GRU's reset
    gate multiplies a part of u alone. h is (N, P); c and every saved plane are (N, H).
    """

    gates: int
    saved: int
    has_cell: bool
    step: Callable[..., Step]


CELLS = {
    "lstm": Cell(4, 4, True, lstm),
    "gru": Cell(3, 4, False, gru),
    "rnn_tanh": Cell(1, 0, False, rnn_tanh),
    "rnn_relu": Cell(1, 0, False, rnn_relu),
}


class Sizes(NamedTuple):
    """The sizes of one layer call."""

    T: int
    N: int
    H: int
    P: int
    D: int
    rows: int
    per_direction: int  # weight tensors of one direction

    def output(self, batch_sizes: Tensor | None) -> tuple[int, ...]:
        """Shape of the layer's output."""
        width = self.D * self.P
        return (self.T, self.N, width) if batch_sizes is None else (self.rows, width)


def sizes(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
) -> Sizes:
    """Checks the shapes of a layer call and returns its sizes. Reads no tensor data.

    Raises RuntimeError where a rank or a size does not fit the others.
    """
    if cell not in CELLS:
        raise RuntimeError(f"unknown cell '{cell}'. Select from {', '.join(CELLS)}")
    kind = CELLS[cell]

    def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise RuntimeError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")

    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if h0.dim() != 3 or h0.size(0) not in (1, 2):
        raise RuntimeError(f"h0 must have shape (1 or 2, N, P), got {tuple(h0.shape)}")
    D, N, P = h0.shape
    per_direction = len(weights) // D
    plain = 4 if bias else 2
    if len(weights) % D or per_direction not in (plain, plain + kind.has_cell):
        raise RuntimeError(f"{cell} with bias={bias} cannot take {len(weights)} weights")
    projected = per_direction > plain
    H = weights[plain].size(-1) if projected else P
    GH, I = kind.gates * H, input.size(-1)
    shapes = {"w_ih": (GH, I), "w_hh": (GH, P)}
    if bias:
        shapes |= {"b_ih": (GH,), "b_hh": (GH,)}
    if projected:
        shapes |= {"w_hr": (P, H)}
    for k, weight in enumerate(weights):
        name = list(shapes)[k % per_direction]
        expect(name, weight, shapes[name])
    if kind.has_cell != (c0 is not None):
        raise RuntimeError(f"{cell} {'needs' if kind.has_cell else 'has no'} initial cell state")
    if c0 is not None:
        expect("c0", c0, (D, N, H))

    if batch_sizes is None:
        T = input.size(0)
        expect("input", input, (T, N, I))
        return Sizes(T, N, H, P, D, T * N, per_direction)
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise RuntimeError("batch_sizes must be a 1-D tensor of dtype torch.int64")
    if batch_sizes.device.type not in ("cpu", "meta"):
        raise RuntimeError("batch_sizes should always be on CPU")
    return Sizes(batch_sizes.size(0), N, H, P, D, input.size(0), per_direction)


def _step_sizes(size: Sizes, batch_sizes: Tensor | None) -> list[int]:
    """The number of active rows at each time step; RuntimeError if they do not fit the input."""
    if batch_sizes is None:
        steps = [size.N] * size.T
    else:
        steps = batch_sizes.tolist()
        falling = all(a >= b for a, b in zip(steps, steps[1:], strict=False))
        if not falling or min(steps, default=1) < 1 or sum(steps) != size.rows:
            raise RuntimeError(
                "batch_sizes must be positive, non-increasing and sum to the rows of input"
            )
        if steps and steps[0] != size.N:
            raise RuntimeError(f"h0 must have batch size {steps[0]}, got {size.N}")
    if not steps:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return steps


class Trace(NamedTuple):
    """One direction of a layer: per-step values in time order, and the final state."""

    output: list[Tensor]  # (n_t, P)
    cells: list[Tensor | None]  # (n_t, H)
    hidden: list[Tensor]  # (n_t, H): h before the projection
    saved: list[tuple[Tensor, ...]]  # S of (n_t, H)
    h: Tensor
    c: Tensor | None


def _direction(
    rows: Tensor,
    steps: list[int],
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    reverse: bool,
) -> Trace:
    """The loop over time. rows: (rows, I); h: (N, P); c: (N, H).

    Rows are sorted by length, so the active ones are a prefix: rows that have ended (or, in
    reverse, have not begun) keep their state.
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if bias else (None, None)
    w_hr = rest[-1] if len(rest) % 2 else None
    step = CELLS[cell].step
    trace: list[tuple] = []
    x = F.linear(rows, w_ih, b_ih).split(steps)
    for x_t in reversed(x) if reverse else x:
        n = x_t.size(0)
        h_t, c_t = h[:n], None if c is None else c[:n]
        hidden, c_t, saved = step(x_t, F.linear(h_t, w_hh, b_hh), h_t, c_t)
        h_t = hidden if w_hr is None else F.linear(hidden, w_hr)
        h = torch.cat((h_t, h[n:]))
        c = None if c is None else torch.cat((c_t, c[n:]))
        trace.append((h_t, c_t, hidden, saved))
    if reverse:
        trace.reverse()
    return Trace(*map(list, zip(*trace, strict=True)), h, c)


def _run(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
) -> tuple[Sizes, list[Trace], tuple[Tensor, Tensor, Tensor]]:
    """Every direction: sizes, traces and (output, h_n, c_n)."""
    size = sizes(input, batch_sizes, h0, c0, weights, cell, bias)
    steps = _step_sizes(size, batch_sizes)
    rows = input.flatten(0, 1) if batch_sizes is None else input
    k = size.per_direction
    traces = [
        _direction(
            rows,
            steps,
            h0[d],
            None if c0 is None else c0[d],
            weights[d * k : (d + 1) * k],
            cell,
            bias,
            reverse=d == 1,
        )
        for d in range(size.D)
    ]
    output = torch.cat([torch.cat(trace.output) for trace in traces], -1)
    if batch_sizes is None:
        output = output.unflatten(0, (size.T, size.N))
    h_n = torch.stack([trace.h for trace in traces])
    c_n = input.new_empty(0) if c0 is None else torch.stack([trace.c for trace in traces])
    return size, traces, (output, h_n, c_n)


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in all its directions, differentiable: (output, h_n, c_n).

    Args:
        input: (T, N, I), or (rows, I) of a PackedSequence.
        batch_sizes: (T,) int64 on the CPU for packed input, else None.
        h0: (D, N, P).
        c0: (D, N, H) for lstm, else None.
        weights: for each direction w_ih (G*H, I), w_hh (G*H, P), then b_ih and b_hh (G*H,) if
            `bias`, then w_hr (P, H) if the lstm is projected.
        cell: a key of CELLS.

    Returns:
        output (T, N, D*P) or (rows, D*P); h_n (D, N, P); c_n (D, N, H), (0,) without cell state.

    Raises:
        RuntimeError: a rank or size does not fit, or there is no time step.
    """
    return _run(input, batch_sizes, h0, c0, weights, cell, bias)[2]


@torch.no_grad()
def layer_inference(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`layer` without gradients."""
    return layer(input, batch_sizes, h0, c0, weights, cell, bias)


@torch.no_grad()
def layer_forward(
    input: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`layer` and what its backward needs: (output, h_n, c_n, gates, cells, hidden).

    gates (D, rows, S, H): the planes that the cell saves. cells (D, rows, H): every c_t of an
    lstm. hidden (D, rows, H): o*tanh(c) of a projected lstm. Those that do not apply are (0,).
    """
    size, traces, result = _run(input, batch_sizes, h0, c0, weights, cell, bias)
    kind = CELLS[cell]
    gates = input.new_empty(size.D, size.rows, 0, size.H)
    cells, hidden = input.new_empty(0), input.new_empty(0)
    if kind.saved:
        gates = torch.stack([torch.cat([torch.stack(s, 1) for s in t.saved]) for t in traces])
    if kind.has_cell:
        cells = torch.stack([torch.cat(trace.cells) for trace in traces])
        if size.per_direction % 2:
            hidden = torch.stack([torch.cat(trace.hidden) for trace in traces])
    return *result, gates, cells, hidden


def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of `layer`, by computing it again: (grad_input, grad_h0, grad_c0, grad_weights).

    Those that are not needed are (0,), or an empty list. A gradient of None means zero. Saved
    tensors are not read.
    """
    # As the implementation of an op this may run below autograd, whose dispatch keys are then off.
    autograd = torch._C.DispatchKey.AutogradFunctionality
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(autograd, False):
        x, h, *w = (t.detach().requires_grad_() for t in (input, h0, *weights))
        c = None if c0 is None else c0.detach().requires_grad_()
        results = layer(x, batch_sizes, h, c, w, cell, bias)
    wanted = [x] * need_input + [t for t in (h, c) if t is not None] * need_state
    wanted += w * need_weights
    seeds = [g for g in (grad_output, grad_h_n, grad_c_n) if g is not None]
    results = [
        r for r, g in zip(results, (grad_output, grad_h_n, grad_c_n), strict=True) if g is not None
    ]
    grads = ()
    if wanted and seeds:
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
