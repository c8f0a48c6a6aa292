"""Steps in Python as programs: forward and backward against autograd of the step."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from program_cells import CELLS, lstm
from program_checks import check, draw

from fastrnn import torch_private
from fastrnn.programs import Cell
from fastrnn.programs.bytecode import OPS, ROW


def ops_of(code) -> list[str]:
    return [OPS[op & ~ROW] for op, *_ in code.unpacked()]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("H", [1, 5, 8])
def test_cells(name, H):
    # torch's derivative of hardsigmoid has 1 / 6 in float32, also for float64
    check(CELLS[name], draw(CELLS[name], 3, H), 1e-7 if name == "hard_lstm" else 1e-11)


# instructions of forward and backward, temporaries of both, planes saved
SIZES = {
    "rnn": ((1, 2), (0, 0), 0),
    "lstm": ((7, 14), (1, 2), 4),
    "gru": ((9, 12), (1, 2), 4),
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


@pytest.mark.parametrize("step", [old_style, straight_through, rounded, gated])
def test_derivatives_of_ones_own(step):
    cell = Cell(step, "a")
    check(cell, draw(cell, 5, 4))
    if step is straight_through:
        assert "dsigmoid" in ops_of(cell.program(4).backward)


# sums over a row


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


# what a step may do beside


def in_place_on_its_own(g, s, p):
    c = g.a * s.h
    c += 1
    c.mul_(g.b)
    d = torch.empty_like(c)
    d.copy_(s.h).clamp_(min=0.1)
    return c + d


def many_functions(g, s, p):
    gates = {name: torch.sigmoid(getattr(g, name)) for name in ("a", "b")}
    total = sum(gates.values())
    for k in range(3):
        total = total * s.h + k
    return total


@pytest.mark.parametrize("step", [in_place_on_its_own, many_functions])
def test_ordinary_python(step):
    cell = Cell(step, "a b")
    check(cell, draw(cell, 3, 4))


def test_a_bound_method_and_a_number_tensor():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(0.5))

        def step(self, g, s, p):
            return g.a * self.scale + s.h

    cell = Cell(Model().step, "a")
    check(cell, draw(cell, 3, 4))


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: torch.autograd.set_detect_anomaly(False),
    ],
)
def test_in_any_mode(mode):
    wanted = CELLS["slstm"].program(6)
    with mode():
        assert copy_of(CELLS["slstm"]).program(6) == wanted

    def inside(x):
        assert copy_of(CELLS["slstm"]).program(6) == wanted
        return x.sum()

    torch.func.grad(inside)(torch.ones(3))


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    copy_of(CELLS["lstm"]).program(6)
    assert torch.equal(torch.get_rng_state(), before)


def copy_of(cell: Cell) -> Cell:
    """An equal cell that has traced nothing."""
    return pickle.loads(pickle.dumps(cell))


def test_a_cell_is_a_value():
    cell = Cell(lstm, "i f g o", "h c", init={})
    assert cell == CELLS["lstm"] == copy_of(cell) and hash(cell) == hash(copy_of(cell))
    assert cell != Cell(lstm, "i f g o", "h c", output="c") and cell != "lstm"
    assert copy.deepcopy(cell) is cell
    assert cell.program(4) is cell.program(4)
    initial = Cell(lstm, "i f g o", "h c", "a b", init={"a": 1.0, "b": torch.nn.init.zeros_})
    assert copy_of(initial) == initial and {initial: 1}[copy_of(initial)] == 1
    assert repr(CELLS["lif"]) == "Cell(lif, gates='i', states='h v', params='decay')"
    with pytest.raises(AttributeError, match="a cell does not change"):
        cell.gates = ("i",)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(Cell(lambda g, s, p: g.a, "a"))


def test_a_program_is_plain_data():
    program = CELLS["lstm"].program(4)
    assert pickle.loads(pickle.dumps(program)) == program
    assert program.name.startswith("cell_") and len(program.name) == 21
    names = {cell.program(5).name for cell in CELLS.values()}
    assert len(names) == len(CELLS)


NAMES = """
import sys
sys.path.insert(0, sys.argv[1])
from program_cells import CELLS
print(*(cell.program(8).name for cell in CELLS.values()))
assert "torch._dynamo" not in sys.modules  # it takes seconds to import
"""


def test_names_are_the_same_in_every_process():
    names = {
        subprocess.run(
            [sys.executable, "-c", NAMES, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
        ).stdout
        for seed in "01"
    }
    assert names == {" ".join(cell.program(8).name for cell in CELLS.values()) + "\n"}


QUICK = """
import sys
import torch, torch.nn.functional as F
from fastrnn.programs import Cell
from program_cells import CELLS
before = set(sys.modules)
for cell in CELLS.values():
    cell.program(7)
for name in "silu gelu elu selu leaky_relu softplus logsigmoid hardswish mish tanhshrink".split():
    Cell(lambda g, s, p: getattr(F, name)(g.a), "a").program(7)
Cell(lambda g, s, p: torch.logaddexp(g.a, s.h), "a").program(7)
print(*{name.split(".")[0] for name in sys.modules.keys() - before} & {"sympy", "mpmath"})
print(*[name for name in sys.modules.keys() - before if "_dynamo" in name or "_inductor" in name])
"""


def test_tracing_imports_nothing_slow():
    """Half a second for sympy, seconds for the compiler."""
    tests = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", QUICK],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tests.parent}:{tests}"},
    )
    assert (ran.returncode, ran.stdout) == (0, "\n\n"), ran.stderr + ran.stdout


def test_what_tracing_needs_of_torch():
    mode, decompositions = torch_private.for_recording()
    assert callable(mode._should_skip_dynamo)
    seen = []

    class Mode(mode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.overloadpacket.__name__, func.tags))
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, requires_grad=True)
    with Mode():
        torch.autograd.grad(torch.sigmoid(x).floor(), x, torch.ones(2))
    names = [name for name, _ in seen]
    assert {"sigmoid", "floor", "sigmoid_backward"} <= set(names), names
    assert any(name in ("zeros_like", "full_like") for name in names), "the gradient of floor"
    aten = torch.ops.aten
    for op in (aten.gelu_backward, aten.softplus_backward, aten.mish_backward, aten.logaddexp):
        assert op.default in decompositions
    assert torch.Tag.data_dependent_output in aten._local_scalar_dense.default.tags
    assert torch.Tag.nondeterministic_seeded in aten.bernoulli.p.tags
