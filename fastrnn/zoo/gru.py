"""Cells of one state that is a mean of the old one and a candidate, as that of a GRU."""

from __future__ import annotations

from torch import relu, sigmoid, tanh

from ..programs import Cell
from .norm import layer_norm


def original_gru(g, s, p):
    """The GRU of its paper, which resets before the product (Cho et al. 2014, arXiv 1406.1078).

        r, z = s(W x + U h)                 n = tanh(W x + U (r h))
        h' = z h + (1 - z) n

    The GRU of `torch.nn` and of cuDNN has r (U h). Keras calls this one `reset_after=False`.
    """
    r, z = sigmoid(g.r), sigmoid(g.z)
    return z * s.h + (1 - z) * tanh(g.x_n + g.w_n(r * s.h))


OriginalGRU = Cell(original_gru, "r z x:n w:n", name="OriginalGRU")


def layer_norm_gru(g, s, p):
    """Layer normalization in a GRU (Ba, Kiros & Hinton 2016, arXiv 1607.06450, appendix).

        (r, z) = LN(W x) + LN(U h) + b        each norm over the units of both gates
        n = tanh(LN(W x) + s(r) LN(U h) + b)
        h' = s(z) h + (1 - s(z)) n

    Every norm has gains: x_r x_z x_n u_r u_z u_n. b is b_r b_z b_n, and u_b is the bias of the norm
    that r multiplies. A `Recurrent` of it is built with bias=False: its own biases would be inside
    the norms.
    """
    x, u = layer_norm(g.x_r, g.x_z), layer_norm(g.u_r, g.u_z)
    r = sigmoid(x[0] * p.x_r + u[0] * p.u_r + p.b_r)
    z = sigmoid(x[1] * p.x_z + u[1] * p.u_z + p.b_z)
    (x_n,), (u_n,) = layer_norm(g.x_n), layer_norm(g.u_n)
    n = tanh(x_n * p.x_n + p.b_n + r * (u_n * p.u_n + p.u_b))
    return z * s.h + (1 - z) * n


_GAINS = "x_r x_z x_n u_r u_z u_n"
_BIASES = "b_r b_z b_n u_b"

LayerNormGRU = Cell(
    layer_norm_gru,
    "x:r x:z x:n u:r u:z u:n",
    params=f"{_GAINS} {_BIASES}",
    init=dict.fromkeys(_GAINS.split(), 1.0) | dict.fromkeys(_BIASES.split(), 0.0),
    name="LayerNormGRU",
)


def dreamer_gru(g, s, p):
    """The GRU of the world models of Dreamer (Hafner et al. 2020, arXiv 2010.02193, and 2023, arXiv
    2301.04104, in its first version).

        (r, n, z) = LN(W x + U h)             one norm over the units of all three gates
        z = s(z - 1)
        h' = z tanh(s(r) n) + (1 - z) h

    The norm has gains w_r w_n w_z and biases b_r b_n b_z, so a `Recurrent` of it is built with
    bias=False.
    """
    r, n, z = layer_norm(g.r, g.n, g.z, eps=1e-3)
    r = sigmoid(r * p.w_r + p.b_r)
    z = sigmoid(z * p.w_z + p.b_z - 1)
    return z * tanh(r * (n * p.w_n + p.b_n)) + (1 - z) * s.h


DreamerGRU = Cell(
    dreamer_gru,
    "r n z",
    params="w_r w_n w_z b_r b_n b_z",
    init=dict.fromkeys(("w_r", "w_n", "w_z"), 1.0) | dict.fromkeys(("b_r", "b_n", "b_z"), 0.0),
    name="DreamerGRU",
)


def li_gru(g, s, p):
    """A GRU for speech, without a reset gate and with a ReLU (Ravanelli et al. 2018, arXiv
    1803.10225).

        z = s(W x + U h)                    h' = z h + (1 - z) relu(W x + U h)

    The batch normalization that the paper applies to W x is left out.
    """
    z = sigmoid(g.z)
    return z * s.h + (1 - z) * relu(g.n)


LiGRU = Cell(li_gru, "z n", name="LiGRU")


def ugrnn(g, s, p):
    """One gate (Collins, Sohl-Dickstein & Sussillo 2016, arXiv 1611.09913).

    z = s(W x + U h)                    h' = z h + (1 - z) tanh(W x + U h)
    """
    z = sigmoid(g.z)
    return z * s.h + (1 - z) * tanh(g.n)


UGRNN = Cell(ugrnn, "z n", name="UGRNN")


def mgu(g, s, p):
    """One gate that resets and updates (Zhou et al. 2016, arXiv 1603.09420).

    f = s(W x + U h)                    h' = (1 - f) h + f tanh(W x + U (f h))
    """
    f = sigmoid(g.f)
    return (1 - f) * s.h + f * tanh(g.x_n + g.w_n(f * s.h))


MGU = Cell(mgu, "f x:n w:n", name="MGU")


def gru_d(g, s, p):
    """A GRU whose state decays between observations (Che et al. 2016, arXiv 1606.01865).

        r, z = s(W x + U d)                 n = tanh(W x + U (r d))
        h' = (1 - z) d + z n                d' = decay h'

    where d is the state h after its decay, so that the product sees it: the input `decay` of step t
    is the paper's gamma_h of step t + 1, and 1 at the last step. Outside the step, for all steps at
    once, remain the decay, exp(-relu(W delta)), the replacement of missing values, and the mask of
    what is missing, which is a part of x. One direction alone: the second one would need the decays
    of the step before.
    """
    r, z = sigmoid(g.r), sigmoid(g.z)
    h = (1 - z) * s.d + z * tanh(g.x_n + g.w_n(r * s.d))
    return h, p.decay * h


GRUD = Cell(gru_d, "r z x:n w:n", "h d", inputs="decay", recurrent="d", name="GRUD")
