"""A step and its derivative as expressions: recorded below autograd, while the step runs once.

The derivative is autograd's own: the step runs on small planes, autograd computes the gradients,
and a `Recorder` sees every operation of both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import step_error
from .graph import Graph, Value
from .recorder import Recorder


class Gate(NamedTuple):
    """A gate: the input part alone, the hidden part alone, or their sum."""

    name: str  # as the step names it: `n`, `x_n` or `u_n`
    of_x: bool
    of_u: bool


class Names(NamedTuple):
    """The names under which a step finds its planes."""

    gates: tuple[Gate, ...]
    states: tuple[str, ...]  # in the order in which the step returns them
    params: tuple[str, ...]  # learned ones and inputs

    @property
    def split(self) -> bool:
        """Whether a gate is the input part or the hidden part alone."""
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
    new states, and of gates: `g.name`, or, if they are split, `x.name` and `u.name`."""

    graph: Graph
    new: list[Value]  # the states after the step
    gradients: dict[str, Value]  # of `g.name`, also of split gates, `s.name` and `p.name`


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
        "gate": {gate.name: _gate(graph, gate, names.split) for gate in names.gates},
        "state": {name: graph.input(f"s.{name}") for name in names.states},
        "parameter or input": {name: graph.input(f"p.{name}") for name in names.params},
    }
    leaves = {
        f"{kind[0]}.{name}": recorder.leaf(value).requires_grad_()
        for kind, each in values.items()
        for name, value in each.items()
    }
    with recorder:
        # A clone is no leaf: a write to it comes to the recorder, which says what is wrong.
        planes = {key: leaf.clone() for key, leaf in leaves.items()}
        recorder.read_only = {plane.data_ptr() for plane in planes.values()}
        returned = step(
            *(
                Planes(kind, {name: planes[f"{kind[0]}.{name}"] for name in each})
                for kind, each in values.items()
            )
        )
    states = _checked(recorder, returned, names.states)
    new = [graph.as_number(recorder.value(state)) for state in states]
    cotangents = [recorder.leaf(graph.input(f"d.{name}")) for name in names.states]
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    result = _Seeded.apply(cotangents, *states)
    if result.requires_grad:
        recorder.in_backward = True
        with recorder:
            gradients = torch.autograd.grad(result, [*leaves.values()], allow_unused=True)
    found = [graph.nothing if d is None else recorder.value(d) for d in gradients]
    zero = graph.constant(0)
    found = [zero if value is graph.nothing else value for value in found]
    return Traced(graph, new, dict(zip(leaves, found, strict=True)))


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
