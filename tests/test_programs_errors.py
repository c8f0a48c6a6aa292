"""What a step must not contain: the message names its line and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS
from program_checks import check, draw

from fastrnn.programs import Cell, StepError

OUTSIDE = torch.ones(7)
LEARNED = torch.ones(1, requires_grad=True)


def while_loop(g, s, p):
    h = g.a
    while h.abs().max() > 1:  # here
        h = h / 2
    return h


def if_statement(g, s, p):
    if (s.h > 0).any():  # here
        return g.a
    return s.h


def if_unit(g, s, p):
    if s.h[0, 0] > 0:  # here
        return g.a
    return s.h


def as_number(g, s, p):
    return g.a * float(s.h.mean(-1)[0])  # here


def equal(g, s, p):
    return g.a if torch.equal(g.a, s.h) else s.h  # here


def matrix(g, s, p):
    return g.a @ g.a.T  # here


def linear(g, s, p):
    return F.linear(g.a, torch.eye(7))  # here


def sum_of_rows(g, s, p):
    return g.a - g.a.sum(0, keepdim=True)  # here


def sum_of_all(g, s, p):
    return g.a - g.a.mean()  # here


def cumsum(g, s, p):
    return g.a.cumsum(-1)  # here


def roll(g, s, p):
    return g.a.roll(1, -1)  # here


def softmax(g, s, p):
    return F.softmax(g.a, -1)  # here


def highest(g, s, p):
    return g.a - g.a.amax(-1, keepdim=True)  # here


def sort(g, s, p):
    return g.a.sort(-1).values  # here


def part(g, s, p):
    return torch.cat([g.a[:, :3], s.h[:, 3:]], -1)  # here


def unit(g, s, p):
    return g.a * s.h[:, :1]  # here


def transposed(g, s, p):
    return g.a + s.h.t().reshape(s.h.shape)  # here


def heads(g, s, p):
    return (g.a.unsqueeze(-1) * 2).squeeze(-1)  # here


def in_place_method(g, s, p):
    return g.a.add_(s.h)  # here


def in_place_operator(g, s, p):
    c = g.a
    c += s.h  # here
    return c


def in_place_mask(g, s, p):
    c = g.a * 1
    c[s.h > 0] = 0.0  # here
    return c


def in_place_out(g, s, p):
    c = torch.empty_like(g.a)
    with torch.no_grad():
        torch.add(g.a, s.h, out=c)  # here
    return c


def in_place_activation(g, s, p):
    return F.relu(g.a, inplace=True)  # here


def dropout(g, s, p):
    return F.dropout(g.a, 0.5)  # here


def noise(g, s, p):
    return g.a + torch.randn_like(g.a)  # here


def outside(g, s, p):
    return g.a * OUTSIDE  # here


def learned(g, s, p):
    return g.a * LEARNED  # here


def made_inside(g, s, p):
    return g.a * torch.tensor([1.0, 2, 3, 4, 5, 6, 7])  # here


def positions(g, s, p):
    return g.a * torch.arange(7)  # here


def layer_norm_weight(g, s, p):
    return F.layer_norm(g.a, g.a.shape[-1:], s.h)  # here


def layer_norm_bias(g, s, p):
    return F.layer_norm(g.a, g.a.shape[-1:], None, s.h)  # here


def atan(g, s, p):
    return torch.atan(g.a)  # here


def power(g, s, p):
    return g.a**s.h  # here


def whole(g, s, p):
    return g.a.long() * s.h  # here


def half(g, s, p):
    return g.a.half().float()  # here


NUMBERS = r"Python reads the numbers .* use torch\.where"
MIXED = r"each unit of each row by itself.*belongs into gates="
ERRORS = {
    while_loop: MIXED,
    if_statement: NUMBERS,
    if_unit: MIXED,
    as_number: MIXED,
    equal: NUMBERS,
    matrix: MIXED,
    linear: MIXED,
    sum_of_rows: r"sum is not one over the units of a row.*" + MIXED,
    sum_of_all: r"mean is not one over the units of a row.*" + MIXED,
    cumsum: r"cumsum mixes units.*" + MIXED,
    roll: MIXED,
    softmax: r"softmax mixes units.*" + MIXED,
    highest: r"amax mixes units.*" + MIXED,
    sort: r"sort mixes units.*" + MIXED,
    part: r"slice takes a part of the units.*" + MIXED,
    unit: r"slice takes a part of the units.*" + MIXED,
    transposed: MIXED,
    heads: r"unsqueeze makes a tensor of the shape \(N, H, 1\).*" + MIXED,
    in_place_method: r"a write in place.*x = x \+ y",
    in_place_operator: r"a write in place.*x = x \+ y",
    in_place_mask: r"a write in place.*torch\.where",
    in_place_out: r"a write in place",
    in_place_activation: r"a write in place",
    dropout: r"draws random numbers.*inputs=",
    noise: r"draws random numbers.*inputs=",
    outside: r"a tensor of shape \(H\) comes from outside.*params=.*inputs=",
    learned: r"a learned tensor of shape \(1\) comes from outside.*params=",
    made_inside: r"a tensor of shape \(H\) comes from outside.*params=.*inputs=",
    positions: r"arange mixes units",
    layer_norm_weight: r"the weight and the bias of layer_norm have the shape \(H\).*\* p\.weight",
    layer_norm_bias: r"the weight and the bias of layer_norm",
    atan: r"programs have no instruction for atan",
    power: r"programs have no instruction for pow",
    whole: r"a conversion to torch\.int64, which rounds.*torch\.trunc",
    half: r"a conversion to torch\.float16, which rounds",
}


def line_of(step) -> int:
    """The line of this file with "# here" in the function."""
    lines = Path(__file__).read_text().splitlines()
    first = step.__code__.co_firstlineno
    return next(n for n in range(first, len(lines)) if lines[n - 1].endswith("# here"))


@pytest.mark.parametrize("step", ERRORS, ids=lambda step: step.__name__)
def test_names_the_line_and_the_remedy(step):
    with pytest.raises(StepError) as raised:
        Cell(step, "a").program(7)
    message = str(raised.value)
    assert re.search(ERRORS[step], message, re.DOTALL), message
    assert message.startswith(f"{__file__}:{line_of(step)}: "), message
    assert "pointwise" not in message
    check(CELLS["lstm"], draw(CELLS["lstm"], 3, 7))


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
