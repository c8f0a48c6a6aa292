"""Programs of cells that are functions, printed as steps in Triton: what `cells.py` is by hand."""

from __future__ import annotations

import linecache
import math
import struct
from collections.abc import Iterable, Sequence
from functools import partial

from ...programs.assembly import Code
from ...programs.bytecode import OPS, ROW
from ...programs.program import Program
from .cells import Steps

_HEAD = """\
import triton
import triton.language as tl
from fastrnn.dispatch.triton.cells import expm1, log1p, maximum, minimum, nearest, sigmoid, tanh
"""

# Each operation of operands that are names or numbers.
_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "fma": "{0} * {1} + {2}",
    "fms": "{0} * {1} - {2}",
    "fnma": "{2} - {0} * {1}",
    "muladdmul": "{0} * {1} + {2} * {3}",
    "one_minus": "1 - {0}",
    "dsigmoid": "{0} * {1} * (1 - {1})",
    "dtanh": "{0} * (1 - {1} * {1})",
    "copy": "{0}",
    "sigmoid": "sigmoid({0})",
    "tanh": "tanh({0})",
    "exp": "tl.exp({0})",
    "expm1": "expm1({0})",
    "log": "tl.log({0})",
    "log1p": "log1p({0})",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "max": "maximum({0}, {1})",
    "min": "minimum({0}, {1})",
    "select_lt": "tl.where({0} < {1}, {2}, {3})",
    "select_le": "tl.where({0} <= {1}, {2}, {3})",
    "select_eq": "tl.where({0} == {1}, {2}, {3})",
    "sum": "tl.sum(tl.where(unit, {0}, 0.0), 1)[:, None]",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "floor": "tl.floor({0})",
    "round": "nearest({0})",
    "sigmoid_add": "sigmoid({0} + {1})",
    "sigmoid_fma": "sigmoid({0} * {1} + {2})",
    "tanh_add": "tanh({0} + {1})",
    "tanh_fma": "tanh({0} * {1} + {2})",
}
assert tuple(_EXPRESSIONS) == OPS


def steps(program: Program) -> Steps:
    """The steps of a program.

    Triton reads the source of a function, by way of `inspect`: `linecache` has it.
    """
    source, file = text(program), f"<fastrnn {program.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    space: dict = {"__name__": f"fastrnn.{program.name}"}
    exec(compile(source, file, "exec"), space)
    old, new = program.saved, program.saved + program.own + 1
    return Steps(
        space["forward"],
        space["backward"],
        _read(program, range(old, new)),
        _read(program, range(new, new + program.own + 1)),
        space.get("first_forward"),
        space.get("first_backward"),
        program.saved_first,
    )


def _read(program: Program, planes: range) -> int:
    """Bit k says whether backward reads the k-th of some planes that it is given."""
    codes = [code for code in (program.backward, program.first_backward) if code.planes]
    return sum(any(code.reads[at] for code in codes) << k for k, at in enumerate(planes))


def text(program: Program) -> str:
    """The source of a module with the functions of a step."""
    return _HEAD + _forward(program) + _backward(program)


def _forward(program: Program) -> str:
    X, states = range(program.gates_x), range(program.own + 1)
    u = [f"u[{k}]" for k in range(program.gates_u)]
    w = [f"u[{k}]" for k in range(program.gates_u, program.gates_u + program.gates_w)]
    gates = [f"x[{k}]" for k in X] + u if program.split else [f"(x[{k}] + u[{k}])" for k in X]
    kept = [f"kept[{k}]" for k in range(program.own + program.carries_h)]
    given = ["h"] * (not program.carries_h) + kept + [f"p[{k}]" for k in range(program.params)]
    new = [f"new{k}" for k in states]
    saved = [f"saved{k}" for k in range(program.saved)]
    first, saved = saved[: program.saved_first], saved[program.saved_first :]
    function = partial(_function, "x, u, kept, p, unit", like="x[0]")
    kept = new if program.carries_h else new[1:]
    results = new[0], kept, saved
    text = function("forward", program.forward, gates + w + given, new + saved, results)
    if w:
        planes, results = ["v", *first], ("v", first)
        text += function("first_forward", program.first_forward, gates + given, planes, results)
    return text


def _backward(program: Program) -> str:
    states, params = range(program.own + 1), range(program.params)
    given = [f"saved[{k}]" for k in range(program.saved)]
    given += [f"{each}[{k}]" for each in ("old", "new") for k in states]
    given += [f"p[{k}]" for k in params] + [f"d[{k}]" for k in states]
    of_v = [f"d[{len(states)}]"] * (program.gates_w > 0)
    dx = [f"dx{k}" for k in range(program.gates_x)]
    du = [f"du{k}" for k in range(program.gates_u)] if program.split else []
    dw = [f"dw{k}" for k in range(program.gates_w)]
    old, of_params = [f"d_old{k}" for k in states], [f"dp{k}" for k in params]
    function = partial(_function, "saved, old, new, p, d, unit", like="d[0]")
    results = old if program.carries_h else old[1:], dx, du if program.split else dx, of_params
    planes = dx + du + old + of_params
    text = function("backward", program.backward, given + of_v, planes, results)
    if dw:
        text += function("first_backward", program.first_backward, given, dw, [dw])
    return text


def _function(
    takes: str,
    name: str,
    code: Code,
    given: list[str],
    written: list[str],
    results: Sequence[str | list[str]],
    like: str,
) -> str:
    """A code as a function. `takes` are its parameters, of which the planes `given` are parts."""
    returned = ", ".join(each if isinstance(each, str) else _tuple(each) for each in results)
    body = _body(code, given, written, like)
    return f"\n\n@triton.jit\ndef {name}({takes}):\n{body}    return {returned}\n"


def _body(code: Code, given: list[str], written: list[str], like: str) -> str:
    """The instructions of a code, one a line. `like` is a block of the shape of all planes."""
    names = [*given, *written, *map(_number, code.constants)]
    constants = range(code.planes, len(names))
    names += [f"r{k}" for k in range(code.row_temps)] + [f"t{k}" for k in range(code.temps)]
    assert len(given) + len(written) == code.planes
    lines = []
    for op, target, *operands in code.unpacked():
        name = OPS[op & ~ROW]
        expression = _EXPRESSIONS[name].format(*(names[k] for k in operands))
        if name == "copy" and operands[0] in constants:
            expression = f"tl.zeros_like({like}) + {expression}"
        lines.append(f"    {names[target]} = {expression}\n")
    return "".join(lines)


def _tuple(names: Iterable[str]) -> str:
    return "(" + "".join(f"{name}, " for name in names).strip() + ")"


_SMALLEST = 2.0**-126  # that is no denormal number


def _number(value: float) -> str:
    """A constant in float32: Triton makes a float64 of what that cannot hold."""
    try:
        (value,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        value = math.copysign(math.inf, value)
    if not math.isfinite(value):
        return f'float("{value}")'
    if abs(value) < _SMALLEST:
        value = 0.0
    return f"({value!r})" if value < 0 else repr(value)
