"""Steps in Python as programs: forward and backward against autograd of the step."""

from __future__ import annotations

import pytest
import torch
from program_cells import CELLS
from program_checks import check, draw, ops_of

from fastrnn.programs import Cell


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("H", [1, 5, 8])
def test_cells(name, H):
    # torch's derivative of hardsigmoid has 1 / 6 in float32, also for float64
    check(CELLS[name], draw(CELLS[name], 3, H), 1e-7 if name == "hard_lstm" else 1e-11)


# instructions of forward and backward, temporaries of both, planes saved
SIZES = {
    "rnn": ((1, 2), (0, 0), 0),
    "lstm": ((7, 14), (1, 2), 4),
    "gru": ((6, 12), (1, 2), 4),
    "cifg": ((7, 14), (1, 2), 3),
    "lif": ((6, 13), (2, 2), 0),
    "ligru": ((4, 7), (1, 1), 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_few_instructions(name):
    (forward, backward), (temps, backward_temps), saved = SIZES[name]
    program = CELLS[name].program(16)
    found = (
        (len(ops_of(program.forward)), len(ops_of(program.backward))),
        (program.forward.temps, program.backward.temps),
        program.saved,
    )
    assert found == ((forward, backward), (temps, backward_temps), saved)


def test_the_lstm_has_seven():
    assert sorted(ops_of(CELLS["lstm"].program(16).forward)) == sorted(
        "sigmoid sigmoid sigmoid tanh muladdmul tanh mul".split()
    )


def test_canonical_order_and_counts():
    program = CELLS["mc_lstm"].program(4)
    assert (program.own, program.output, program.split) == (2, 1, False)
    assert (program.gates_x, program.gates_u) == (5, 5)
    program = CELLS["antisymmetric"].program(4)
    assert (program.gates_x, program.gates_u, program.split) == (2, 1, True)
    program = CELLS["decaying_lstm"].program(4)
    assert (program.params, program.row_sums) == (2, False)
    assert CELLS["layer_norm_lstm"].program(4).row_sums


# what lies in the same memory


def swapped(g, s, p):
    return g.a, s.m * 1, s.c, s.n


def turned(g, s, p):
    """A cycle of states, and one that is used before and after."""
    return s.h + s.c, s.n + 0.0, s.m, s.c


def unchanged(g, s, p):
    return s.h, s.c, s.n, s.m


def chained(g, s, p):
    c = s.n * g.a
    n = s.c * c
    m = s.c + s.n + s.m * n
    return c + n + m, c, n, m


def shared(g, s, p):
    c = torch.tanh(g.a + s.c)
    return c, c, c, g.a


def constant(g, s, p):
    return torch.zeros_like(s.h), torch.ones_like(s.c), s.n * 0.5, torch.full_like(s.m, 2.0)


@pytest.mark.parametrize("step", [swapped, turned, unchanged, chained, shared, constant])
def test_states_in_the_memory_of_each_other(step):
    cell = Cell(step, "a", "h c n m")
    check(cell, draw(cell, 3, 4))
    other = Cell(step, "a", "h c n m", recurrent="n", output="c")
    check(other, draw(other, 3, 4))


# derivatives of one's own


class OldStyle(torch.autograd.Function):
    """Without setup_context, and with no rule for vmap."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.floor(x) * y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y * torch.clamp(1 - x.abs(), min=0), None


def old_style(g, s, p):
    return OldStyle.apply(g.a, s.h) + s.h


def straight_through(g, s, p):
    hard = (g.a > 0).to(g.a.dtype)
    soft = torch.sigmoid(g.a)
    return soft + (hard - soft).detach() + 0.5 * s.h


class Rounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad):
        return grad


def rounded(g, s, p):
    return Rounded.apply(g.a * 4) / 4 + s.h


class Gated(torch.autograd.Function):
    """Its derivative reads what its forward does not."""

    @staticmethod
    def forward(ctx, x, gate):
        ctx.save_for_backward(gate)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        (gate,) = ctx.saved_tensors
        return torch.where(gate > 0, grad, -grad), None


def gated(g, s, p):
    return Gated.apply(s.h, g.a)


def of_signs(g, s, p):
    """The matrix of a second product has a gradient where what it multiplies has none."""
    return torch.tanh(g.a + g.w_n((s.h > 0).to(s.h.dtype)))


def of_ones(g, s, p):
    return torch.tanh(g.a + g.w_n(torch.ones_like(s.h)) * s.h)


@pytest.mark.parametrize("step", [of_signs, of_ones])
def test_a_second_product_of_what_has_no_gradient(step):
    cell = Cell(step, "a w:n")
    check(cell, draw(cell, 3, 5))


@pytest.mark.parametrize("step", [old_style, straight_through, rounded, gated])
def test_derivatives_of_ones_own(step):
    cell = Cell(step, "a")
    check(cell, draw(cell, 5, 4))
    if step is straight_through:
        assert "dsigmoid" in ops_of(cell.program(4).backward)
