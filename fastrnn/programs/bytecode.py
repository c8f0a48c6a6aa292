"""From expressions to instructions of the machine that runs a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from .graph import Graph, Value, needed

Values = tuple[Value, ...]

# The position is the code of the operation.
#   fma = a * b + c, fms = a * b - c, fnma = c - a * b, muladdmul = a * b + c * d
#   one_minus = 1 - a, dsigmoid = a * b * (1 - b), dtanh = a * (1 - b * b)
#   select_xx = (a xx b) ? c : d; sum = over the units of the row
#   sigmoid_add, tanh_add = of a + b; sigmoid_fma, tanh_fma = of a * b + c
#   max, min: a NaN in either operand gives NaN
OPS = tuple(
    "add sub mul div neg fma fms fnma muladdmul one_minus dsigmoid dtanh copy "
    "sigmoid tanh exp expm1 log log1p sqrt abs max min "
    "select_lt select_le select_eq sum sin cos erf floor round "
    "sigmoid_add sigmoid_fma tanh_add tanh_fma".split()
)
ROW = 0x100  # added to the code of an operation whose result is one number a row


@dataclass(eq=False)
class Instruction:
    """An operation on values. `output` is the plane that it writes, None for a temporary.

    A copy has no result of its own: what else needs the value takes the operand, unless `output`
    is None too, where the copy keeps an operand whose plane is about to be written.
    """

    op: str
    result: Value | None
    operands: Values
    output: int | None = None


def select(graph: Graph, roots: Sequence[Value], there: Container[Value]) -> list[Instruction]:
    """Instructions that make `roots`, each after those of its operands. The values of `there`
    need none."""
    values = [v for v in needed(roots, there) if v not in there and v.number is None]
    uses = Counter(a for v in values for a in v.args)
    uses.update(roots)

    def alone(v: Value, op: str = "mul") -> bool:
        """Whether v is such an operation, which nothing else needs."""
        return v.op == op and uses[v] == 1 and v not in there

    # from the results down, so that what is a part of another instruction gets none
    wanted, found = set(roots), []
    for value in reversed(values):
        if value in wanted:
            op, operands = _choose(graph, value, alone)
            wanted.update(operands)
            found.append(Instruction(op, value, operands))
    return found[::-1]


def _choose(graph: Graph, value: Value, alone: Callable[..., bool]) -> tuple[str, Values]:
    """The instruction that makes a value, of it and of what stands below it alone."""
    op, args = value.op, value.args
    if op == "where":
        condition, *chosen = args
        return f"select_{condition.op}", (*condition.args, *chosen)
    if op == "add":
        a, b = args if alone(args[0]) else args[::-1]
        if alone(a):
            return ("muladdmul", a.args + b.args) if alone(b) else ("fma", (*a.args, b))
    if op == "sub":
        a, b = args
        if alone(b):
            return "fnma", (*b.args, a)
        if alone(a):
            return "fms", (*a.args, b)
        if a.number == 1:
            return "one_minus", (b,)
    if op in ("sigmoid", "tanh") and alone(args[0], "add"):
        inner, operands = _choose(graph, args[0], alone)
        if f"{op}_{inner}" in OPS:
            return f"{op}_{inner}", operands
    if op == "neg" and alone(args[0]):
        return "fnma", (*args[0].args, graph.constant(0))
    if op == "mul":
        return _derivative(args, alone) or (op, args)
    return op, args


def _derivative(args: Values, alone: Callable[..., bool]) -> tuple[str, Values] | None:
    """A product with the derivative of a sigmoid or of a tanh, written out."""
    for rest, other in (args, args[::-1]):
        if other.op != "sub" or other.args[0].number != 1:
            continue
        y = other.args[1]
        if alone(other, "sub") and alone(y) and y.args[0] is y.args[1]:
            return "dtanh", (rest, y.args[0])
        if alone(rest) and y in rest.args:
            return "dsigmoid", (rest.args[rest.args[0] is y], y)
    return None
