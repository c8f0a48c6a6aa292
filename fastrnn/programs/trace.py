"""A step and its derivative as expressions: recorded below autograd, while the step runs once.

The derivative is autograd's own: the step runs on small planes, autograd computes the gradients,
and a `Recorder` sees every operation of both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import step_error
from .graph import Graph, Value, needed
from .recorder import Recorder


class Gate(NamedTuple):
    """A gate: the input part, the hidden part, their sum, or a product of what the step makes."""

    name: str  # as the step names it: `n`, `x_n`, `u_n` or `w_n`
    of_x: bool
    of_u: bool
    of_w: bool = False


class Names(NamedTuple):
    """The names under which a step finds its planes."""

    gates: tuple[Gate, ...]
    states: tuple[str, ...]  # in the order in which the step returns them
    params: tuple[str, ...]  # learned ones and inputs

    @property
    def split(self) -> bool:
        """Whether a gate is not the sum of an input part and a hidden part."""
        return not all(gate.of_x and gate.of_u for gate in self.gates)


class Planes:
    """What a step is given as g, s or p: planes by name."""

    def __init__(self, kind: str, planes: dict[str, Tensor]):
        self.__dict__.update(planes)
        self._kind = kind

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        names = " ".join(n for n in self.__dict__ if n != "_kind") or "none"
        raise AttributeError(f"no {self._kind} is named {name!r}; declared are: {names}")


@dataclass
class Traced:
    """A step as expressions of the inputs `s.name`, `p.name`, `d.name` for the gradients of the
    new states, and of gates: `g.name`, or, if they are split, `x.name` and `u.name`. With a second
    product also of its gates `w.name`, and of `SECOND` for the gradient of its operand."""

    graph: Graph
    new: list[Value]  # the states after the step
    gradients: dict[str, Value]  # of `g.name`, also of split gates, `s.name` and `p.name`
    second: Value | None  # the operand of the second product


SECOND = "d.(second)"


def trace(step: Callable, names: Names, H: int) -> Traced:
    """The step on planes of H units.

    Raises:
        StepError: the step cannot be a program; see `Cell.program`.
        Exception: what the step itself raises.
    """
    result: list[Traced | BaseException] = []

    def run() -> None:
        try:
            result.append(_traced(step, names, H))
        except BaseException as error:
            result.append(error)

    # A new thread is in no mode of torch: no autocast, no_grad, torch.func or default device.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _traced(step: Callable, names: Names, H: int) -> Traced:
    """The step as it is for any number of rows and in any dtype."""
    sizes = [N for N in (5, 7, 11) if N != H]  # no other size is mistaken for these
    traced = _record(step, names, sizes[0], H, torch.float64)
    other = _record(step, names, sizes[1], H, torch.float32)
    if not traced.graph.is_like(other.graph):
        raise step_error(
            step,
            "a number in it depends on the number of rows, as x.shape[0] does, or on the dtype, as "
            "torch.finfo(x.dtype) and rms_norm without eps do. A step is traced once, for all of "
            "these: write the number, or declare it in inputs=",
        )
    return traced


def _record(step: Callable, names: Names, N: int, H: int, dtype: torch.dtype) -> Traced:
    recorder = Recorder(step, N, H, dtype, until=_record.__code__)
    graph = recorder.graph
    values = {
        "gate": {g.name: _gate(graph, g, names.split) for g in names.gates if not g.of_w},
        "state": {name: graph.input(f"s.{name}") for name in names.states},
        "parameter or input": {name: graph.input(f"p.{name}") for name in names.params},
    }
    leaves = {
        f"{kind[0]}.{name}": recorder.leaf(value).requires_grad_()
        for kind, each in values.items()
        for name, value in each.items()
    }
    second = _Second(recorder, [gate.name for gate in names.gates if gate.of_w])
    try:
        with recorder:
            # A clone is no leaf: a write to it comes to the recorder, which says what is wrong.
            planes = {key: leaf.clone() for key, leaf in leaves.items()}
            recorder.read_only = {plane.data_ptr() for plane in planes.values()}
            g, s, p = (
                {name: planes[f"{kind[0]}.{name}"] for name in each}
                for kind, each in values.items()
            )
            g |= second.gates
            returned = step(*map(Planes, values, (g, s, p)))
        second.check()
        states = _checked(recorder, returned, names.states)
        new = [graph.as_number(recorder.value(state)) for state in states]
        cotangents = [recorder.leaf(graph.input(f"d.{name}")) for name in names.states]
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        result = _Seeded.apply(cotangents, *states)
        if result.requires_grad:
            recorder.in_backward = True
            with recorder:
                wanted = [*leaves.values(), second.anchor]
                *gradients, _ = torch.autograd.grad(result, wanted, allow_unused=True)
        found = [graph.nothing if d is None else recorder.value(d) for d in gradients]
        zero = graph.constant(0)
        by_name = dict(zip(leaves, found, strict=True)) | second.gradients
        by_name = {name: zero if d is graph.nothing else d for name, d in by_name.items()}
        return Traced(graph, new, by_name, second.operand)
    finally:  # the gradient's function of a leaf of `second` holds both: Python sees no cycle
        recorder.forget()
        second.forget()


class _Second:
    """The second product of a step that is traced: gates that are functions of one plane."""

    def __init__(self, recorder: Recorder, names: list[str]):
        self._recorder = recorder
        self.gates = {name: partial(self._gate, name) for name in names}
        inputs = {name: recorder.graph.input(f"w.{name}") for name in names}
        self._leaves = {name: recorder.leaf(value) for name, value in inputs.items()}
        self._inputs = set(inputs.values())
        self._d_operand: Tensor | None = recorder.leaf(recorder.graph.input(SECOND))
        # The gates have gradients, which are those of a weight, also where the operand has none.
        self.anchor = torch.zeros((), requires_grad=True)
        self.gradients = {f"g.{name}": recorder.graph.constant(0) for name in names}
        self.operand: Value | None = None
        self._called: set[str] = set()

    def _gate(self, name: str, plane: Tensor) -> Tensor:
        recorder = self._recorder
        if not isinstance(plane, Tensor) or plane.shape != (recorder.N, recorder.H):
            shape = recorder.shape(plane) if isinstance(plane, Tensor) else type(plane).__name__
            raise recorder.error(f"g.{name} takes a plane (N, H), got {shape}")
        if not plane.is_floating_point():
            raise recorder.error(f"g.{name} takes numbers, got {plane.dtype}: write v.to(x.dtype)")
        if name in self._called:
            raise recorder.error(f"g.{name} is called twice. Keep its result")
        operand = recorder.graph.as_number(recorder.value(plane))
        if self._inputs & set(needed([operand])):
            raise recorder.error(
                f"g.{name} is given what another product of the step has made. A step has two "
                "products, one after the other: that of the recurrent state, and that of one plane"
            )
        if self.operand not in (None, operand):
            raise recorder.error(
                f"g.{name} is given another plane than a gate before it. All gates w:… of a step "
                "take the same one"
            )
        self.operand = operand
        self._called.add(name)
        return _Product.apply(plane, self.anchor, self, name)

    def check(self) -> None:
        """StepError if a gate was not called."""
        for name in self.gates:
            if name not in self._called:
                raise self._recorder.error(f"the step does not call g.{name}(plane)", here=False)

    def forget(self) -> None:
        """Lets go of all tensors."""
        self._leaves.clear()
        self._d_operand = None

    def leaf(self, name: str) -> Tensor:
        """The result of a gate."""
        return self._leaves[name]

    def derive(self, name: str, d_gate: Tensor) -> Tensor | None:
        """The gradient of the operand: all of it for the first gate, nothing for others."""
        self.gradients[f"g.{name}"] = self._recorder.value(d_gate)
        d_operand, self._d_operand = self._d_operand, None
        return d_operand


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plane: Tensor, anchor: Tensor, second: _Second, name: str) -> Tensor:
        ctx.second, ctx.name = second, name
        return second.leaf(name)

    @staticmethod
    def backward(ctx, d_gate):
        return ctx.second.derive(ctx.name, d_gate), None, None, None


class _Seeded(torch.autograd.Function):
    """A number whose gradients by the states are the planes that are given. For gradients given
    to it, torch.autograd.grad would import sympy, which takes half a second."""

    @staticmethod
    def forward(ctx, cotangents: Sequence[Tensor], *states: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return torch.zeros(())

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.cotangents


def _gate(graph: Graph, gate: Gate, split: bool) -> Value:
    if not split:
        return graph.input(f"g.{gate.name}")
    x, u = graph.input(f"x.{gate.name}"), graph.input(f"u.{gate.name}")
    if gate.of_x and gate.of_u:
        return graph.apply("add", x, u)
    return x if gate.of_x else u


def _checked(recorder: Recorder, returned, names: tuple[str, ...]) -> Sequence[Tensor]:
    """What a step returned as its new states."""
    states = returned if isinstance(returned, (tuple, list)) else (returned,)
    if len(states) != len(names):
        raise recorder.error(
            f"it returned {len(states)} states; declared are {len(names)}: {' '.join(names)}. "
            "Return the new states in this order",
            here=False,
        )
    for name, state in zip(names, states, strict=True):
        if not isinstance(state, Tensor):
            is_what = f"a {type(state).__name__}, no tensor. Return torch.full_like(s.{name}, …)"
        elif state.shape != (recorder.N, recorder.H):
            is_what = f"of the shape {recorder.shape(state)}, not (N, H). Expand it: "
            is_what += f"x.expand_as(s.{name})"
        elif not state.is_floating_point():
            is_what = f"of the dtype {state.dtype}. Make numbers of it: x.to(s.{name}.dtype)"
        else:
            continue
        raise recorder.error(f"the new state {name!r} is {is_what}", here=False)
    return states
