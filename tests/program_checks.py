"""A program against autograd of the step that it was made of, in float64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import program_machine as machine
import torch
from torch import Tensor

from fastrnn.programs import Cell
from fastrnn.programs.bytecode import OPS, ROW


def draw(cell: Cell, N: int, H: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random planes by kind and name; `d` has the gradients of the new states."""
    generator = torch.Generator().manual_seed(seed)
    names = cell.names
    kinds = {
        "x": [gate.name for gate in names.gates if gate.of_x],
        "u": [gate.name for gate in names.gates if gate.of_u],
        "s": names.states,
        "p": names.params,
        "d": names.states,
    }
    planes = {
        kind: {n: torch.randn(N, H, generator=generator, dtype=torch.float64) for n in each}
        for kind, each in kinds.items()
    }
    second = [gate.name for gate in names.gates if gate.of_w]  # a matrix each
    planes["w"] = {
        n: torch.randn(H, H, generator=generator, dtype=torch.float64) / H**0.5 for n in second
    }
    return planes


def eager(cell: Cell, planes: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """New states as `n`, and gradients by kind and name, by PyTorch."""
    leaves = {
        kind: {n: plane.clone().requires_grad_() for n, plane in planes.get(kind, {}).items()}
        for kind in "xuspw"
    }
    gates = {}
    for gate in cell.names.gates:
        if gate.of_w:
            gates[gate.name] = partial(torch.nn.functional.linear, weight=leaves["w"][gate.name])
            continue
        parts = [leaves[k][gate.name] for k in "xu" if gate.name in leaves[k]]
        gates[gate.name] = sum(parts[1:], parts[0])
    given = (gates, leaves["s"], leaves["p"])
    new = cell.step(*(SimpleNamespace(**each) for each in given))
    new = dict(zip(cell.states, new if isinstance(new, tuple) else (new,), strict=True))
    flat = [leaf for each in leaves.values() for leaf in each.values()]
    pairs = [(state, planes["d"][n]) for n, state in new.items() if state.requires_grad]
    found = iter([None] * len(flat))
    if pairs:
        outs, ds = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outs, flat, ds, allow_unused=True))
    gradients = {
        kind: {
            name: torch.zeros_like(leaf) if (d := next(found)) is None else d
            for name, leaf in each.items()
        }
        for kind, each in leaves.items()
    }
    return {"n": {n: state.detach() for n, state in new.items()}, **gradients}


def by_program(cell: Cell, planes: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The same by the cell's program."""
    order = [cell.recurrent, *(s for s in cell.states if s != cell.recurrent)]
    program = cell.program(next(iter(planes["s"].values())).size(1))
    x, u, params = (list(planes[kind].values()) for kind in "xup")
    states = [planes["s"][name] for name in order]
    matrices = planes.get("w", {})
    second = list(matrices.values())
    new, saved = machine.forward(program, x, u, states, params, second)
    d = [planes["d"][name] for name in order]
    dx, du, d_states, d_params, d_second = machine.backward(
        program, saved, states, new, params, d, second
    )
    assert order[program.output] == cell.output
    return {
        "n": dict(zip(order, new, strict=True)),
        "x": dict(zip(planes["x"], dx, strict=True)),
        "u": dict(zip(planes["u"], du, strict=True)),
        "s": dict(zip(order, d_states, strict=True)),
        "p": dict(zip(planes["p"], d_params, strict=True)),
        "w": dict(zip(matrices, d_second, strict=True)),
    }


def check(cell: Cell, planes: dict[str, dict[str, Tensor]], tolerance: float = 1e-11) -> None:
    """Raises AssertionError if a state or a gradient differs, also in a NaN or an infinity."""
    wanted, found = eager(cell, planes), by_program(cell, planes)
    for kind, each in wanted.items():
        for name, plane in each.items():
            torch.testing.assert_close(
                found[kind][name],
                plane,
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
                msg=lambda text, at=f"{kind}.{name}": f"{at}: {text}",
            )


def ops_of(code) -> list[str]:
    return [OPS[op & ~ROW] for op, *_ in code.unpacked()]


def line_of(step) -> int:
    """The line of its file with "# here" in the function."""
    lines = Path(step.__code__.co_filename).read_text().splitlines()
    first = step.__code__.co_firstlineno
    return next(n for n in range(first, len(lines)) if lines[n - 1].endswith("# here"))
