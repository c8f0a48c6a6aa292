"""What a step must not contain: the message names its line and the remedy."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS
from program_checks import check, draw, line_of

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


@pytest.mark.parametrize("step", ERRORS, ids=lambda step: step.__name__)
def test_names_the_line_and_the_remedy(step):
    with pytest.raises(StepError) as raised:
        Cell(step, "a").program(7)
    message = str(raised.value)
    assert re.search(ERRORS[step], message, re.DOTALL), message
    assert message.startswith(f"{__file__}:{line_of(step)}: "), message
    assert "pointwise" not in message
    check(CELLS["lstm"], draw(CELLS["lstm"], 3, 7))
