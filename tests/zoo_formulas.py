"""The cells of the zoo from the formulas of the papers: a step of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

States = dict[str, Tensor]


def squash(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def norm(*planes: Tensor, eps: float = 1e-5) -> tuple[Tensor, ...]:
    """Of the planes beside each other."""
    whole = torch.cat(planes, -1)
    variance, mean = torch.var_mean(whole, -1, correction=0, keepdim=True)
    return ((whole - mean) / (variance + eps).sqrt()).chunk(len(planes), -1)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.heaviside(v, torch.zeros_like(v))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            return grad * torch.autograd.grad(torch.atan(torch.pi * v).sum() / torch.pi, v)[0]


# Of each cell: the new states from the products of a step with x and with the recurrent state, a
# gate each, the states, and the parameters and inputs of the step.
def peephole(x, u, s: States, p: States):
    z_i, z_f, z_g, z_o = (a + b for a, b in zip(x, u, strict=True))
    cell = squash(z_f + p["w_f"] * s["c"]) * s["c"]
    cell = cell + squash(z_i + p["w_i"] * s["c"]) * torch.tanh(z_g)
    return {"h": squash(z_o + p["w_o"] * cell) * torch.tanh(cell), "c": cell}


def lstm(x, u, s: States, mask: Tensor | float = 1.0):
    z_i, z_f, z_g, z_o = (a + b for a, b in zip(x, u, strict=True))
    cell = squash(z_f) * s["c"] + squash(z_i) * mask * torch.tanh(z_g)
    return {"h": squash(z_o) * torch.tanh(cell), "c": cell}


def cifg(x, u, s: States, p: States):
    z_f, z_g, z_o = (a + b for a, b in zip(x, u, strict=True))
    return lstm((-z_f, z_f, z_g, z_o), (torch.zeros(()),) * 4, s)


def layer_norm_lstm(x, u, s: States, p: States):
    z = []
    for gate, a, b in zip("ifgo", norm(*x), norm(*u), strict=True):
        z.append(p[f"x_{gate}"] * a + p[f"u_{gate}"] * b + p[f"b_{gate}"])
    cell = squash(z[1]) * s["c"] + squash(z[0]) * torch.tanh(z[2])
    H = cell.size(-1)
    return {"h": squash(z[3]) * torch.tanh(F.layer_norm(cell, (H,), p["w_c"], p["b_c"])), "c": cell}


def zoneout(x, u, s: States, p: States):
    new = lstm(x, u, s)
    return {k: s[k] + (1 - p[f"keep_{k}"]) * (new[k] - s[k]) for k in "hc"}


def s_lstm(x, u, s: States, p: States):
    """Without the stabilizer: c and n times exp(m) are what the formulas without it have."""
    z_i, z_f, z_z, z_o = (a + b for a, b in zip(x, u, strict=True))
    scale = torch.exp(s["m"])
    cell = squash(z_f) * scale * s["c"] + torch.exp(z_i) * torch.tanh(z_z)
    count = squash(z_f) * scale * s["n"] + torch.exp(z_i)
    log_f = torch.log(squash(z_f)) + s["m"]
    m = torch.where(s["n"] == 0, z_i, torch.where(log_f > z_i, log_f, z_i))
    n, c = count * torch.exp(-m), cell * torch.exp(-m)
    return {"h": squash(z_o) * cell / count, "c": c, "n": n, "m": m}


def gated(z: Tensor, old: Tensor, new: Tensor) -> States:
    return {"h": z * old + (1 - z) * new}


def layer_norm_gru(x, u, s: States, p: States):
    (x_r, x_z), (u_r, u_z), (x_n,), (u_n,) = norm(*x[:2]), norm(*u[:2]), norm(x[2]), norm(u[2])
    r = squash(p["x_r"] * x_r + p["u_r"] * u_r + p["b_r"])
    z = squash(p["x_z"] * x_z + p["u_z"] * u_z + p["b_z"])
    new = torch.tanh(p["x_n"] * x_n + p["b_n"] + r * (p["u_n"] * u_n + p["u_b"]))
    return gated(z, s["h"], new)


def dreamer(x, u, s: States, p: States):
    H = x[0].size(-1)
    gain, bias = (torch.cat([p[f"{k}_{gate}"] for gate in "rnz"]) for k in "wb")
    whole = torch.cat([a + b for a, b in zip(x, u, strict=True)], -1)
    r, n, z = F.layer_norm(whole, (3 * H,), gain, bias, eps=1e-3).split(H, -1)
    z = squash(z - 1)
    return gated(1 - z, s["h"], torch.tanh(squash(r) * n))


def li_gru(x, u, s: States, p: States):
    return gated(squash(x[0] + u[0]), s["h"], (x[1] + u[1]).clamp_min(0))


def ugrnn(x, u, s: States, p: States):
    return gated(squash(x[0] + u[0]), s["h"], torch.tanh(x[1] + u[1]))


def mgu(x, u, s: States, p: States):
    f = squash(x[0] + u[0])
    return gated(1 - f, s["h"], torch.tanh(x[1] + p["product"](f * s["h"])[0]))


def original_gru(x, u, s: States, p: States):
    r, z = squash(x[0] + u[0]), squash(x[1] + u[1])
    return gated(z, s["h"], torch.tanh(x[2] + p["product"](r * s["h"])[0]))


def multiplicative_lstm(x, u, s: States, p: States):
    z_i, z_f, z_o, z = (a + b for a, b in zip(x[1:], p["product"](x[0] * u[0]), strict=True))
    cell = squash(z_f) * s["c"] + squash(z_i) * z
    return {"h": torch.tanh(cell * squash(z_o)), "c": cell}


def gru_d(x, u, s: States, p: States):
    r, z = squash(x[0] + u[0]), squash(x[1] + u[1])
    (h,) = gated(1 - z, s["d"], torch.tanh(x[2] + p["product"](r * s["d"])[0])).values()
    return {"h": h, "d": p["decay"] * h}


def cfc(x, u, s: States, p: States):
    f1, f2, a, b = (i + j for i, j in zip(x, u, strict=True))
    return gated(squash(-(a * p["dt"] + b)), torch.tanh(f1), torch.tanh(f2))


def ind_rnn(x, u, s: States, p: States):
    return {"h": (x[0] + p["u"] * s["h"]).clamp_min(0)}


def lif(x, u, s: States, p: States):
    k = squash(p["leak"])
    v = (1 - k) * s["v"] + k * (x[0] + u[0])
    spikes = Spike.apply(v - 1)
    return {"h": spikes, "v": v - spikes * v}


FORMULAS: dict[str, Callable[..., States]] = {
    "CIFG": cifg,
    "CfC": cfc,
    "DreamerGRU": dreamer,
    "GRUD": gru_d,
    "IndRNN": ind_rnn,
    "LIF": lif,
    "LayerNormGRU": layer_norm_gru,
    "LayerNormLSTM": layer_norm_lstm,
    "LiGRU": li_gru,
    "MGU": mgu,
    "MultiplicativeLSTM": multiplicative_lstm,
    "OriginalGRU": original_gru,
    "PeepholeLSTM": peephole,
    "RecurrentDropoutLSTM": lambda x, u, s, p: lstm(x, u, s, p["mask"]),
    "SLSTM": s_lstm,
    "UGRNN": ugrnn,
    "ZoneoutLSTM": zoneout,
}
