"""The arithmetic of one time step of one hidden unit in Triton, as `csrc/cells.h` is in C++.

forward   x, u   tuples of the input and hidden parts of the pre-activations; u comes apart from x
                 because a GRU scales it alone
          kept   what the unit keeps for itself in float32 from step to step: h where it enters the
                 step other than by W_hh, and then the planes of c
          p      parameters of the unit and inputs of the row, of cells that are functions
          unit   whether a column is a unit at all
          -> (h, kept, saved), saved being the planes for backward
backward  saved, p, unit
          old, new   the states before and after the step: h, and then the planes of c
          d          their gradients after the step: complete of h, of c from later steps
          -> (kept, dx, du, dp): the gradients of what was kept, without what goes through W_hh, of
             x, of u and of p

A cell with a second product, of a plane v that its step makes, has two functions more. `u` above
has the sums of v behind those of h, and `d` the gradient of v behind those of the states:

first_forward   x, u of h, kept, p, unit -> (v, saved): the planes that forward does not give
first_backward  as backward, but for the gradient of v -> the gradients of the sums of v

All values are float32 blocks. A cell uses what it needs and ignores the rest, which may be zero.
Cells that are functions have such steps printed: see `printed.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh within about 2 units in the last place for small x, where 1 - e^-2x would cancel.

    The polynomial was fitted for minimal relative error of x + x^3 q(x^2) on |x| <= 0.625: 4.4e-9.
    """
    z = x * x
    q = -0.333332819 + z * (
        0.133314422 + z * (-0.0537397145 + z * (0.020639085 + z * -0.00570498438))
    )
    large = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, x + x * z * q, tl.where(x < 0, -large, large))


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def expm1(x):
    """e^x - 1, of small x by tanh(x / 2), which does not cancel."""
    t = tanh(0.5 * x)
    return tl.where(tl.abs(x) < 1, 2 * t / (1 - t), tl.exp(x) - 1)


@triton.jit
def log1p(x):
    """log(1 + x): what 1 + x was rounded to has a known logarithm, of which x takes its share."""
    u = 1 + x
    y = tl.log(u) * (x / (u - 1))
    return tl.where(u == 1, x, tl.where(x == float("inf"), x, y))


@triton.jit
def nearest(x):
    """x rounded to an integer, to the even one of two. Above 2^23 all numbers are integers."""
    y = (tl.abs(x) + 8388608.0) - 8388608.0
    return tl.where(tl.abs(x) < 8388608.0, tl.where(x < 0, -y, y), x)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def lstm_forward(x, u, kept, p, unit):
    i = sigmoid(x[0] + u[0])
    f = sigmoid(x[1] + u[1])
    g = tanh(x[2] + u[2])
    o = sigmoid(x[3] + u[3])
    c = f * kept[0] + i * g
    return o * tanh(c), (c,), (i, f, g, o)


@triton.jit
def lstm_backward(saved, old, new, p, d, unit):
    i, f, g, o = saved
    dh, dc = d
    tanh_c = tanh(new[1])
    dc += dh * o * (1 - tanh_c * tanh_c)
    du = (
        dc * g * i * (1 - i),
        dc * old[1] * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return (dc * f,), du, du, ()


@triton.jit
def gru_forward(x, u, kept, p, unit):
    r = sigmoid(x[0] + u[0])
    z = sigmoid(x[1] + u[1])
    n = tanh(x[2] + r * u[2])
    h = n + z * (kept[0] - n)
    return h, (h,), (r, z, n, u[2])


@triton.jit
def gru_backward(saved, old, new, p, d, unit):
    r, z, n, u_n = saved
    (dh,) = d
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * u_n * r * (1 - r)
    dz = dh * (old[0] - n) * z * (1 - z)
    return (dh * z,), (dr, dz, dn), (dr, dz, dn * r), ()


@triton.jit
def rnn_tanh_forward(x, u, kept, p, unit):
    return tanh(x[0] + u[0]), (), ()


@triton.jit
def rnn_tanh_backward(saved, old, new, p, d, unit):
    du = (d[0] * (1 - new[0] * new[0]),)
    return (), du, du, ()


@triton.jit
def rnn_relu_forward(x, u, kept, p, unit):
    a = x[0] + u[0]
    return tl.where(a < 0, 0.0, a), (), ()


@triton.jit
def rnn_relu_backward(saved, old, new, p, d, unit):
    du = (tl.where(new[0] <= 0, 0.0, d[0]),)
    return (), du, du, ()


class Steps(NamedTuple):
    """The functions of a cell. Of old and new bit k says whether backward reads state k."""

    forward: Callable
    backward: Callable
    old: int = 0
    new: int = 0
    first_forward: Callable | None = None  # these three of a cell with a second product
    first_backward: Callable | None = None
    saved_first: int = 0  # how many planes first_forward saves; the first of them is v


# By the names of `table.CELLS`. A NaN passes through every forward.
STEPS = {
    "lstm": Steps(lstm_forward, lstm_backward, old=0b10, new=0b10),
    "gru": Steps(gru_forward, gru_backward, old=0b1),
    "rnn_tanh": Steps(rnn_tanh_forward, rnn_tanh_backward, new=0b1),
    "rnn_relu": Steps(rnn_relu_forward, rnn_relu_backward, new=0b1),
}
