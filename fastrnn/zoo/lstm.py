"""Cells that are LSTMs but for one idea each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import exp, maximum, sigmoid, tanh, where

from ..programs import Cell
from .norm import layer_norm


def peephole_lstm(g, s, p):
    """The gates see the cell (Gers & Schmidhuber 2000; in this form Graves 2013, arXiv 1308.0850).

    i = s(W x + U h + w_i c)            f = s(W x + U h + w_f c)
    c' = f c + i tanh(W x + U h)        o = s(W x + U h + w_o c')
    h' = o tanh(c')
    """
    i = sigmoid(g.i + p.w_i * s.c)
    f = sigmoid(g.f + p.w_f * s.c)
    c = f * s.c + i * tanh(g.g)
    o = sigmoid(g.o + p.w_o * c)
    return o * tanh(c), c


PeepholeLSTM = Cell(peephole_lstm, "i f g o", "h c", "w_i w_f w_o", name="PeepholeLSTM")


def cifg(g, s, p):
    """Input and forget gate are one, which saves a fourth of an LSTM (Greff et al. 2015, arXiv
    1503.04069: CIFG).

        f = s(W x + U h)                    o = s(W x + U h)
        c' = f c + (1 - f) tanh(W x + U h)  h' = o tanh(c')
    """
    f = sigmoid(g.f)
    c = f * s.c + (1 - f) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


CIFG = Cell(cifg, "f g o", "h c", name="CIFG")


def layer_norm_lstm(g, s, p):
    """Layer normalization in an LSTM (Ba, Kiros & Hinton 2016, arXiv 1607.06450, equations 20-22).

        (i, f, g, o) = LN(W x) + LN(U h) + b  each norm over the units of all four gates
        c' = s(f) c + s(i) tanh(g)            h' = s(o) tanh(LN(c'))

    Every norm has gains: x_i ... x_o, u_i ... u_o and w_c. b is b_i ... b_o, that of the last norm
    b_c. A `Recurrent` of it is built with bias=False: its own biases would be inside the norms.
    """
    x = layer_norm(g.x_i, g.x_f, g.x_g, g.x_o)
    u = layer_norm(g.u_i, g.u_f, g.u_g, g.u_o)
    i = sigmoid(x[0] * p.x_i + u[0] * p.u_i + p.b_i)
    f = sigmoid(x[1] * p.x_f + u[1] * p.u_f + p.b_f)
    z = tanh(x[2] * p.x_g + u[2] * p.u_g + p.b_g)
    o = sigmoid(x[3] * p.x_o + u[3] * p.u_o + p.b_o)
    c = f * s.c + i * z
    (normed,) = layer_norm(c)
    return o * tanh(normed * p.w_c + p.b_c), c


_GAINS = "x_i x_f x_g x_o u_i u_f u_g u_o w_c"
_BIASES = "b_i b_f b_g b_o b_c"

LayerNormLSTM = Cell(
    layer_norm_lstm,
    "x:i x:f x:g x:o u:i u:f u:g u:o",
    "h c",
    f"{_GAINS} {_BIASES}",
    init=dict.fromkeys(_GAINS.split(), 1.0) | dict.fromkeys(_BIASES.split(), 0.0),
    name="LayerNormLSTM",
)


def zoneout_lstm(g, s, p):
    """Units keep their state by chance (Krueger et al. 2016, arXiv 1606.01305).

        (h*, c*) = LSTM(x, h, c)
        c' = k_c c + (1 - k_c) c*           h' = k_h h + (1 - k_h) h*

    The masks k are the inputs keep_h and keep_c. `zoneout` draws them in training, and gives their
    expectation otherwise.
    """
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.g)
    h = sigmoid(g.o) * tanh(c)
    return p.keep_h * s.h + (1 - p.keep_h) * h, p.keep_c * s.c + (1 - p.keep_c) * c


ZoneoutLSTM = Cell(zoneout_lstm, "i f g o", "h c", inputs="keep_h keep_c", name="ZoneoutLSTM")


def recurrent_dropout_lstm(g, s, p):
    """Dropout of what is written, never of what is kept (Semeniuta, Severyn & Barth 2016, arXiv
    1603.05118).

        c' = s(f) c + s(i) (m tanh(g))      h' = s(o) tanh(c')      each gate is W x + U h

    The mask m is the input `mask`. `recurrent_dropout` draws it in training, a step or a sequence
    at a time, and gives its expectation otherwise.
    """
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * (p.mask * tanh(g.g))
    return sigmoid(g.o) * tanh(c), c


RecurrentDropoutLSTM = Cell(
    recurrent_dropout_lstm, "i f g o", "h c", inputs="mask", name="RecurrentDropoutLSTM"
)


def s_lstm(g, s, p):
    """Exponential gates with a normalizer n and a stabilizer m (Beck et al. 2024, arXiv 2405.04517:
    sLSTM; `Recurrent(SLSTM, ..., heads=4)` has the heads of the paper, without their norm).

        m' = max(log s(f) + m, i)           i where nothing was written yet
        c' = exp(log s(f) + m - m') c + exp(i - m') tanh(z)
        n' = exp(log s(f) + m - m') n + exp(i - m')
        h' = s(o) c' / n'                   each gate is W x + U h
    """
    # Where nothing was written, c and n are zero, and whatever their factor is must be finite.
    kept = where(s.n == 0, g.i, F.logsigmoid(g.f) + s.m)
    m = maximum(kept, g.i)
    f, i = exp(kept - m), exp(g.i - m)
    c = f * s.c + i * tanh(g.z)
    n = f * s.n + i
    return sigmoid(g.o) * c / n, c, n, m


SLSTM = Cell(s_lstm, "i f z o", "h c n m", name="SLSTM")


def multiplicative_lstm(g, s, p):
    """An LSTM whose product depends on the input (Krause et al. 2016, arXiv 1609.07959).

    m = (W x) (U h)
    i, f, o = s(W x + V m)              z = W x + V m
    c' = f c + i z                      h' = tanh(c' o)
    """
    m = g.x_m * g.u_m
    i, f, o = (sigmoid(a) for a in (g.x_i + g.w_i(m), g.x_f + g.w_f(m), g.x_o + g.w_o(m)))
    c = f * s.c + i * (g.x_z + g.w_z(m))
    return tanh(c * o), c


MultiplicativeLSTM = Cell(
    multiplicative_lstm,
    "x:m u:m x:i w:i x:f w:f x:o w:o x:z w:z",
    states="h c",
    name="MultiplicativeLSTM",
)
