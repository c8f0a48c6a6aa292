"""A step as a whole: what it must return, multiply and not depend on, and its declarations."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS
from program_checks import line_of

from fastrnn.programs import Cell, StepError


def nothing(g, s, p):
    return None


def too_few(g, s, p):
    return g.a


def too_many(g, s, p):
    return g.a, s.c, s.c


def number(g, s, p):
    return g.a, 0.0


def of_rows(g, s, p):
    return g.a, g.a.sum(-1, keepdim=True)


def of_units(g, s, p):
    return g.a, torch.zeros(g.a.shape[-1])


def boolean(g, s, p):
    return g.a, g.a > 0


RETURNED = {
    nothing: r"returned 1 states; declared are 2: h c. Return the new states in this order",
    too_few: r"returned 1 states; declared are 2: h c",
    too_many: r"returned 3 states; declared are 2: h c",
    number: r"the new state 'c' is a float, no tensor",
    of_rows: r"the new state 'c' is of the shape \(N, 1\), not \(N, H\).*x\.expand_as\(s\.c\)",
    of_units: r"the new state 'c' is of the shape \(H\), not \(N, H\)",
    boolean: r"the new state 'c' is of the dtype torch\.bool.*x\.to\(s\.c\.dtype\)",
}


@pytest.mark.parametrize("step", RETURNED, ids=lambda step: step.__name__)
def test_what_a_step_returns(step):
    with pytest.raises(StepError) as raised:
        Cell(step, "a", "h c").program(7)
    message = str(raised.value)
    assert re.search(RETURNED[step], message), message
    assert message.startswith(f"{__file__}:{step.__code__.co_firstlineno}: in the step")


def product_of_a_number(g, s, p):
    return g.a + g.w_n(0.5)  # here


def product_of_a_row(g, s, p):
    return g.a + g.w_n(s.h.mean(-1, keepdim=True))  # here


def product_of_booleans(g, s, p):
    return g.a + g.w_n(s.h > 0)  # here


def product_twice(g, s, p):
    n = g.w_n(s.h)
    return n * g.w_m(s.h) + g.w_n(s.h)  # here


def products_of_two_planes(g, s, p):
    n = g.w_n(s.h)
    return n + g.w_m(g.a * s.h)  # here


def product_of_a_product(g, s, p):
    n = g.w_n(s.h)
    return g.w_m(n * s.h)  # here


SECOND = {
    product_of_a_number: r"g.w_n takes a plane \(N, H\), got float",
    product_of_a_row: r"g.w_n takes a plane \(N, H\), got \(N, 1\)",
    product_of_booleans: "g.w_n takes numbers, got torch.bool",
    product_twice: "g.w_n is called twice. Keep its result",
    products_of_two_planes: "g.w_m is given another plane than a gate before it",
    product_of_a_product: "g.w_m is given what another product of the step has made",
}


@pytest.mark.parametrize("step", SECOND, ids=lambda step: step.__name__)
def test_second_products(step):
    with pytest.raises(StepError, match=SECOND[step]) as raised:
        Cell(step, "a w:n w:m").program(7)
    assert str(raised.value).startswith(f"{__file__}:{line_of(step)}: ")


def test_a_second_product_that_is_not_used():
    with pytest.raises(StepError, match=r"the step does not call g.w_n\(plane\)"):
        Cell(lambda g, s, p: g.a, "a w:n").program(7)


def rows_in_a_number(g, s, p):
    return g.a / g.a.shape[0]


def rows_in_a_sum(g, s, p):
    return g.a + len(s.h)


class MeanOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad / grad.size(0)


def rows_in_the_derivative(g, s, p):
    return MeanOverRows.apply(g.a)


def smallest_number(g, s, p):
    return g.a / (s.h.abs() + torch.finfo(s.h.dtype).eps)


def norm_without_eps(g, s, p):
    return F.rms_norm(g.a, g.a.shape[-1:])


VARYING = (
    rows_in_a_number,
    rows_in_a_sum,
    rows_in_the_derivative,
    smallest_number,
    norm_without_eps,
)


@pytest.mark.parametrize("step", VARYING)
@pytest.mark.parametrize("H", [3, 5, 7, 11])
def test_rows_and_dtype_give_no_constant(step, H):
    with pytest.raises(StepError, match=f"in the step {step.__name__}: a number in it depends on"):
        Cell(step, "a").program(H)
    Cell(lambda g, s, p: F.rms_norm(g.a, g.a.shape[-1:], eps=1e-6) + 1e-6, "a").program(H)
    Cell(lambda g, s, p: g.a / g.a.shape[1], "a").program(H)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad.cumsum(-1)  # here


def derivative(g, s, p):
    return Backward.apply(g.a)


def test_a_derivative_that_mixes_units():
    with pytest.raises(StepError) as raised:
        Cell(derivative, "a").program(7)
    assert "in the derivative: cumsum mixes units" in str(raised.value)
    assert str(raised.value).startswith(f"{__file__}:{line_of(Backward.backward)}: ")


def test_a_callable_without_code_is_named():
    class Step:
        def __call__(self, g, s, p):
            return g.a, s.h

    with pytest.raises(StepError, match="Step"):
        Cell(Step(), "a").program(7)


def test_errors_of_the_step_itself_are_its_own():
    with pytest.raises(AttributeError, match=r"no gate is named 'b'; declared are: a$"):
        Cell(lambda g, s, p: g.b, "a").program(7)
    with pytest.raises(AttributeError, match=r"no parameter or input is named 'w'.*: none$"):
        Cell(lambda g, s, p: g.a * p.w, "a").program(7)
    with pytest.raises(ZeroDivisionError):
        Cell(lambda g, s, p: g.a * (1 / 0), "a").program(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gates": "y:a"}, "n, x:n, u:n or w:n, got 'y:a'"),
        ({"gates": "x:a:b"}, "a gate cannot be named"),
        ({"gates": "a a"}, "the gate 'a' is there twice"),
        ({"gates": "x:a x_a"}, "the gate 'x_a' is there twice"),
        ({"states": ""}, "a cell needs a state"),
        ({"states": "h h"}, "the state 'h' is there twice"),
        ({"states": "h 1"}, "a state cannot be named '1'"),
        ({"params": "class"}, "a parameter or input cannot be named 'class'"),
        ({"params": "w", "inputs": "w"}, "the parameter or input 'w' is there twice"),
        ({"recurrent": "c"}, "recurrent='c' is not a state: h"),
        ({"output": "c"}, "output='c' is not a state: h"),
        ({"params": "w", "init": {"v": 1.0}}, "init has 'v', which is not in params: w"),
        ({"inputs": "dt", "init": {"dt": 1.0}}, "init has 'dt', which is not in params: none"),
    ],
)
def test_declarations(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Cell(**{"step": too_few, "gates": "a", **arguments})


def test_sizes():
    with pytest.raises(ValueError, match="H must be at least 1, got 0"):
        CELLS["lstm"].program(0)
