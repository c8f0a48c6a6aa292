"""Steps that sum over the units of a row, as programs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS
from program_checks import check, draw

from fastrnn.programs import Cell
from fastrnn.programs.bytecode import OPS, ROW


def mean_and_var(g, s, p):
    mean, var = g.a.mean(-1, keepdim=True), g.a.var(-1, keepdim=True, correction=0)
    return (g.a - mean) / torch.sqrt(var + 1e-3) + s.h


def var_and_mean(g, s, p):
    var, mean = torch.var_mean(g.a, -1, keepdim=True)
    return (g.a - mean) * torch.rsqrt(var + 1e-3) + s.h


def std(g, s, p):
    return g.a / (1 + g.a.std(dim=1, keepdim=True)) + s.h


def rms(g, s, p):
    return F.rms_norm(g.a, g.a.shape[-1:], eps=1e-4) * s.h


def norm_of_norm(g, s, p):
    c = torch.tanh(F.layer_norm(g.a, g.a.shape[-1:]) + s.h)
    return F.layer_norm(c * g.b, c.shape[-1:], eps=1e-3) + c


def without_keepdim(g, s, p):
    return g.a * torch.sigmoid(s.h.sum(1))[:, None] + g.b.mean(-1).unsqueeze(1)


def of_rows(g, s, p):
    total = s.h.sum(-1, keepdim=True)
    wide = torch.where(total > 0, torch.exp(-total), 1.0).expand_as(s.h)
    return g.a * wide + wide.sum(-1, keepdim=True) + total.sum(-1, keepdim=True)


def attention(g, s, p):
    score = (g.a * s.h).sum(-1, keepdim=True) / s.h.shape[-1] ** 0.5
    return torch.sigmoid(score) * g.b + (1 - torch.sigmoid(score)) * s.h


def of_constants(g, s, p):
    ones = torch.ones_like(s.h)
    return g.a / ones.sum(-1, keepdim=True) + ones.mean(-1, keepdim=True)


def only_rows(g, s, p):
    return (g.a * g.b).sum(-1, keepdim=True).expand_as(s.h)


def saved_row(g, s, p):
    """The state after the step is a row value, of which backward makes more."""
    total = torch.tanh((g.a * g.b).sum(-1, keepdim=True))
    return torch.exp(total * 0.5).expand_as(s.h)


ROWS = [
    saved_row,
    mean_and_var,
    var_and_mean,
    std,
    rms,
    norm_of_norm,
    without_keepdim,
    of_rows,
    attention,
]


@pytest.mark.parametrize("step", [*ROWS, of_constants, only_rows])
@pytest.mark.parametrize("H", [2, 5, 7])
def test_sums_over_a_row(step, H):
    cell = Cell(step, "a b")
    check(cell, draw(cell, 4, H), 1e-8)  # of two units a norm divides by small differences
    assert cell.program(H).row_sums == (step is not of_constants)


def test_all_sums_that_can_are_made_at_once():
    """Sums for which all units are waited for together stand before what reads them."""
    program = CELLS["layer_norm_lstm"].program(8)
    for code, waits in ((program.forward, 4), (program.backward, 8)):
        summed, found = set(), 0
        for op, dst, *operands in code.unpacked():
            if OPS[op & ~ROW] == "sum":
                summed.add(dst)
            elif summed & set(operands):
                found += 1
                summed = set()
        assert found <= waits


def test_the_size_is_a_constant_of_the_program():
    def step(g, s, p):
        return g.a / s.h.shape[-1]

    cell = Cell(step, "a")
    for H in (4, 8):
        check(cell, draw(cell, 3, H))
    assert cell.program(4) != cell.program(8)
    assert CELLS["lstm"].program(4) == CELLS["lstm"].program(8)
