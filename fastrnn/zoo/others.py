"""Cells in continuous time, with independent units, and with spikes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, relu, sigmoid, tanh

from ..programs import Cell


def cfc(g, s, p):
    """Closed-form continuous time (Hasani et al. 2021, arXiv 2106.13898).

        t = s(a dt + b)                     h' = (1 - t) tanh(f1) + t tanh(f2)

    f1, f2, a and b are W x + U h each: the network without a backbone. dt is an input, the time
    since the step before.
    """
    t = sigmoid(g.a * p.dt + g.b)
    return (1 - t) * tanh(g.f1) + t * tanh(g.f2)


CfC = Cell(cfc, "f1 f2 a b", inputs="dt", name="CfC")


def ind_rnn(g, s, p):
    """Each unit sees its own past alone (Li et al. 2018, arXiv 1803.04831).

    h' = relu(W x + u h)                u is a vector, at first uniform in (0, 1)
    """
    return relu(g.x_h + p.u * s.h)


def _uniform(u: Tensor) -> None:
    u.uniform_(0, 1)


IndRNN = Cell(ind_rnn, "x:h", params="u", init={"u": _uniform}, name="IndRNN")


class _Spike(torch.autograd.Function):
    """1 where v > 0, else 0; its derivative is that of arctan(pi v) / pi."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return (v > 0).to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        steep = math.pi * v
        return grad / (1 + steep * steep)


def lif(g, s, p):
    """Leaky integrate-and-fire neurons that learn how they leak (Fang et al. 2021, arXiv
    2007.05785), here with recurrent weights.

        v* = v + s(leak) (W x + U h - v)    h' = 1 if v* > 1 else 0, the spikes
        v' = (1 - h') v*

    For the derivative of a spike stands that of arctan(pi (v* - 1)) / pi.
    """
    v = s.v + sigmoid(p.leak) * (g.i - s.v)
    spike = _Spike.apply(v - 1)
    return spike, (1 - spike) * v


LIF = Cell(lif, "i", "h v", "leak", init={"leak": 0.0}, name="LIF")
