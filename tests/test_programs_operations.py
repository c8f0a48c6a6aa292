"""Every operation that a step may contain, at ordinary numbers, NaN and infinity."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from program_checks import check

from fastrnn.programs import Cell

NUMBERS = [0.0, 1.0, -1.0, 0.3, -0.7, 2.0, -3.0, 25.0, -25.0, math.inf, -math.inf, math.nan]

# Functions of planes a and b. Where torch itself has a constant in float32, or an approximation
# of its own, the tolerance says so.
OPERATIONS = {
    "relu": lambda a, b: F.relu(a) * b,
    "relu6": lambda a, b: F.relu6(a) * b,
    "leaky_relu": lambda a, b: F.leaky_relu(a, 0.1) * b,
    "elu": lambda a, b: F.elu(a, 0.7) * b,
    "celu": lambda a, b: F.celu(a, 0.7) * b,
    "selu": lambda a, b: F.selu(a) * b,
    "gelu": lambda a, b: F.gelu(a) * b,
    "gelu_tanh": lambda a, b: F.gelu(a, approximate="tanh") * b,
    "silu": lambda a, b: F.silu(a) * b,
    "mish": lambda a, b: F.mish(a) * b,
    "softplus": lambda a, b: F.softplus(a, 2.0, 15.0) * b,
    "softsign": lambda a, b: F.softsign(a) * b,
    "hardtanh": lambda a, b: F.hardtanh(a, -0.5, 0.8) * b,
    "hardsigmoid": lambda a, b: F.hardsigmoid(a) * b,
    "hardswish": lambda a, b: F.hardswish(a) * b,
    "logsigmoid": lambda a, b: F.logsigmoid(a) * b,
    "tanhshrink": lambda a, b: F.tanhshrink(a) * b,
    "softshrink": lambda a, b: F.softshrink(a, 0.4) * b,
    "hardshrink": lambda a, b: F.hardshrink(a, 0.4) * b,
    "threshold": lambda a, b: F.threshold(a, 0.1, 2.0) * b,
    "clamp": lambda a, b: a.clamp(-0.5, 0.5) * b,
    "clamp_min": lambda a, b: torch.clamp(a, min=b),
    "clamp_both": lambda a, b: torch.clamp(a, b, b + 1),
    "clamp_max": lambda a, b: torch.clamp_max(a, 0.2) + torch.clamp(b, max=0.1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "where": lambda a, b: torch.where((a > 0) & (b < 1), a, b),
    "where_or": lambda a, b: torch.where((a >= 0) | ~(b <= 1), a * b, 0.0),
    "where_ne": lambda a, b: torch.where((a != b) ^ (a == 1), a, 2 * b),
    "where_number": lambda a, b: torch.where(a > b, 1.0, b),
    "logic": lambda a, b: torch.logical_and(a, b).to(a.dtype) + torch.logical_not(b) * a,
    "isnan": lambda a, b: torch.where(torch.isnan(a), b, a),
    "isfinite": lambda a, b: torch.where(a.isfinite(), a, b) + torch.isinf(b) * 1.0,
    "nan_to_num": lambda a, b: torch.nan_to_num(a, 0.5, 7.0, -7.0) * b,
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.25),
    "abs": lambda a, b: abs(a) + torch.sign(b) * a,
    "sgn": lambda a, b: torch.sgn(a) * b + a,
    "sgn alone": lambda a, b: torch.sgn(a) * 0.1 + torch.sgn(a * b),
    "square": lambda a, b: a.square() + b**2,
    "remainder": lambda a, b: a % 0.75 + torch.remainder(b, -0.4),
    "cube": lambda a, b: a**3 - b**5,
    "inverse_square": lambda a, b: a**-2 + b,
    "power_of": lambda a, b: 1.5**a * b,
    "sqrt": lambda a, b: torch.sqrt(a) * b,
    "rsqrt": lambda a, b: torch.rsqrt(a) * b,
    "reciprocal": lambda a, b: a.reciprocal() - 1 / b,
    "division": lambda a, b: a / b + a / 3,
    "exp": lambda a, b: torch.exp(a) - b,
    "exp2": lambda a, b: torch.exp2(a) - b,
    "expm1": lambda a, b: torch.expm1(a) * b,
    "log": lambda a, b: torch.log(a) * b,
    "log2_log10": lambda a, b: torch.log2(a) + torch.log10(b),
    "log1p": lambda a, b: torch.log1p(a) * b,
    "logaddexp": torch.logaddexp,
    "sin_cos": lambda a, b: torch.sin(a) * torch.cos(b),
    "erf": lambda a, b: torch.erf(a) * b + torch.erfc(b),
    "sinh_cosh": lambda a, b: torch.sinh(a) * 0.5 + torch.cosh(b),
    "floor": lambda a, b: torch.floor(a) + torch.ceil(b) + b,
    "round": lambda a, b: torch.round(a) + torch.trunc(b) + a,
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp_tensor": lambda a, b: torch.lerp(a, b, torch.sigmoid(b)),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b, value=0.5),
    "alpha": lambda a, b: torch.add(a, b, alpha=2) - torch.sub(b, a, alpha=3),
    "rsub": lambda a, b: 1 - a + torch.rsub(a, b),
    "likes": lambda a, b: a * torch.ones_like(b) + torch.zeros_like(a) + torch.full_like(a, 2.0),
    "filled": lambda a, b: a * torch.ones(a.shape) + b.new_full(b.shape, 0.5),
    "constant": lambda a, b: a * torch.tensor(0.25) + b,
    "casts": lambda a, b: a.to(a.dtype) + (b > 0).double() + (a > 0).long() * b,
    "negation": lambda a, b: -(a * b) - (-a) * b + (-(a - b)),
    "written_derivatives": lambda a, b: a * b * (1 - b) + a * (1 - b * b),
    "zero_times": lambda a, b: a * 0 + b,
    "detach": lambda a, b: a.detach() * b,
    "sigmoid_tanh": lambda a, b: torch.sigmoid(a) * torch.tanh(b),
    "same_twice": lambda a, b: torch.maximum(a, a) + b,
    "views": lambda a, b: a.clone().view_as(b).contiguous() + b[:].expand_as(a),
}
TOLERANCES = {"hardsigmoid": 1e-7}
ORDINARY = 9  # of NUMBERS


def cell_of(function):
    return Cell(lambda g, s, p: function(g.a, g.b), "a b")


def planes(numbers):
    a, b = (torch.tensor(list(column)).double() for column in zip(*numbers, strict=True))
    d = torch.linspace(0.5, 1.5, len(a)).double()
    row = {"a": a[None], "b": b[None]}
    u = {name: torch.zeros_like(plane) for name, plane in row.items()}
    return {"x": row, "u": u, "s": {"h": u["a"]}, "p": {}, "d": {"h": d[None]}}


@pytest.mark.parametrize("name", OPERATIONS)
def test_ordinary_numbers(name):
    numbers = list(itertools.product(NUMBERS[:ORDINARY], repeat=2))
    check(cell_of(OPERATIONS[name]), planes(numbers), TOLERANCES.get(name, 1e-11))


# Of a NaN, torch's derivatives of these are others in a vector register than one by one. Programs
# have the latter.
ONE_BY_ONE = "relu6 elu celu selu hardtanh hardswish softshrink hardshrink".split()


@pytest.mark.parametrize("name", OPERATIONS)
def test_nan_and_infinity(name):
    numbers = list(itertools.product(NUMBERS, repeat=2))
    cell = cell_of(OPERATIONS[name])
    for each in [[pair] for pair in numbers] if name in ONE_BY_ONE else [numbers]:
        check(cell, planes(each), TOLERANCES.get(name, 1e-11))
