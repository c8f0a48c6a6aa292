"""What a recurrent layer computes, in plain PyTorch: the definition of correctness.

A *cell* is the arithmetic of one time step, a *layer* is one layer in all its directions over
all time steps. `layer` is made of differentiable operations only, so autograd, `torch.func` and
forward-mode AD work through it to any order. Sizes are those of `call`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...call import Call
from ...results import Results
from ...table import Cell, cell_named

Step = tuple[Tensor, Tensor | None, tuple[Tensor, ...]]


def lstm(z: Tensor, u: None, h: Tensor, c: Tensor) -> Step:
    """Long short-term memory with forget gate; gates in the order i, f, g, o. Saves all four."""
    i, f, g, o = z.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, (i, f, g, o)


def gru(x: Tensor, u: Tensor, h: Tensor, c: None) -> Step:
    """Gated recurrent unit, reset after the product; gates in the order r, z, n.

    Saves r, z, n and q, the hidden part of the candidate, which the reset gate multiplies.
    """
    H = h.size(-1)
    x_rz, x_n = x.split((2 * H, H), -1)
    u_rz, q = u.split((2 * H, H), -1)
    r, z = (x_rz + u_rz).sigmoid().chunk(2, -1)
    n = (x_n + r * q).tanh()
    return (h - n) * z + n, None, (r, z, n, q)


def rnn_tanh(z: Tensor, u: None, h: Tensor, c: None) -> Step:
    """Elman network with tanh. Saves nothing: the derivative needs the output only."""
    return z.tanh(), None, ()


def rnn_relu(z: Tensor, u: None, h: Tensor, c: None) -> Step:
    """Elman network with ReLU. Saves nothing: the derivative needs the output only."""
    return z.relu(), None, ()


# The step of each cell: step(x, u, h, c) -> (h before any projection, c, saved planes).
#
# x = W_ih x_t + b_ih and u = W_hh h + b_hh, both (N, G*H), come separately where a gate multiplies
# a part of u alone, as GRU's reset gate does. Otherwise u is None and x their sum, which is one
# operation. h is (N, P); c and every saved plane are (N, H).
STEPS = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}


def _made(
    kind: Cell,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    params: Sequence[Tensor],
) -> Step:
    """The step of a cell that a user made. What its program saves is not known here: zeros."""
    first = (kind.hidden_gates - kind.second) * (x.size(-1) // kind.gates)
    of_h, of_v = slice(None, first), slice(first, None)

    def product(left: Tensor, rows: slice) -> Tensor:
        return F.linear(left, w_hh[rows], None if b_hh is None else b_hh[rows])

    hidden, c = kind.step(x, product(h, of_h), h, c, *params, product=lambda v: product(v, of_v))
    return hidden, c, (torch.zeros_like(hidden),) * kind.saved


def block_diagonal(w_hh: Tensor, P: int) -> Tensor:
    """(G*H, P / heads), of heads that see a part of h each, as (G*H, P) with zeros in between."""
    width = w_hh.size(-1)
    if width == P:
        return w_hh
    blocks = w_hh.view(-1, P // width, width, width)
    return torch.diag_embed(blocks.movedim(1, -1), dim1=1, dim2=3).reshape(-1, P)


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
    cells: list[Tensor | None]  # (n_t, K*H)
    hidden: list[Tensor]  # (n_t, H): h before the projection
    saved: list[tuple[Tensor, ...]]  # S of (n_t, H)
    h: Tensor
    c: Tensor | None


def _direction(
    rows: Tensor,
    passage: _Passage,
    h: Tensor,
    c: Tensor | None,
    weights: dict[str, Tensor],
    cell: str,
    reverse: bool,
) -> Trace:
    """The loop over time. rows: (rows, I); h: (N, P); c: (N, H).

    Packed rows are sorted by length, so the active ones are a prefix; with `lengths` a mask names
    them. Rows that have ended (or, in reverse, have not begun) keep their state.
    """
    w_hh, b_hh, w_hr = (weights.get(name) for name in ("w_hh", "b_hh", "w_hr"))
    kind, step = cell_named(cell), STEPS.get(cell)
    w_hh = w_hh if step is not None else block_diagonal(w_hh, h.size(-1))
    params = [weight for name, weight in weights.items() if name.startswith("p_")]
    params = [p if p.dim() == 1 else p.flatten(0, -2).split(passage.steps) for p in params]
    steps, masks = passage.steps, passage.active
    plain = passage.keep is None and not (passage.detach_every or passage.grad_clip)
    b_ih, summed = weights.get("b_ih"), step is not None and not kind.split
    if summed and b_ih is not None:
        b_ih = b_ih + b_hh
    trace: list[tuple] = []
    x = F.linear(rows, weights["w_ih"], b_ih).split(steps)
    even = masks is None and min(steps) == max(steps)  # all rows take all steps
    w_t = w_hh.t() if summed else None
    before = None
    for t in range(len(steps))[:: -1 if reverse else 1]:
        n = steps[t]
        h_t, c_t = h, c
        if not even:
            h_t, c_t = h[:n], None if c is None else c[:n]
        if not plain:
            h_t, c_t = passage(t, before, h_t, c_t)
        if summed:
            hidden, c_t, saved = step(torch.addmm(x[t], h_t, w_t), None, h_t, c_t)
        elif step is not None:
            hidden, c_t, saved = step(x[t], F.linear(h_t, w_hh, b_hh), h_t, c_t)
        else:
            now = [p if isinstance(p, Tensor) else p[t] for p in params]
            hidden, c_t, saved = _made(kind, x[t], h_t, c_t, w_hh, b_hh, now)
        h_t = hidden if w_hr is None else F.linear(hidden, w_hr)
        if even:
            h, c = h_t, c_t
        elif masks is None:
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


def _outputs(kind: Cell, trace: Trace) -> list[Tensor]:
    """The output of each step: h, or a plane of c."""
    if not kind.output:
        return trace.output
    return [c.chunk(kind.own, -1)[kind.output - 1] for c in trace.cells]


def layer(call: Call, trace: bool = False) -> Results:
    """One layer in all its directions, differentiable.

    Args:
        call: what to do. The values of its lengths are not checked, since no data is read.
        trace: whether to return what each step computed as well.

    Raises:
        RuntimeError: a rank, size or dtype does not fit, or there is no time step.
    """
    size, input = call.sizes(), call.input
    steps = call.steps(size)
    active = keep = None
    if call.lengths is not None:
        active = torch.arange(size.T, device=input.device).unsqueeze(1) < call.lengths
        keep = active
        input = input.where(active.unsqueeze(-1), 0)
    if call.reset is not None:
        keep = ~call.reset if active is None else active & ~call.reset
    active, keep = (m if m is None else m.unsqueeze(-1).unbind(0) for m in (active, keep))
    passage = _Passage(steps, active, keep, call.detach_every, call.grad_clip)
    packed, has_c = call.batch_sizes is not None, call.c0 is not None
    rows = input if packed else input.flatten(0, 1)
    traces = [
        _direction(
            rows,
            passage,
            call.h0[d],
            call.c0[d] if has_c else None,
            weights,
            call.cell,
            reverse=d == 1,
        )
        for d, weights in enumerate(call.by_name())
    ]
    output = torch.cat([torch.cat(_outputs(call.kind, each)) for each in traces], -1)
    if not packed:
        output = output.unflatten(0, (size.T, size.N))
    h_n = torch.stack([each.h for each in traces])
    c_n = torch.stack([each.c for each in traces]) if has_c else input.new_empty(0)
    if not trace:
        return Results(output, h_n, c_n)

    gates = input.new_empty(size.D, size.rows, 0, size.H)
    cells, hidden = input.new_empty(0), input.new_empty(0)
    if call.kind.saved:
        gates = torch.stack([torch.cat([torch.stack(s, 1) for s in t.saved]) for t in traces])
    if has_c:
        cells = torch.stack([torch.cat(each.cells) for each in traces])
    if call.kind.keeps_hidden(call.projected):
        hidden = torch.stack([torch.cat(each.hidden) for each in traces])
    return Results(output, h_n, c_n, gates, cells, hidden)
