"""Cells of the literature as Python functions, for tests of programs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastrnn.programs import Cell

sigmoid, tanh = torch.sigmoid, torch.tanh


def rnn(g, s, p):
    return tanh(g.h)


def lstm(g, s, p):
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


def gru(g, s, p):
    r, z = sigmoid(g.r), sigmoid(g.z)
    n = tanh(g.x_n + r * g.u_n)
    return n + z * (s.h - n)


def peephole(g, s, p):
    c = sigmoid(g.f + p.w_f * s.c) * s.c + sigmoid(g.i + p.w_i * s.c) * tanh(g.g)
    return sigmoid(g.o + p.w_o * c) * tanh(c), c


def slstm(g, s, p):
    log_f = s.m + F.logsigmoid(g.f)
    m = torch.maximum(g.i, log_f)
    i, f = torch.exp(g.i - m), torch.exp(log_f - m)
    c = f * s.c + i * tanh(g.z)
    n = f * s.n + i
    return sigmoid(g.o) * c / torch.clamp(n, min=1e-6), c, n, m


def cifg(g, s, p):
    f = sigmoid(g.f)
    c = f * s.c + (1 - f) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


def ligru(g, s, p):
    z = sigmoid(g.z)
    return z * s.h + (1 - z) * torch.relu(g.c)


def cfc(g, s, p):
    t = sigmoid(g.a * p.dt + g.b)
    return tanh(g.f1) * (1 - t) + t * tanh(g.f2)


def ugrnn(g, s, p):
    u = sigmoid(g.u)
    return u * s.h + (1 - u) * tanh(g.c)


def hard_lstm(g, s, p):
    c = F.hardsigmoid(g.f) * s.c + F.hardsigmoid(g.i) * F.hardtanh(g.g)
    return F.hardsigmoid(g.o) * F.hardtanh(c), c


class Spike(torch.autograd.Function):
    """A step, with the derivative of an arctangent in its place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v):
        return (v > 0).to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad / (1 + (3.14159 * v) ** 2)


def lif(g, s, p):
    v = sigmoid(p.decay) * s.v * (1 - s.h) + g.i
    return Spike.apply(v - 1), v


def mgu(g, s, p):
    f = sigmoid(g.f)
    return (1 - f) * s.h + f * tanh(g.x_n + f * g.u_n)


def original_gru(g, s, p):
    r, z = sigmoid(g.r), sigmoid(g.z)
    return z * s.h + (1 - z) * tanh(g.x_n + g.w_n(r * s.h))


def multiplicative_lstm(g, s, p):
    m = g.x_m * g.u_m
    c = sigmoid(g.x_f + g.w_f(m)) * s.c + sigmoid(g.x_i + g.w_i(m)) * tanh(g.w_z(m))
    return sigmoid(g.x_o + p.w_o * c) * tanh(c), c


def normed_gates_of_a_norm(g, s, p):
    v = norm(g.a) * p.w + s.h
    return tanh(norm(g.w_n(v)) + g.w_m(v) * p.dt) + 0.5 * s.c, s.h * sigmoid(v)


def mc_lstm(g, s, p):
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.g)
    return sigmoid(g.v) * tanh(c), c, sigmoid(g.o) * tanh(c)


def decaying_lstm(g, s, p):
    decay = torch.exp(-p.dt * F.softplus(p.rate))
    c = sigmoid(g.f) * (s.c * decay) + sigmoid(g.i) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


def norm(x):
    return F.layer_norm(x, x.shape[-1:])


def layer_norm_lstm(g, s, p):
    i, f = norm(g.i) * p.w_i + p.b_i, norm(g.f) * p.w_f + p.b_f
    z, o = norm(g.g) * p.w_g + p.b_g, norm(g.o) * p.w_o + p.b_o
    c = sigmoid(f) * s.c + sigmoid(i) * tanh(z)
    return sigmoid(o) * tanh(norm(c) * p.w_c + p.b_c), c


def zoneout_lstm(g, s, p):
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.g)
    h = sigmoid(g.o) * tanh(c)
    return p.keep_h * s.h + (1 - p.keep_h) * h, p.keep_c * s.c + (1 - p.keep_c) * c


def antisymmetric(g, s, p):
    return s.h + 0.1 * sigmoid(g.x_z + g.u_a) * tanh(g.x_a + g.u_a)


def fast_grnn(g, s, p):
    z = sigmoid(g.a + p.b_z)
    return (sigmoid(p.zeta) * (1 - z) + sigmoid(p.nu)) * tanh(g.a + p.b_h) + z * s.h


def unicornn(g, s, p):
    z = s.z - 0.1 * sigmoid(p.c) * (tanh(g.x_a + p.w * s.h) + 0.9 * s.h)
    return s.h + 0.1 * sigmoid(p.c) * z, z


def rg_lru(g, s, p):
    a = torch.exp(-8 * F.softplus(p.rate) * sigmoid(g.x_r))
    return a * s.h + torch.sqrt(1 - a * a) * (sigmoid(g.x_i) * g.x_x)


CELLS = {
    cell.name: cell
    for cell in (
        Cell(rnn, "h"),
        Cell(lstm, "i f g o", "h c"),
        Cell(gru, "r z x:n u:n"),
        Cell(peephole, "i f g o", "h c", "w_i w_f w_o"),
        Cell(slstm, "i f z o", "h c n m"),
        Cell(cifg, "f g o", "h c"),
        Cell(ligru, "z c"),
        Cell(cfc, "f1 f2 a b", inputs="dt"),
        Cell(ugrnn, "u c"),
        Cell(hard_lstm, "i f g o", "h c"),
        Cell(lif, "i", "h v", "decay", init={"decay": 1.0}),
        Cell(mgu, "f x:n u:n"),
        Cell(original_gru, "r z x:n w:n"),
        Cell(multiplicative_lstm, "x:m u:m x:i w:i x:f w:f x:o w:z", "h c", "w_o"),
        Cell(normed_gates_of_a_norm, "a w:n w:m", "h c", "w", "dt", output="c"),
        Cell(mc_lstm, "f i o v g", "y c h", recurrent="h", output="y"),
        Cell(decaying_lstm, "i f g o", "h c", "rate", "dt"),
        Cell(layer_norm_lstm, "i f g o", "h c", "w_i w_f w_g w_o b_i b_f b_g b_o w_c b_c"),
        Cell(zoneout_lstm, "i f g o", "h c", inputs="keep_h keep_c"),
        Cell(antisymmetric, "x:z x:a u:a"),
        Cell(fast_grnn, "a", params="zeta nu b_z b_h"),
        Cell(unicornn, "x:a", "h z", "w c", output="z"),
        Cell(rg_lru, "x:r x:i x:x", params="rate"),
    )
}
