"""Layers with reset, lengths, truncated and clipped gradients, written out in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoids(*parts: Tensor) -> list[Tensor]:
    return [1 / (1 + torch.exp(-part)) for part in parts]


def one_step(name: str, x: Tensor, h: Tensor, c: Tensor | None, weights: dict[str, Tensor]):
    """(h', c', gates (G, H)) of one row: the equations in the documentation of torch.nn."""
    H = weights["weight_ih"].size(0) // {"LSTM": 4, "GRU": 3, "RNN": 1}[name.split("_")[0]]
    a = (weights["weight_ih"] @ x + weights.get("bias_ih", 0)).split(H)
    b = (weights["weight_hh"] @ h + weights.get("bias_hh", 0)).split(H)
    if name == "LSTM":
        i, f, o = sigmoids(a[0] + b[0], a[1] + b[1], a[3] + b[3])
        g = torch.tanh(a[2] + b[2])
        c = f * c + i * g
        h = o * torch.tanh(c)
        return weights["weight_hr"] @ h if "weight_hr" in weights else h, c, (i, f, g, o)
    if name == "GRU":
        r, z = sigmoids(a[0] + b[0], a[1] + b[1])
        n = torch.tanh(a[2] + r * b[2])
        return (1 - z) * n + z * h, None, (r, z, n)
    h = torch.tanh(a[0] + b[0]) if name == "RNN_TANH" else (a[0] + b[0]).clamp_min(0)
    return h, None, (h,)


def padded(values: list[Tensor], T: int, like: tuple[int, ...]) -> Tensor:
    rest = torch.zeros(T - len(values), *like, dtype=torch.float64)
    return torch.cat([torch.stack(values), rest]) if values else rest


def plain_loop(
    module: torch.nn.RNNBase,
    parameters: dict[str, Tensor],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int | None = None,
    grad_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """(y, h_n, c_n, h, c, gates) of x (T, N, I), one row after the other; no dropout.

    The last three are lists of one tensor for each layer: (T, N, D, P), (T, N, D, H) and
    (T, N, D, G, H).
    """
    T, N, _ = x.shape
    H, P = module.hidden_size, module.proj_size or module.hidden_size
    D = 2 if module.bidirectional else 1
    G = module.weight_ih_l0.size(0) // H
    y, finals = x, []
    states = [], [], []
    for layer in range(module.num_layers):
        rows = []
        for d in range(D):
            suffix = f"_l{layer}" + "_reverse" * d
            weights = {
                k.removesuffix(suffix): v for k, v in parameters.items() if k.endswith(suffix)
            }
            for n in range(N):
                k = layer * D + d
                h, c = h0[k, n], None if c0 is None else c0[k, n]
                length = T if lengths is None else int(lengths[n])
                before, steps = None, []
                for t in range(length) if d == 0 else reversed(range(length)):
                    if detach_every and before is not None and max(t, before) % detach_every == 0:
                        h, c = h.detach(), None if c is None else c.detach()
                    if reset is not None:
                        alive = 1 - reset[t, n].double()
                        h, c = h * alive, None if c is None else c * alive
                    if grad_clip:
                        h = h * 1
                        if h.requires_grad:
                            h.register_hook(lambda g: g.clamp(-grad_clip, grad_clip))
                    h, c, gates = one_step(module.mode, y[t, n], h, c, weights)
                    steps.append((h, c, torch.stack(gates)))
                    before = t
                finals.append((h, c))
                if d == 1:
                    steps.reverse()
                h_t, c_t, gates = zip(*steps, strict=True) if steps else ([], [], [])
                rows.append(
                    (
                        padded(h_t, T, (P,)),
                        None if c0 is None else padded(c_t, T, (H,)),
                        padded(gates, T, (G, H)),
                    )
                )
        for kind, values in zip(states, zip(*rows, strict=True), strict=True):
            if values[0] is not None:
                kind.append(torch.stack(values, 1).unflatten(1, (D, N)).transpose(1, 2))
        y = states[0][-1].flatten(2)
    h_n, c_n = (
        None if values[0] is None else torch.stack(values).unflatten(0, (-1, N))
        for values in zip(*finals, strict=True)
    )
    return y, h_n, c_n, *states
