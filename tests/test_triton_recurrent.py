"""Cells that are functions on the Triton kernels: every cell, feature and form of input.

As in test_triton.py: on a GPU if there is one, else in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import math

import pytest
import torch
from conftest import assert_matches
from program_cells import CELLS
from recurrent_calls import Example
from test_triton import DEVICE, PLANS, force
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn
from fastrnn import Cell, Recurrent, made
from fastrnn.dispatch import triton
from fastrnn.dispatch.triton import launch, printed
from fastrnn.programs.bytecode import OPS, ROW

# numpy warns where an exponential overflows and of what is no number, which the cells expect.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SMOOTH = [name for name in CELLS if name != "lif"]  # which jumps where others round
SUMS = ("layer_norm_lstm", "normed_gates_of_a_norm")  # over units


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch):
    """Each schedule in turn, forced."""
    force(monkeypatch, request.param)


def on_device(example: Example) -> Example:
    example.module.to(DEVICE)
    for name in ("x", "hx", "inputs"):
        moved = tree_map_only(Tensor, lambda t: t.to(DEVICE), getattr(example, name))
        setattr(example, name, moved)
    return example


def check(example: Example, **features) -> None:
    """Results with and without gradients, and all gradients, are those of the definition."""
    example = on_device(example)
    features = tree_map_only(Tensor, lambda t: t.to(DEVICE), features)
    with fastrnn.backend("triton"):
        results, grads, weights = example.gradients(**features)
        with torch.no_grad():
            again = example(**features)
    with fastrnn.backend("reference"):
        wanted, wanted_grads, _ = example.to_double().gradients(weights, **features)
    names = ["x", *example.cell.states, *example.inputs]
    names += [name for name, _ in example.module.named_parameters()]
    for i, (a, b, e) in enumerate(zip(results, again, wanted, strict=True)):
        assert_matches(a, e, f"result {i}")
        assert torch.equal(a, b)
    for name, a, e in zip(names, grads, wanted_grads, strict=True):
        assert_matches(a, e, f"gradient of {name}")


FORMS = itertools.cycle([{}, {"bidirectional": True}, {"bias": False, "bidirectional": True}])


@pytest.mark.parametrize(
    ("name", "schedule", "form"),
    [(name, schedule, next(FORMS)) for name in CELLS for schedule in PLANS],
)
def test_cells(name, schedule, form, monkeypatch):
    force(monkeypatch, schedule)
    T, N = (2, 3) if schedule == "step" else (3, 18)
    check(Example(name, T, N, 5, 17, torch.float32, **form))


@pytest.mark.parametrize(
    ("name", "dtype"), list(zip(SMOOTH, itertools.cycle([torch.bfloat16, torch.float16])))
)
def test_half_precision(name, dtype):
    """In the plans that `choose` makes."""
    check(Example(name, 3, 3, 4, 7, dtype, bidirectional=True))


KEPT = torch.tensor([4, 0, 2, 1, 4])
FEATURES = {
    "lengths": {"lengths": KEPT},
    "reset": {"reset": torch.arange(20).view(4, 5) % 3 == 1},
    "limits": {"detach_every": 2, "grad_clip": 0.02},
}
FEATURES["all"] = {k: v for each in FEATURES.values() for k, v in each.items()}


@pytest.mark.parametrize(
    ("name", "which"),
    [
        (name, which)
        for k, name in enumerate(CELLS)
        for which in list(FEATURES)[k % 3 : k % 3 + 1] + ["all"]
    ],
)
def test_features(name, which, monkeypatch):
    force(monkeypatch, "step" if len(name) % 2 == 0 else "persistent")
    two = {"bidirectional": True} if "reset" not in FEATURES[which] else {}
    check(Example(name, 4, 5, 3, 5, torch.float32, **two), **FEATURES[which])


@pytest.mark.parametrize("name", ["lstm", "rnn"])  # the second one reads h before the projection
def test_projection(name, plan):
    check(Example(name, 3, 4, 3, 12, torch.float32, proj_size=7, bidirectional=True))
    check(Example(name, 3, 5, 3, 12, torch.float32, proj_size=7), lengths=KEPT.clamp(max=3))


def test_projection_of_sums(plan):
    check(Example("layer_norm_lstm", 4, 5, 3, 12, torch.float32, proj_size=7), **FEATURES["all"])


@pytest.mark.parametrize("name", ["slstm", "gru", "unicornn", "mc_lstm", "multiplicative_lstm"])
def test_states(name):
    check(Example(name, 3, 3, 4, 5, torch.float32, batch_first=True), return_states=True)


@pytest.mark.parametrize(
    "name",
    ["cfc", "zoneout_lstm", "mc_lstm", "peephole", "original_gru", "normed_gates_of_a_norm"],
)
def test_packed_input_and_inputs(name, plan):
    example = on_device(Example(name, 4, 3, 5, 8, torch.float32, bidirectional=True))
    lengths = [2, 4, 1]

    def packed(t: Tensor):
        return pack_padded_sequence(t, lengths, enforce_sorted=False) if t.dim() == 3 else t

    def run(module, cast) -> list[Tensor]:
        given = {k: packed(cast(v)) for k, v in leaves.items() if k != "x"}
        results = module(packed(cast(leaves["x"])), inputs=given or None)
        output, *states = tree_leaves(results)[0], *tree_leaves(results[1])
        loss = sum(r.sin().sum() for r in (output, *states))
        return [
            output,
            *states,
            *torch.autograd.grad(loss, [*leaves.values(), *module.parameters()]),
        ]

    leaves = {"x": example.x, **example.inputs}
    for leaf in leaves.values():
        leaf.requires_grad_()
    with fastrnn.backend("triton"):
        found = run(example.module, lambda t: t)
    with fastrnn.backend("reference"):
        wanted = run(example.to_double().module, Tensor.double)
    for a, e in zip(found, wanted, strict=True):
        assert_matches(a, e)


def test_heads(plan, monkeypatch):
    """Blocks of a diagonal, also in their gradient, where the narrow W_hh is the `Call`'s own."""
    monkeypatch.setattr(made, "HEAD_UNITS", 4)
    check(Example("lstm", 2, 2, 3, 12, torch.float32, heads=3, bidirectional=True))


