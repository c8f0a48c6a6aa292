"""Cells of papers that no other test has, on the kernels, against their own steps in a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS
from program_checks import check, draw
from recurrent_calls import Example, assert_as_defined

from fastrnn.programs import Cell

relu, sigmoid, tanh = torch.relu, torch.sigmoid, torch.tanh


def atr(g, s, p):
    """Zhang et al. 2018, arXiv 1810.12546."""
    return sigmoid(g.x_a + g.u_a) * g.x_a + sigmoid(g.x_a - g.u_a) * s.h


def brc(g, s, p):
    """Vecoven et al. 2020, arXiv 2006.05252: bistable, each unit by itself."""
    a, c = 1 + tanh(g.x_a + p.a * s.h), sigmoid(g.x_c + p.c * s.h)
    return c * s.h + (1 - c) * tanh(g.x_n + a * s.h)


def nbrc(g, s, p):
    """The same paper, with a matrix."""
    a, c = 1 + tanh(g.a), sigmoid(g.c)
    return c * s.h + (1 - c) * tanh(g.x_n + a * s.h)


def cfn(g, s, p):
    """Laurent & von Brecht 2016, arXiv 1612.06212."""
    return sigmoid(g.t) * tanh(s.h) + sigmoid(g.e) * tanh(g.x_n)


def cornn(g, s, p):
    """Rusch & Mishra 2020, arXiv 2010.00951: oscillators, whose two states are both multiplied."""
    z = s.z + 0.1 * (tanh(g.a + g.w_a(s.z)) - 0.9 * s.h - 1.1 * s.z)
    return s.h + 0.1 * z, z


def fast_rnn(g, s, p):
    """Kusupati et al. 2019, arXiv 1901.02358."""
    return sigmoid(p.alpha) * tanh(g.a) + sigmoid(p.beta) * s.h


def intersection(g, s, p):
    """Collins et al. 2016, arXiv 1611.09913, which mixes the input into the output."""
    y, h = sigmoid(g.y - 1), sigmoid(g.h - 1)
    return y * p.x + (1 - y) * relu(g.d), h * s.h + (1 - h) * tanh(g.n)


def janet(g, s, p):
    """van der Westhuizen & Lasenby 2018, arXiv 1804.04849."""
    return sigmoid(g.f) * s.h + (1 - sigmoid(g.f - 1)) * tanh(g.n)


def lem(g, s, p):
    """Rusch et al. 2021, arXiv 2110.04744."""
    a, b = 0.5 * sigmoid(g.a), 0.5 * sigmoid(g.b)
    return (1 - a) * s.y + a * tanh(g.x_y + g.w_y(s.z)), (1 - b) * s.z + b * tanh(g.z)


def light_ru(g, s, p):
    """Ye et al. 2024, Electronics 13, 3204."""
    f = sigmoid(g.f)
    return (1 - f) * s.h + f * tanh(g.x_n)


def minimal_rnn(g, s, p):
    """Chen 2017, arXiv 1711.06788: the input is made a plane, which a matrix then multiplies."""
    z = tanh(g.x_z)
    u = sigmoid(g.u_u + g.w_u(z))
    return u * s.h + (1 - u) * z


def miru(g, s, p):
    """A reset gate, and an update that is a constant."""
    return 0.3 * s.h + 0.7 * tanh(g.x_n + g.w_n(sigmoid(g.r) * s.h))


def mut1(g, s, p):
    """Jozefowicz et al. 2015, the first of their three."""
    z, r = sigmoid(g.x_z), sigmoid(g.r)
    return tanh(g.w_n(r * s.h) + tanh(g.x_n)) * z + s.h * (1 - z)


def mut2(g, s, p):
    """The second."""
    z, r = sigmoid(g.x_z + g.u_z), sigmoid(g.u_r)
    return tanh(g.w_n(r * s.h) + g.x_n) * z + s.h * (1 - z)


def nas(g, s, p):
    """Zoph & Le 2016, arXiv 1611.01578: found by a search."""
    a, b = tanh(sigmoid(g.a) * relu(g.b)), tanh(sigmoid(g.c) + relu(g.d))
    c, d = tanh(tanh(g.e) * sigmoid(g.f)), sigmoid(tanh(g.i) + sigmoid(g.j))
    cell = tanh(a + s.c) * b
    return tanh(cell * tanh(c + d)), cell


def original_lstm(g, s, p):
    """Hochreiter & Schmidhuber 1997: nothing is forgotten."""
    c = s.c + sigmoid(g.i) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


def ran(g, s, p):
    """Lee et al. 2017, arXiv 1705.07393."""
    c = sigmoid(g.i) * g.x_c + sigmoid(g.f) * s.c
    return tanh(c), c


def residual_lstm(g, s, p):
    """Kim et al. 2017, arXiv 1701.03360: a product of the new cell."""
    c = sigmoid(g.f + p.w_f * s.c) * s.c + sigmoid(g.i + p.w_i * s.c) * tanh(g.g)
    return sigmoid(g.o + p.w_o * c) * (g.w_m(tanh(c)) + g.x_r), c


def sgrn(g, s, p):
    """One gate, of the parts that it weighs."""
    f = sigmoid(g.x_a + g.u_a)
    return tanh((1 - f) * g.x_a + f * s.h)


def sgu(g, s, p):
    """Gao & Glowacka 2016, arXiv 1604.02910."""
    z = sigmoid(g.z)
    return (1 - z) * s.h + z * F.softplus(tanh(g.w_g(g.x_g * s.h)) * s.h)


def star(g, s, p):
    """Turkoglu et al. 2019, arXiv 1911.11033."""
    k = sigmoid(g.k)
    return tanh((1 - k) * s.h + k * tanh(g.x_z))


def t_rnn(g, s, p):
    """Balduzzi & Ghifary 2016, arXiv 1602.02218: no product but that of the input."""
    f = sigmoid(g.x_f)
    return f * s.h + (1 - f) * g.x_z


def t_lstm(g, s, p):
    """The same paper's, whose gates see the input before as well: given as an input."""
    c = sigmoid(g.x_f + p.f) * s.c + (1 - sigmoid(g.x_f + p.f)) * g.x_z
    return tanh(g.x_o) * c, c


