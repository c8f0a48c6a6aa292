"""What a recurrent layer computes, in plain PyTorch: the definition of correctness.

A *cell* is the arithmetic of one time step, a *layer* is one layer in all its directions over
all time steps. `layer` is made of differentiable operations only, so autograd, `torch.func` and
forward-mode AD work through it to any order.

Sizes: T time steps, N batch, I inputs, H hidden units, G gates, D directions (1 or 2), P width of
h (H, or the projection size). `rows` is T*N for padded input and sum(batch_sizes) for packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .trees import map_tensors, tensors

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
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Sizes:
    """Checks the shapes of a layer call and returns its sizes. Reads no tensor data.

    Raises RuntimeError where a rank or a size does not fit the others, or where `reset` and
    `lengths` have a wrong dtype or come with packed input.
    """
    if cell not in CELLS:
        raise RuntimeError(f"unknown cell '{cell}'. Select from {', '.join(CELLS)}")
    kind = CELLS[cell]

    def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
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
    shapes = [("w_ih", (GH, I)), ("w_hh", (GH, P))]
    if bias:
        shapes += [("b_ih", (GH,)), ("b_hh", (GH,))]
    if projected:
        shapes.append(("w_hr", (P, H)))
    for (name, shape), weight in zip(shapes * D, weights, strict=True):
        expect(name, weight, shape)
    if kind.has_cell != (c0 is not None):
        raise RuntimeError(f"{cell} {'needs' if kind.has_cell else 'has no'} initial cell state")
    if c0 is not None:
        expect("c0", c0, (D, N, H))
    if reset is not None and D == 2:
        raise RuntimeError("reset needs a single direction, got 2")

    if batch_sizes is None:
        T = input.size(0)
        expect("input", input, (T, N, I))
        for name, tensor, shape, dtype in (
            ("reset", reset, (T, N), torch.bool),
            ("lengths", lengths, (N,), torch.int64),
        ):
            if tensor is not None:
                expect(name, tensor, shape)
                if tensor.dtype != dtype:
                    raise RuntimeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
        return Sizes(T, N, H, P, D, T * N, per_direction)
    if reset is not None or lengths is not None:
        raise RuntimeError("reset and lengths need padded input, got batch_sizes")
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


class _Clip(torch.autograd.Function):
    """The identity, whose backward clamps the gradient to [-limit, limit]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, limit):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-ctx.limit, ctx.limit), None


class _ClipWithTangent(_Clip):
    """The same for forward-mode AD too: torch.compile takes no Function that has a `jvp`."""

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.view_as(tangent)