NUMBERS = [0.0, -0.0, 1e-7, -1e-6, 1e-3, -0.3, 0.5, 0.9, 1.5, 2.5, -2.5, 7.0, 1e6, 1e-40, 1e30]
NUMBERS += [math.inf, -math.inf, math.nan]
OF_ONE = [
    getattr(torch, name)
    for name in "exp expm1 log log1p sqrt erf floor round abs neg tanh sigmoid sin cos".split()
]
OF_TWO = [
    torch.maximum,
    torch.minimum,
    torch.mul,
    torch.div,
    lambda a, b: a * a - 0.25,
    lambda a, b: torch.where(a < b, a, 1.0),
    lambda a, b: torch.where(a <= b, torch.full_like(a, 2.0), torch.full_like(a, -3.0)),
    lambda a, b: torch.where(a == b, b, a),
    lambda a, b: torch.full_like(a, 1e-40) + 0 * b,  # denormal in float32
]


def operations(g, s, p):
    return tuple(f(p.a) for f in OF_ONE) + tuple(f(p.a, p.b) for f in OF_TWO)


STATES = " ".join(f"s{k}" for k in range(len(OF_ONE) + len(OF_TWO)))
OPERATIONS = Cell(operations, "x:none", STATES, inputs="a b")


def test_operations():
    """To the last digits, with infinities and NaNs, as torch has them."""
    a, b = (t.flatten() for t in torch.meshgrid(*[torch.tensor(NUMBERS)] * 2, indexing="ij"))
    layer = Recurrent(OPERATIONS, 1, 2, device=DEVICE)
    inputs = {"a": a.view(1, -1, 1).to(DEVICE), "b": b.view(1, -1, 1).expand(1, -1, 2).to(DEVICE)}
    with fastrnn.backend("triton"), torch.no_grad():
        _, states = layer(torch.zeros(1, len(a), 1, device=DEVICE), inputs=inputs)
    wanted = operations(None, None, argparse.Namespace(a=a.double(), b=b.double()))
    for k, (state, each) in enumerate(zip(states, wanted, strict=True)):
        # numbers that are denormal in float32 may count as zero
        torch.testing.assert_close(
            state[0, :, 1].cpu(),
            each.float(),
            rtol=2e-6,
            atol=1.2e-38,
            equal_nan=True,
            msg=lambda text, k=k: f"s{k}: {text}",
        )


