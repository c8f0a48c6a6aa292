"""A traced step as two codes, and the choice of what the forward one saves for the backward."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from .assembly import Code, Frame, assemble
from .bytecode import OPS, select
from .graph import Graph, Value, needed
from .trace import SECOND, Names, Traced

HARD = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sqrt", "div", "sin", "cos", "erf")
# In units of a plane that is saved: written by forward and read by backward.
COST_HARD, COST_SUM, COST_OTHER = 0.5, 0.3, 0.04

NO_CODE = Code(b"", (), 0, 0, 0, b"")


class Program(NamedTuple):
    """A cell for the kernels. States are in their canonical order: the recurrent one first, then
    the others as they were declared.

    Planes of `forward`, those after | are written:
        x gates (only if split), u gates (if not split: sums x + u), w gates, states 0..own, params
        | new states 0..own, saved.
    Planes of `backward`:
        saved, states 0..own, new states 0..own, params, gradients of the new states 0..own
        | gradients of x gates, of u gates (only if split), of states 0..own (without what goes
        through the recurrent product), of params.
    Forward writes new state k >= 1 where state k is, backward the gradient of state k where that
    of new state k is.

    With w gates, which are the second product of a step, a code runs before each product of v:
        `first_forward` is given all that `forward` is but the w gates | v, and the first
        `saved_first` planes of `saved`, which `forward` then does not write. The first is v.
        `first_backward` is given all that `backward` is | gradients of the w gates. `backward` is
        given the gradient of v as well, as its last plane.
    """

    name: str  # "cell_" and a hash of all the rest
    gates_x: int  # rows of w_ih / H
    gates_u: int  # rows of w_hh / H, those of the recurrent state
    gates_w: int  # rows of w_hh / H, those of a second product, which come last
    split: bool  # whether a gate sees x or u alone
    own: int  # states but the recurrent one
    params: int  # learned ones and inputs
    saved: int
    saved_first: int
    output: int  # which state is the output
    row_sums: bool
    forward: Code
    backward: Code
    first_forward: Code
    first_backward: Code

    @property
    def carries_h(self) -> bool:
        """Whether the recurrent state passes from step to step also outside of the product: the
        step reads it, or its gradient does not come from the product alone."""
        if self.gates_w:
            return True
        gates = (self.gates_x if self.split else 0) + self.gates_u
        if self.forward.reads[gates] or self.backward.reads[self.saved]:
            return True
        code = self.backward
        written = code.planes - self.params - self.own - 1
        zero = [k for k, c in enumerate(code.constants, code.planes) if c == 0]
        writes = [tuple(line) for line in code.unpacked() if line[1] == written]
        return [line[0] for line in writes] != [OPS.index("copy")] or writes[0][2] not in zero


def build(traced: Traced, names: Names, recurrent: str, output: str) -> Program:
    """The program of a step."""
    graph, d = traced.graph, traced.gradients
    x = [gate for gate in names.gates if gate.of_x]
    u = [gate for gate in names.gates if gate.of_u]
    w = [gate for gate in names.gates if gate.of_w]
    order = [recurrent, *(s for s in names.states if s != recurrent)]
    new = [traced.new[names.states.index(name)] for name in order]
    old = [graph.input(f"s.{name}") for name in order]
    params = [graph.input(f"p.{name}") for name in names.params]
    d_new = [graph.input(f"d.{name}") for name in order]
    if names.split:
        gates = [*(graph.input(f"x.{g.name}") for g in x), *(graph.input(f"u.{g.name}") for g in u)]
    else:
        gates = [graph.input(f"g.{gate.name}") for gate in names.gates]
    of_w = [graph.input(f"w.{gate.name}") for gate in w]
    d_gates = [d[f"g.{gate.name}"] for gate in (x + u if names.split else names.gates)]
    d_w = [d[f"g.{gate.name}"] for gate in w]
    d_old = [d[f"s.{name}"] for name in order]
    gradients = [*d_gates, *d_old, *(d[f"p.{name}"] for name in names.params)]

    first_forward = first_backward = NO_CODE
    v, first = traced.second, []
    made = [*new, v] if v else new
    saved = _choose_saved(made, [*gradients, *d_w], free=[*old, *params])
    if v:
        before = set(needed([v]))
        first = [v, *(value for value in saved if value in before and value is not v)]
        saved = [*first, *(value for value in saved if value not in first)]
        first_forward = _code(graph, [*gates, *old, *params], [v, *first])
    forward = _code(
        graph,
        given=[*gates, *of_w, *old, *params],
        wanted=[*new, *saved[len(first) :]],
        replaced={k: len(gates) + len(w) + k for k in range(1, len(order))},
    )
    given = [*saved, *old, *new, *params, *d_new]
    at = len(given) - len(order)  # of d_new
    if v:
        first_backward = _code(graph, given, d_w)
        given.append(graph.input(SECOND))
    replaced = {len(d_gates) + k: at + k for k in range(len(order))}
    backward = _code(graph, given, gradients, replaced)
    numbers = {
        "gates_x": len(x),
        "gates_u": len(u),
        "gates_w": len(w),
        "split": names.split,
        "own": len(order) - 1,
        "params": len(params),
        "saved": len(saved),
        "saved_first": len(first),
        "output": order.index(output),
        "row_sums": any(v.op == "sum" for v in needed([*made, *gradients, *d_w])),
    }
    codes = (forward, backward, first_forward, first_backward)
    digest = hashlib.sha256(repr((OPS, numbers, codes)).encode()).hexdigest()
    return Program(f"cell_{digest[:16]}", *numbers.values(), *codes)


def _code(
    graph: Graph,
    given: Sequence[Value],
    wanted: Sequence[Value],
    replaced: Mapping[int, int] = MappingProxyType({}),
) -> Code:
    """The code from planes to planes; `replaced` says where wanted plane j lies in the memory of
    given plane k."""
    there = {value: k for k, value in reversed(list(enumerate(given))) if value.number is None}
    outputs = [(value, len(given) + j) for j, value in enumerate(wanted)]
    replaces = {len(given) + j: k for j, k in replaced.items()}
    frame = Frame(there, outputs, replaces, len(given) + len(wanted))
    return assemble(select(graph, wanted, there), frame)


def _choose_saved(
    made: Sequence[Value], gradients: Sequence[Value], free: Sequence[Value]
) -> list[Value]:
    """What forward leaves for backward: the least of planes saved and of work done again, by a
    minimum cut. `free` and what forward makes in any case are there."""
    import networkx  # which torch needs as well, but does not import at once

    inputs = [v for v in needed(gradients) if v.op == "input" and not v.name.startswith("d.")]
    forward = dict.fromkeys([*needed(made), *inputs])
    free = {*free, *made}
    behind = [v for v in needed(gradients) if v not in forward]
    read = [a for v in behind for a in v.args] + list(gradients)
    net = networkx.DiGraph()
    # A value is two nodes. The edge between them is cut where it is saved, that from the source
    # where backward makes it again.
    for value in forward:
        if value in free or value.number is not None:
            continue
        saving = {} if value.boolean else {"capacity": 1.0}  # a plane holds numbers
        net.add_edge((value.index, "made"), (value.index, "read"), **saving)
        cost = {"capacity": _cost(value)} if value.args else {}  # an input is not made
        net.add_edge("source", (value.index, "made"), **cost)
        for a in value.args:
            net.add_edge((a.index, "read"), (value.index, "made"))
    for value in read:
        if value in forward and value not in free and value.number is None:
            net.add_edge((value.index, "read"), "sink")
    if "source" not in net or "sink" not in net:
        return []
    _, (kept, _) = networkx.minimum_cut(net, "source", "sink")
    return [v for v in forward if (v.index, "made") in kept and (v.index, "read") not in kept]


def _cost(value: Value) -> float:
    """What it costs to make a value again in backward, of planes saved."""
    if value.op == "sum":
        return COST_SUM
    if value.row:
        return 0.0
    return COST_HARD if value.op in HARD else COST_OTHER
