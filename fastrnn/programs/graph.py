"""Expressions over planes: each is made once, and simplified when it is made.

A *plane* is one number for each unit of each row of a batch. A *row value* is one number for each
row: a sum over the units, or what is made of such sums and constants alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

COMPARISONS = ("lt", "le", "eq")
BOOLEAN = (*COMPARISONS, "and", "or", "not")
COMMUTATIVE = ("add", "mul", "max", "min", "eq", "and", "or")

FOLD: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "abs": abs,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "sin": math.sin,
    "cos": math.cos,
    "erf": math.erf,
    "floor": math.floor,
    "round": round,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
}


@dataclass(frozen=True, eq=False)
class Value:
    """An expression. Two that are alike are one object, so that `is` compares them.

    `number` is set for a constant, `name` for an input; `index` counts them as they were made.
    """

    op: str
    args: tuple[Value, ...]
    index: int
    number: float | None = None
    name: str = ""
    row: bool = False

    @property
    def boolean(self) -> bool:
        return self.op in BOOLEAN


class Graph:
    """Makes values. A rewriting keeps every NaN and every infinity: x * 0 is not 0.

    What may differ from the operation as written: the sign of a zero, the last bit of a division
    by a constant, and what comes of `nothing`.
    """

    def __init__(self) -> None:
        self._known: dict[tuple, Value] = {}
        # The gradient that does not exist, as autograd gives it for floor(x): zeros. A gradient
        # that is no number of the step is none after any derivative either, so that here
        # nothing * x is nothing, also where x is infinite and zeros * x would be NaN.
        self.nothing = self._make("nothing")

    def is_like(self, other: Graph) -> bool:
        """Whether the same was made, up to the rounding of constants."""
        numbered: dict[tuple, int] = {}

        def numbers(graph: Graph) -> set[int]:
            own: list[int] = []  # of each value, in the order of their indices
            for v in graph._known.values():
                args = [own[a.index] for a in v.args]
                args = sorted(args) if v.op in COMMUTATIVE else args
                number = None if v.number is None else f"{v.number:.6g}"
                own.append(numbered.setdefault((v.op, *args, v.name, number), len(numbered)))
            return set(own)

        return numbers(self) == numbers(other)

    def input(self, name: str) -> Value:
        return self._make("input", name=name)

    def constant(self, number: float) -> Value:
        return self._make("constant", number=float(number))

    def apply(self, op: str, *given: Value | float) -> Value:
        """The value of an operation, simplified."""
        args = tuple(a if isinstance(a, Value) else self.constant(a) for a in given)
        if self.nothing in args:
            return self._of_nothing(op, args)
        if op in ("and", "or", "not"):
            args = tuple(self.as_boolean(a) for a in args)
        elif op != "where":
            args = tuple(self.as_number(a) for a in args)
        if op in COMMUTATIVE:
            args = tuple(sorted(args, key=lambda a: a.index))
        return self._folded(op, args) or self._simpler(op, args) or self._make(op, args)

    def as_number(self, a: Value) -> Value:
        """1 and 0 for true and false."""
        return self.apply("where", a, 1, 0) if a.boolean else a

    def as_boolean(self, a: Value) -> Value:
        """Whether a number is not zero."""
        if a.boolean:
            return a
        if a.number is not None:
            return self.constant(a.number != 0)
        return self.apply("not", self.apply("eq", a, 0))

    def _make(self, op: str, args: tuple[Value, ...] = (), number=None, name="") -> Value:
        key = (op, *(a.index for a in args), name, None if number is None else number.hex())
        if key not in self._known:
            rows = [a.row for a in args if a.number is None]
            row = op == "sum" or (bool(rows) and all(rows))
            self._known[key] = Value(op, args, len(self._known), number, name, row)
        return self._known[key]

    def _of_nothing(self, op: str, args: tuple[Value, ...]) -> Value:
        there = [a is not self.nothing for a in args]
        if op == "add" and any(there):
            return args[there.index(True)]
        if op == "sub" and there == [True, False]:
            return args[0]
        if op == "sub" and there == [False, True]:
            return self.apply("neg", args[1])
        # A derivative that takes a gradient first is linear in it.
        first = op in ("div", "dsigmoid", "dtanh") and not there[0]
        both = op == "where" and not any(there[1:])
        if first or both or op in ("mul", "add", "sub", "neg", "sum"):
            return self.nothing
        return self.apply(op, *(0 if a is self.nothing else a for a in args))

    def _folded(self, op: str, args: tuple[Value, ...]) -> Value | None:
        numbers = [a.number for a in args]
        if op not in FOLD or None in numbers:
            return None
        try:
            return self.constant(FOLD[op](*numbers))
        except (ArithmeticError, ValueError):  # an infinity or a NaN, which the kernel makes
            return None

    def _simpler(self, op: str, args: tuple[Value, ...]) -> Value | None:
        rule = getattr(self, f"_{op}", None)
        return rule(*args) if rule else None

    def _neg(self, a: Value) -> Value | None:
        if a.op == "neg":
            return a.args[0]
        if a.op == "mul":
            for one, other in (a.args, a.args[::-1]):
                if one.number is not None:
                    return self.apply("mul", other, -one.number)
        return self.apply("sub", a.args[1], a.args[0]) if a.op == "sub" else None

    def _add(self, a: Value, b: Value) -> Value | None:
        for one, other in ((a, b), (b, a)):
            if one.number == 0:
                return other
            if one.op == "neg":
                return self.apply("sub", other, one.args[0])
        return None

    def _sub(self, a: Value, b: Value) -> Value | None:
        if b.number == 0:
            return a
        if a.number == 0:
            return self.apply("neg", b)
        return self.apply("add", a, b.args[0]) if b.op == "neg" else None

    def _mul(self, a: Value, b: Value) -> Value | None:
        for one, other in ((a, b), (b, a)):
            if one.number == 1:
                return other
            if one.number == -1:
                return self.apply("neg", other)
            if one.op == "neg":
                if other.number is not None:
                    return self.apply("mul", one.args[0], -other.number)
                return self.apply("neg", self.apply("mul", one.args[0], other))
        return None

    def _div(self, a: Value, b: Value) -> Value | None:
        # The reciprocal of such a number is one in float32 too.
        if b.number is not None and 1e-30 < abs(b.number) < 1e30:
            return self.apply("mul", a, 1 / b.number)
        return None

    def _max(self, a: Value, b: Value) -> Value | None:
        return a if a is b else None

    _min = _max

    def _not(self, a: Value) -> Value | None:
        if a.number is not None:
            return self.constant(not a.number)
        return a.args[0] if a.op == "not" else None

    def _and(self, a: Value, b: Value) -> Value | None:
        for one, other in ((a, b), (b, a)):
            if one.number is not None:
                return other if one.number else one
        return None

    def _or(self, a: Value, b: Value) -> Value | None:
        for one, other in ((a, b), (b, a)):
            if one.number is not None:
                return one if one.number else other
        return None

    def _where(self, condition: Value, yes: Value, no: Value) -> Value | None:
        if yes is no:
            return yes
        if condition.number is not None:
            return yes if condition.number else no
        yes, no = self.as_number(yes), self.as_number(no)
        if condition.op == "not":
            return self.apply("where", condition.args[0], no, yes)
        if condition.op == "and":
            both = self.apply("where", condition.args[1], yes, no)
            return self.apply("where", condition.args[0], both, no)
        if condition.op == "or":
            either = self.apply("where", condition.args[1], yes, no)
            return self.apply("where", condition.args[0], yes, either)
        if condition.op not in COMPARISONS:
            return self.apply("where", self.as_boolean(condition), yes, no)
        return None


def needed(roots: Iterable[Value], stop: Iterable[Value] = ()) -> list[Value]:
    """What roots are made of, each after its operands, themselves included. What is in `stop` is
    there without its operands."""
    done: dict[Value, None] = {}
    stop = set(stop)
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        value, ready = stack.pop()
        if ready:
            done[value] = None
        elif value not in done:
            stack.append((value, True))
            if value not in stop:
                stack += [(a, False) for a in reversed(value.args)]
    return list(done)