def gated_antisymmetric(g, s, p):
    """Chang et al. 2019, arXiv 1902.09689, for a W_hh that is antisymmetric."""
    return s.h + 0.1 * sigmoid(g.z) * tanh(g.n)


def rhn(g, s, p):
    """Zilly et al. 2016, arXiv 1607.03474: two highways in a step."""
    t = sigmoid(g.t)
    h = tanh(g.h) * t + s.h * (1 - t)
    u = sigmoid(g.w_t(h))
    return tanh(g.w_h(h)) * u + h * (1 - u)


def of_spikes(g, s, p):
    """A matrix that multiplies what has no gradient: its own is not zero."""
    v = 0.9 * s.v + g.x_v + g.w_v((s.v > 0.1).to(s.v.dtype))
    return tanh(v), v


def of_signs_of_a_norm(g, s, p):
    """Only what comes before the second product sums over the units."""
    return tanh(g.x_a + g.w_a((s.h > s.h.mean(-1, keepdim=True)).to(s.h.dtype)))


PAPERS = {
    cell.name: cell
    for cell in (
        Cell(atr, "x:a u:a"),
        Cell(brc, "x:a x:c x:n", params="a c"),
        Cell(nbrc, "a c x:n"),
        Cell(cfn, "t e x:n"),
        Cell(cornn, "a w:a", "h z"),
        Cell(fast_rnn, "a", params="alpha beta"),
        Cell(intersection, "y h d n", "y h", inputs="x", recurrent="h", output="y"),
        Cell(janet, "f n"),
        Cell(lem, "a b z x:y w:y", "y z"),
        Cell(light_ru, "f x:n"),
        Cell(minimal_rnn, "x:z u:u w:u"),
        Cell(miru, "r x:n w:n"),
        Cell(mut1, "x:z r x:n w:n"),
        Cell(mut2, "x:z u:z u:r x:n w:n"),
        Cell(nas, "a b c d e f i j", "h c"),
        Cell(original_lstm, "i g o", "h c"),
        Cell(ran, "i f x:c", "h c"),
        Cell(residual_lstm, "i f g o x:r w:m", "h c", "w_i w_f w_o"),
        Cell(sgrn, "x:a u:a"),
        Cell(sgu, "z x:g w:g"),
        Cell(star, "k x:z"),
        Cell(t_rnn, "x:f x:z"),
        Cell(t_lstm, "x:f x:z x:o", "h c", inputs="f"),
        Cell(gated_antisymmetric, "z n"),
        Cell(rhn, "h t w:h w:t"),
        Cell(of_spikes, "x:v w:v", "h v"),
        Cell(of_signs_of_a_norm, "x:a w:a"),
    )
}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, cell in PAPERS.items():
        monkeypatch.setitem(CELLS, name, cell)


@pytest.mark.parametrize("name", PAPERS)
def test_cells(name):
    check(PAPERS[name], draw(PAPERS[name], 3, 5))
    assert_as_defined(Example(name, 6, 5, 3, 13))
    assert_as_defined(Example(name, 5, 1, 4, 40, num_layers=2, bidirectional=True))
    assert_as_defined(Example(name, 4, 37, 4, 9, torch.float32), reset=torch.rand(4, 37) < 0.3)
