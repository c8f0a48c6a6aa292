"""A `Cell` as an object, and tracing amid the rest of a program: Python, modes, processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_matches
from program_cells import CELLS, lstm
from program_checks import check, draw
from torch.func import vmap

import fastrnn
from fastrnn import torch_private
from fastrnn.programs import Cell


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


NOTEBOOK = """
def step(g, s, p):
    return {body}

layer = fastrnn.Recurrent(fastrnn.Cell(step, gates="a"), 4, 3)
"""


def test_a_notebook_cell_that_runs_again():
    """A function of the same name with another body is another cell, on every way to compute it."""
    x, scope = torch.randn(5, 2, 4), {"fastrnn": fastrnn, "torch": torch}
    for body in ("torch.tanh(g.a)", "torch.sin(g.a) * 2", "torch.tanh(g.a)"):
        exec(NOTEBOOK.format(body=body), scope)
        layer = scope["layer"]
        h, wanted = torch.zeros(2, 3), []
        for step in x:
            a = F.linear(step, layer.weight_ih_l0, layer.bias_ih_l0)
            a = a + F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
            h = scope["step"](SimpleNamespace(a=a), None, None)
            wanted.append(h)
        wanted = torch.stack(wanted)
        for way in ("auto", "reference"):
            with fastrnn.backend(way):
                assert_matches(layer(x)[0], wanted)
                assert_matches(vmap(layer, 1, 1)(x[:, :, None])[0].squeeze(2), wanted)
        assert_matches(fastrnn.Streamer(layer, 2).steps(x), wanted.detach())


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
