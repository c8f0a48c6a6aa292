"""The arithmetic of one time step of one hidden unit in Triton, as `csrc/cells.h` is in C++.

forward   x, u   tuples of the G input and hidden parts of the pre-activations; u comes apart from
                 x because a GRU scales it alone
          kept   what the unit keeps for itself in float32 from step to step: c of an lstm, h of a
                 gru, which enters h_t directly and unrounded; nothing else is kept
          -> (h, kept, saved), saved being the planes for backward
backward  saved, h_prev, h, c_prev, c   states as forward saw and left them
          dh     gradient of h_t, complete      dc   gradient of c_t from later steps
          -> (kept, dx, du): the gradient of what was kept, and those of x and u. For a gru the
             first is the part of the gradient of h_{t-1} that does not go through W_hh

All values are float32 blocks. A cell uses what it needs and ignores the rest.
"""

from __future__ import annotations

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
def lstm_forward(x, u, kept):
    i = sigmoid(x[0] + u[0])
    f = sigmoid(x[1] + u[1])
    g = tanh(x[2] + u[2])
    o = sigmoid(x[3] + u[3])
    c = f * kept + i * g
    return o * tanh(c), c, (i, f, g, o)


@triton.jit
def lstm_backward(saved, h_prev, h, c_prev, c, dh, dc):
    i, f, g, o = saved
    tanh_c = tanh(c)
    dc += dh * o * (1 - tanh_c * tanh_c)
    du = (
        dc * g * i * (1 - i),
        dc * c_prev * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return dc * f, du, du


@triton.jit
def gru_forward(x, u, kept):
    r = sigmoid(x[0] + u[0])
    z = sigmoid(x[1] + u[1])
    n = tanh(x[2] + r * u[2])
    h = n + z * (kept - n)
    return h, h, (r, z, n, u[2])


@triton.jit
def gru_backward(saved, h_prev, h, c_prev, c, dh, dc):
    r, z, n, u_n = saved
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * u_n * r * (1 - r)
    dz = dh * (h_prev - n) * z * (1 - z)
    return dh * z, (dr, dz, dn), (dr, dz, dn * r)


@triton.jit
def rnn_tanh_forward(x, u, kept):
    return tanh(x[0] + u[0]), kept, ()


@triton.jit
def rnn_tanh_backward(saved, h_prev, h, c_prev, c, dh, dc):
    du = (dh * (1 - h * h),)
    return dc, du, du


@triton.jit
def rnn_relu_forward(x, u, kept):
    a = x[0] + u[0]
    return tl.where(a < 0, 0.0, a), kept, ()


@triton.jit
def rnn_relu_backward(saved, h_prev, h, c_prev, c, dh, dc):
    du = (tl.where(h <= 0, 0.0, dh),)
    return dc, du, du


# By the names of `gpu.CELLS`. A NaN passes through every forward.
STEPS = {
    "lstm": (lstm_forward, lstm_backward),
    "gru": (gru_forward, gru_backward),
    "rnn_tanh": (rnn_tanh_forward, rnn_tanh_backward),
    "rnn_relu": (rnn_relu_forward, rnn_relu_backward),
}
