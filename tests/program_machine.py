"""The machine that runs a program, one instruction after the other in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn.programs.assembly import Code
from fastrnn.programs.bytecode import OPS, ROW
from fastrnn.programs.program import Program

COMPUTE = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "fma": lambda a, b, c: a * b + c,
    "fms": lambda a, b, c: a * b - c,
    "fnma": lambda a, b, c: c - a * b,
    "muladdmul": lambda a, b, c, d: a * b + c * d,
    "one_minus": lambda a: 1 - a,
    "dsigmoid": lambda a, b: a * b * (1 - b),
    "dtanh": lambda a, b: a * (1 - b * b),
    "copy": torch.clone,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "max": torch.maximum,
    "min": torch.minimum,
    "select_lt": lambda a, b, c, d: torch.where(a < b, c, d),
    "select_le": lambda a, b, c, d: torch.where(a <= b, c, d),
    "select_eq": lambda a, b, c, d: torch.where(a == b, c, d),
    "sum": lambda a: a.sum(-1, keepdim=True),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "floor": torch.floor,
    "round": torch.round,
    "sigmoid_add": lambda a, b: (a + b).sigmoid(),
    "sigmoid_fma": lambda a, b, c: (a * b + c).sigmoid(),
    "tanh_add": lambda a, b: (a + b).tanh(),
    "tanh_fma": lambda a, b, c: (a * b + c).tanh(),
}
assert tuple(COMPUTE) == OPS
OPERANDS = {
    **dict.fromkeys(OPS, 1),
    **dict.fromkeys("add sub mul div dsigmoid dtanh max min sigmoid_add tanh_add".split(), 2),
    **dict.fromkeys("fma fms fnma sigmoid_fma tanh_fma".split(), 3),
    **dict.fromkeys("muladdmul select_lt select_le select_eq".split(), 4),
}


def run(code: Code, given: Sequence[Tensor], replaced: dict[int, int]) -> list[Tensor]:
    """The planes that a code writes. What it writes as plane j lies where `given` plane
    `replaced[j]` lies, and nothing is known of a plane before it is written."""
    N, H = given[0].shape if given else (1, 1)
    planes: dict[int, Tensor] = {k: t.double().clone() for k, t in enumerate(given)}
    written = range(len(given), code.planes)
    for j in written:
        same = replaced.get(j)
        planes[j] = torch.full((N, H), torch.nan).double() if same is None else planes[same]
    constants = range(code.planes, code.planes + len(code.constants))
    for k, number in zip(constants, code.constants, strict=True):
        planes[k] = torch.tensor(number, dtype=torch.float64)
    rows = range(constants.stop, constants.stop + code.row_temps)
    for k in rows:
        planes[k] = torch.full((N, 1), torch.nan).double()
    temps = range(rows.stop, rows.stop + code.temps)
    for k in temps:
        planes[k] = torch.full((N, H), torch.nan).double()
    writes: list[int] = []
    reads = set()
    for op, target, *operands in code.unpacked():
        name = OPS[op & ~ROW]
        assert (target in rows) == bool(op & ROW), (name, target)
        used = operands[: OPERANDS[name]]
        assert not any(operands[OPERANDS[name] :])
        if op & ROW and name != "sum":
            assert all(k in rows or k in constants for k in used), code.text()
        assert name != "sum" or op & ROW
        assert target in written or target in rows or target in temps
        assert all(k not in written or k in writes for k in used), "read before it is written"
        result = COMPUTE[name](*(planes[k] for k in used))
        planes[target].copy_(result.expand_as(planes[target]))
        writes.append(target)
        reads.update(used)
    assert [writes.count(j) for j in written] == [1] * len(written)
    assert [bool(b) for b in code.reads] == [k in reads for k in range(code.planes)]
    return [planes[j] for j in written]


def forward(program: Program, x: Sequence[Tensor], u: Sequence[Tensor], states, params, second=()):
    """(new states, saved planes) of a step: x and u are gates, canonical order of states. `second`
    has the matrix (H, H) of each gate of a second product."""
    gates = [*x, *u] if program.split else [a + b for a, b in zip(x, u, strict=True)]
    first = []
    if program.gates_w:
        v, *first = run(program.first_forward, [*gates, *states, *params], {})
        torch.testing.assert_close(v, first[0], rtol=0, atol=0, equal_nan=True)
        gates += [v @ W.T for W in second]
    assert (len(first), len(second)) == (program.saved_first, program.gates_w)
    given = [*gates, *states, *params]
    at = len(given)
    replaced = {at + k: len(gates) + k for k in range(1, program.own + 1)}
    results = run(program.forward, given, replaced)
    saved = [*first, *results[program.own + 1 :]]
    assert len(saved) == program.saved
    return results[: program.own + 1], saved


def backward(program: Program, saved, states, new, params, d, second=()):
    """(gradients of x gates, of u gates, of states, of params, of the matrices of `second`)."""
    given = [*saved, *states, *new, *params, *d]
    gates = program.gates_x + program.gates_u if program.split else program.gates_x
    d_at = len(given) - len(d)
    of_second = []
    if program.gates_w:
        d_w = run(program.first_backward, given, {})
        of_second = [each.T @ saved[0] for each in d_w]
        given.append(sum(each @ W for each, W in zip(d_w, second, strict=True)))
    first = len(given)
    replaced = {first + gates + k: d_at + k for k in range(len(d))}
    results = run(program.backward, given, replaced)
    dx = results[: program.gates_x]
    du = results[program.gates_x : gates] if program.split else dx
    return dx, du, results[gates : gates + len(d)], results[gates + len(d) :], of_second