class _Passage(NamedTuple):
    """What happens to the state between two steps: `layer` describes the arguments."""

    steps: list[int]  # the rows of each step
    active: Sequence[Tensor] | None  # T of (N, 1) bool: the rows that take the step, for `lengths`
    keep: Sequence[Tensor] | None  # T of (N, 1) bool: those of them that are not reset
    detach_every: int
    grad_clip: float

    def __call__(
        self, t: int, before: int | None, h: Tensor, c: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(h, c) as step t sees them. `before` is the step before it: t - 1, t + 1 or None."""
        if self.detach_every and before is not None and max(t, before) % self.detach_every == 0:
            h, c = self._detached(before, h), None if c is None else self._detached(before, c)
        if self.keep is not None:
            h = h.where(self.keep[t], 0)
            c = None if c is None else c.where(self.keep[t], 0)
        if self.grad_clip:
            clip = _Clip if torch.compiler.is_compiling() else _ClipWithTangent
            h = clip.apply(h, self.grad_clip)
        return h, c

    def _detached(self, before: int, state: Tensor) -> Tensor:
        """No gradient goes to rows that took the step before; others bring the initial state."""
        if self.active is not None:
            return state.detach().where(self.active[before], state)
        n = self.steps[before]
        return torch.cat((state[:n].detach(), state[n:])) if n < len(state) else state.detach()


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
    passage: _Passage,
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    bias: bool,
    reverse: bool,
) -> Trace:
    """The loop over time. rows: (rows, I); h: (N, P); c: (N, H).

    Packed rows are sorted by length, so the active ones are a prefix; with `lengths` a mask names
    them. Rows that have ended (or, in reverse, have not begun) keep their state.
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if bias else (None, None)
    w_hr = rest[-1] if len(rest) % 2 else None
    step = CELLS[cell].step
    steps, masks = passage.steps, passage.active
    plain = passage.keep is None and not (passage.detach_every or passage.grad_clip)
    trace: list[tuple] = []
    x = F.linear(rows, w_ih, b_ih).split(steps)
    before = None
    for t in range(len(steps))[:: -1 if reverse else 1]:
        n = steps[t]
        h_t, c_t = h[:n], None if c is None else c[:n]
        if not plain:
            h_t, c_t = passage(t, before, h_t, c_t)
        hidden, c_t, saved = step(x[t], F.linear(h_t, w_hh, b_hh), h_t, c_t)
        h_t = hidden if w_hr is None else F.linear(hidden, w_hr)
        if masks is None:
            h = torch.cat((h_t, h[n:]))
            c = None if c is None else torch.cat((c_t, c[n:]))
        else:
            active = masks[t]
            h = h_t.where(active, h)
            c = None if c is None else c_t.where(active, c)
            h_t, hidden, *saved = (p.where(active, 0) for p in (h_t, hidden, *saved))
            c_t = None if c is None else c_t.where(active, 0)
        trace.append((h_t, c_t, hidden, tuple(saved)))
        before = t
    if reverse:
        trace.reverse()
    return Trace(*map(list, zip(*trace, strict=True)), h, c)


def layer(
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
    *,
    trace: bool = False,
) -> tuple[Tensor, ...]:
    """One layer in all its directions, differentiable: (output, h_n, c_n).

    Args:
        input: (T, N, I), or (rows, I) of a PackedSequence.
        batch_sizes: (T,) int64 on the CPU for packed input, else None.
        h0: (D, N, P).
        c0: (D, N, H) for lstm, else None.
        weights: for each direction w_ih (G*H, I), w_hh (G*H, P), then b_ih and b_hh (G*H,) if
            `bias`, then w_hr (P, H) if the lstm is projected.
        cell: a key of CELLS.
        reset: (T, N) bool, for one direction: where True, h and c are zero before the step.
        lengths: (N,) int64, in any order, of [0, T], on the device of input. A row ends after its
            own length (the reverse direction begins there): what comes later is zero in every
            result and is not read in the input, and h_n and c_n are those of its last step.
            Values are not checked, since no data is read.
        detach_every: k > 0 stops the gradient that h and c carry between steps j*k-1 and j*k.
        grad_clip: v > 0 clamps to [-v, v] what each step sends back through h to the step before
            it, or to h0, before what comes from output, h_n and elsewhere is added.
        trace: whether to return what each step computed as well.

    Returns:
        output (T, N, D*P) or (rows, D*P); h_n (D, N, P); c_n (D, N, H), (0,) without cell state.
        With `trace` also gates (D, rows, S, H), the planes that the cell saves; cells
        (D, rows, H), every c_t of an lstm; and hidden (D, rows, H), o*tanh(c) of a projected
        lstm; those that do not apply are (0,).

    Raises:
        RuntimeError: a rank, size or dtype does not fit, or there is no time step.
    """
    size = sizes(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths)
    steps = _step_sizes(size, batch_sizes)
    active = keep = None
    if lengths is not None:
        active = keep = torch.arange(size.T, device=lengths.device).unsqueeze(1) < lengths
        input = input.where(active.unsqueeze(-1), 0)
    if reset is not None:
        keep = ~reset if active is None else active & ~reset
    active, keep = (m if m is None else m.unsqueeze(-1).unbind(0) for m in (active, keep))
    passage = _Passage(steps, active, keep, detach_every, grad_clip)
    rows = input.flatten(0, 1) if batch_sizes is None else input
    k = size.per_direction
    traces = [
        _direction(
            rows,
            passage,
            h0[d],
            None if c0 is None else c0[d],
            weights[d * k : (d + 1) * k],
            cell,
            bias,
            reverse=d == 1,
        )
        for d in range(size.D)
    ]
    output = torch.cat([torch.cat(each.output) for each in traces], -1)
    if batch_sizes is None:
        output = output.unflatten(0, (size.T, size.N))
    h_n = torch.stack([each.h for each in traces])
    c_n = input.new_empty(0) if c0 is None else torch.stack([each.c for each in traces])
    if not trace:
        return output, h_n, c_n

    gates = input.new_empty(size.D, size.rows, 0, size.H)
    cells, hidden = input.new_empty(0), input.new_empty(0)
    if CELLS[cell].saved:
        gates = torch.stack([torch.cat([torch.stack(s, 1) for s in t.saved]) for t in traces])
    if c0 is not None:
        cells = torch.stack([torch.cat(each.cells) for each in traces])
        if size.per_direction % 2:
            hidden = torch.stack([torch.cat(each.hidden) for each in traces])
    return output, h_n, c_n, gates, cells, hidden


def in_float32(function: Callable) -> Callable:
    """`function` as the CPU kernels compute half precision: rounding what comes in and goes out.

    Where tensors on a CPU are float16 or bfloat16, it is given float32 in their place, and what it
    returns in float32 becomes theirs.
    """

    def cast(tree, source: torch.dtype, target: torch.dtype):
        return map_tensors(lambda t: t.to(target) if t.dtype == source else t, tree)

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = {t.dtype for t in tensors((args, kwargs)) if t.is_cpu}
        half = next((d for d in (torch.float16, torch.bfloat16) if d in given), None)
        if half is None:
            return function(*args, **kwargs)
        args, kwargs = cast((args, kwargs), half, torch.float32)
        return cast(function(*args, **kwargs), torch.float32, half)

    return call
