"""What the operations of torch are in a graph: aten's names, each with aten's arguments.

A tensor arrives as a Value, a number as itself. What is not here is decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .graph import Graph, Value

# One operation of the machine each: those of the same name, and others.
ALIKE = {
    name: name
    for name in (
        "neg exp expm1 log log1p sqrt abs sin cos erf floor sigmoid tanh mul div lt le eq where"
    ).split()
} | {
    "absolute": "abs",
    "maximum": "max",
    "minimum": "min",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_not": "not",
    "sigmoid_backward": "dsigmoid",
    "tanh_backward": "dtanh",
}

# The same numbers in another tensor, or under another shape that the recorder has checked.
SAME = (
    "detach alias clone contiguous positive lift lift_fresh lift_fresh_copy view _unsafe_view "
    "reshape expand unsqueeze squeeze slice view_of"
).split()

# Tensors that are filled with a number, None for one that is given. What is empty is written
# before it is read.
FILLED = {
    **dict.fromkeys("zeros zeros_like new_zeros _efficientzerotensor".split(), 0),
    **dict.fromkeys("empty empty_like new_empty empty_permuted empty_strided".split(), 0),
    **dict.fromkeys("ones ones_like new_ones".split(), 1),
    **dict.fromkeys("full full_like new_full scalar_tensor".split()),
}


def _add(g: Graph, a: Value, b: Value, alpha: float = 1) -> Value:
    return g.apply("add", a, g.apply("mul", b, alpha))


def _sub(g: Graph, a: Value, b: Value, alpha: float = 1) -> Value:
    return g.apply("sub", a, g.apply("mul", b, alpha))


def _floor_towards_zero(g: Graph, a: Value) -> Value:
    negative = g.apply("lt", a, 0)
    return g.apply("where", negative, _ceil(g, a), g.apply("floor", a))


def _ceil(g: Graph, a: Value) -> Value:
    return g.apply("neg", g.apply("floor", g.apply("neg", a)))


def _sign(g: Graph, a: Value) -> Value:
    zero, one = 0, 1
    negative = g.apply("where", g.apply("lt", a, zero), -1, zero)
    return g.apply("where", g.apply("lt", zero, a), one, negative)


def _round(g: Graph, a: Value, decimals: int = 0) -> Value:
    if not decimals:
        return g.apply("round", a)
    scale = 10.0**decimals
    return g.apply("div", g.apply("round", g.apply("mul", a, scale)), scale)


def _power(g: Graph, a: Value, exponent: float) -> Value | None:
    """a ** exponent; None if it has no form that is right for every a."""
    if exponent < 0:
        inverse = _power(g, a, -exponent)
        return inverse and g.apply("div", 1, inverse)
    if exponent == 0:
        return g.constant(1)
    if exponent != int(exponent):
        if 2 * exponent == int(2 * exponent) <= 16:
            root, whole = g.apply("sqrt", a), int(exponent)
            return g.apply("mul", _power(g, a, whole), root) if whole else root
        return g.apply("exp", g.apply("mul", g.apply("log", a), exponent))
    if exponent > 256:
        return None
    half = _power(g, a, exponent // 2) if exponent > 1 else g.constant(1)
    square = g.apply("mul", half, half)
    return g.apply("mul", square, a) if exponent % 2 else square


def _pow(g: Graph, a: Value | float, b: Value | float) -> Value | None:
    exponent = b.number if isinstance(b, Value) else b
    base = a.number if isinstance(a, Value) else a
    if exponent is not None:
        return _power(g, a if isinstance(a, Value) else g.constant(a), exponent)
    if base is not None and base > 0:
        return g.apply("exp", g.apply("mul", b, math.log(base)))
    return None  # of a plane to a plane: a negative one has a power by whole numbers alone


def _clamp(g: Graph, a: Value, min: Value | None = None, max: Value | None = None) -> Value:
    a = a if min is None else g.apply("max", a, min)
    return a if max is None else g.apply("min", a, max)


def _isnan(g: Graph, a: Value) -> Value:
    return g.apply("not", g.apply("eq", a, a))


def _other_if_nan(op: str) -> Callable[[Graph, Value, Value], Value]:
    def operation(g: Graph, a: Value, b: Value) -> Value:
        chosen = g.apply("where", _isnan(g, b), a, g.apply(op, a, b))
        return g.apply("where", _isnan(g, a), b, chosen)

    return operation


def _elu(g: Graph, a: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    below = g.apply("expm1", g.apply("mul", a, input_scale))
    below = g.apply("mul", below, alpha * scale)
    above = g.apply("mul", a, scale)
    return g.apply("where", g.apply("lt", 0, a), above, below)


def _leaky_relu(g: Graph, a: Value, negative_slope: float = 0.01) -> Value:
    below = g.apply("mul", a, negative_slope)
    return g.apply("where", g.apply("lt", 0, a), a, below)


def _celu(g: Graph, a: Value, alpha: float = 1) -> Value:
    return _elu(g, a, alpha, 1, 1 / alpha)


def _softplus(g: Graph, a: Value, beta: float = 1, threshold: float = 20) -> Value:
    steep = g.apply("mul", a, beta)
    soft = g.apply("div", g.apply("log1p", g.apply("exp", steep)), beta)
    return g.apply("where", g.apply("lt", threshold, steep), a, soft)


def _mish(g: Graph, a: Value) -> Value:
    return g.apply("mul", a, g.apply("tanh", _softplus(g, a)))


def _gelu(g: Graph, a: Value, approximate: str = "none") -> Value:
    if approximate == "none":
        through = g.apply("erf", g.apply("mul", a, math.sqrt(0.5)))
    else:
        cube = g.apply("mul", g.apply("mul", a, g.apply("mul", a, a)), 0.044715)
        through = g.apply("tanh", g.apply("mul", g.apply("add", a, cube), math.sqrt(2 / math.pi)))
    return g.apply("mul", g.apply("mul", a, 0.5), g.apply("add", 1, through))


def _hardshrink(g: Graph, a: Value, lambd: float = 0.5) -> Value:
    return _outside(g, a, a, lambd)


def _softshrink(g: Graph, a: Value, lambd: float = 0.5) -> Value:
    shrunk = g.apply("sub", a, g.apply("mul", _sign(g, a), lambd))
    outside = g.apply("lt", lambd, g.apply("abs", a))
    return g.apply("where", outside, shrunk, g.apply("mul", a, 0))  # NaN * 0 is NaN


def _outside(g: Graph, grad: Value, a: Value, lambd: float) -> Value:
    inside = g.apply("le", g.apply("abs", a), lambd)
    return g.apply("where", inside, 0, grad)


def _threshold(g: Graph, a: Value, threshold: float, value: float) -> Value:
    return g.apply("where", g.apply("le", a, threshold), value, a)


def _lerp(g: Graph, a: Value, b: Value, weight: Value | float) -> Value:
    """As torch, from the nearer end, so that weights of 0 and 1 give a and b."""
    way = g.apply("sub", b, a)
    near_a = g.apply("add", a, g.apply("mul", weight, way))
    near_b = g.apply("sub", b, g.apply("mul", way, g.apply("sub", 1, weight)))
    return g.apply("where", g.apply("lt", g.apply("abs", weight), 0.5), near_a, near_b)


def _added(op: str) -> Callable[..., Value]:
    def operation(g: Graph, a: Value, b: Value, c: Value, value: float = 1) -> Value:
        return g.apply("add", a, g.apply(op, g.apply("mul", b, value), c))

    return operation


def _half_of(g: Graph, op: str, a: Value, b: Value) -> Value:
    return g.apply("mul", g.apply(op, a, b), 0.5)


def _swapped(op: str) -> Callable[[Graph, Value, Value], Value]:
    return lambda g, a, b: g.apply(op, b, a)


def _times(op: str, scale: float) -> Callable[[Graph, Value], Value]:
    return lambda g, a: g.apply("mul", g.apply(op, a), scale)


OPERATIONS: dict[str, Callable[..., Value | None]] = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": lambda g, a, b, alpha=1: _sub(g, b, a, alpha),
    "reciprocal": lambda g, a: g.apply("div", 1, a),
    "rsqrt": lambda g, a: g.apply("div", 1, g.apply("sqrt", a)),
    "square": lambda g, a: g.apply("mul", a, a),
    "pow": _pow,
    "log2": _times("log", 1 / math.log(2)),
    "log10": _times("log", 1 / math.log(10)),
    "exp2": lambda g, a: g.apply("exp", g.apply("mul", a, math.log(2))),
    "tan": lambda g, a: g.apply("div", g.apply("sin", a), g.apply("cos", a)),
    "sinh": lambda g, a: _half_of(
        g, "sub", g.apply("expm1", a), g.apply("expm1", g.apply("neg", a))
    ),
    "cosh": lambda g, a: _half_of(g, "add", g.apply("exp", a), g.apply("exp", g.apply("neg", a))),
    "erfc": lambda g, a: g.apply("sub", 1, g.apply("erf", a)),
    "ceil": _ceil,
    "trunc": _floor_towards_zero,
    "fix": _floor_towards_zero,
    "frac": lambda g, a: g.apply("sub", a, _floor_towards_zero(g, a)),
    "round": _round,
    "sign": _sign,
    "sgn": _sign,
    "relu": lambda g, a: g.apply("max", a, 0),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "celu": _celu,
    "softplus": _softplus,
    "mish": _mish,
    "gelu": _gelu,
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "lerp": _lerp,
    "addcmul": _added("mul"),
    "addcdiv": _added("div"),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda g, a, b: _clamp(g, a, None, b),
    "hardtanh": lambda g, a, low=-1, high=1: _clamp(g, a, low, high),
    "fmax": _other_if_nan("max"),
    "fmin": _other_if_nan("min"),
    "hardshrink_backward": _outside,
    "softshrink_backward": _outside,
    "gt": _swapped("lt"),
    "ge": _swapped("le"),
    "ne": lambda g, a, b: g.apply("not", g.apply("eq", a, b)),
    "logical_xor": lambda g, a, b: g.apply("not", g.apply("eq", g.as_boolean(a), g.as_boolean(b))),
    "isnan": _isnan,
    "isinf": lambda g, a: g.apply("eq", g.apply("abs", a), math.inf),
    "isfinite": lambda g, a: g.apply("lt", g.apply("abs", a), math.inf),
    "masked_fill": lambda g, a, mask, fill: g.apply("where", mask, fill, a),
    # what is written over
    "copy": lambda g, a, other, non_blocking=False: other,
    "fill": lambda g, a, other: other,
    "zero": lambda g, a: g.constant(0),
}
OPERATIONS["bitwise_xor"] = OPERATIONS["logical_xor"]