@pytest.mark.parametrize("name", ["original_gru", "multiplicative_lstm"])
def test_stacks_with_a_second_product(name):
    """Also where every gate of the state is one of the second product."""
    check(Example(name, 3, 4, 3, 6, torch.float32, num_layers=2, bidirectional=True))


def candidate(g, s, p):
    return s.h + torch.tanh(g.x_n + g.w_n(s.h * p.w))


def test_a_second_product_alone(plan, monkeypatch):
    monkeypatch.setitem(CELLS, "candidate", Cell(candidate, "x:n w:n", params="w"))
    check(Example("candidate", 3, 4, 3, 6, torch.float32, bidirectional=True))
    check(Example("candidate", 3, 5, 3, 6, torch.float32, bias=False), lengths=KEPT.clamp(max=3))


def test_every_operation_is_tested():
    programs = [cell.program(4) for cell in (*CELLS.values(), OPERATIONS)]
    codes = [code for program in programs for code in (program.forward, program.backward)]
    assert {OPS[op & ~ROW] for code in codes for op, *_ in code.unpacked()} == set(OPS)


def test_what_is_printed_is_python_that_triton_can_read():
    """The source, and the same functions for equal programs."""
    for cell in CELLS.values():
        program = cell.program(4)
        steps = printed.steps(program)
        text = printed.text(program)
        functions = [each for each in steps if hasattr(each, "fn")]
        assert len(functions) == (4 if program.gates_w else 2)
        for function in functions:
            assert inspect.getsource(function.fn) in text
    assert launch.steps(program.name) is launch.steps(program.name)


@pytest.mark.parametrize(
    ("name", "H", "N", "dtype", "form"),
    [
        ("layer_norm_lstm", 21, 18, torch.bfloat16, {"bidirectional": True}),
        ("layer_norm_lstm", 129, 3, torch.float32, {}),
        ("layer_norm_lstm", 200, 2, torch.bfloat16, {"bias": False}),
        ("layer_norm_lstm", 513, 1, torch.float16, {}),
        ("normed_gates_of_a_norm", 21, 18, torch.float32, {"bidirectional": True}),
        ("normed_gates_of_a_norm", 256, 2, torch.bfloat16, {"bidirectional": True}),
    ],
)
def test_sums_over_units(name, H, N, dtype, form):
    """In the plans that `choose` makes: one program does all, or a step takes several launches."""
    check(Example(name, 2, N, 3, H, dtype, **form))


ZOO = [fastrnn.zoo.LayerNormLSTM, fastrnn.zoo.LayerNormGRU, fastrnn.zoo.DreamerGRU]


@pytest.mark.parametrize("cell", ZOO, ids=lambda cell: cell.name)
def test_layer_norm_of_the_zoo(cell, monkeypatch):
    """Above the units that one program can have beside a product."""
    monkeypatch.setitem(CELLS, cell.name, cell)
    check(Example(cell.name, 2, 2, 3, 150, torch.float32, bias=False))


def test_more_units_than_one_program_sums(monkeypatch):
    """They are refused, and what would take them is named."""
    module = on_device(Example("layer_norm_lstm", 1, 1, 3, 9, torch.float32)).module
    x = torch.zeros(1, 1, 3, device=DEVICE)
    with fastrnn.backend("triton"):
        module(x)
        monkeypatch.setattr(triton, "SUMMED", 8)
        with pytest.raises(RuntimeError, match="hidden_size of 8 or less"):
            module(x)
    module(x)
