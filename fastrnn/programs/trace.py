"""A step and its derivative as expressions: recorded below autograd, while the step runs once.

The derivative is autograd's own: the step runs on small planes, autograd computes the gradients,
and a mode sees every operation of both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..torch_private import for_recording
from .decompositions import DECOMPOSITIONS
from .errors import step_error
from .graph import Graph, Value
from .operations import ALIKE, FILLED, OPERATIONS, SAME

_Mode, _torchs = for_recording()

_READS_NUMBERS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item"}


class Planes:
    """What a step is given as g, s or p: planes by name."""

    def __init__(self, kind: str, planes: dict[str, Tensor]):
        self.__dict__.update(planes)
        self.__kind = kind

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        names = ", ".join(n for n in self.__dict__ if not n.startswith("_")) or "none"
        raise AttributeError(f"no {self.__kind} is named {name!r}; declared are: {names}")


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
        StepError: the step cannot be a program; see `Cell`.
        Exception: what the step itself raises.
    """
    result: list = []

    def run() -> None:
        try:
            result.append(_Recorder(step, H).trace(names))
        except BaseException as error:
            result.append(error)

    # A new thread is in no mode of torch: no autocast, no_grad, torch.func or default device.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


class _Recorder(_Mode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep dynamo out, torch would import it: three seconds

    def __init__(self, step: Callable, H: int):
        super().__init__()
        self.step, self.H = step, H
        self.N = 5 if H != 5 else 7  # no other size is mistaken for it
        self.graph = Graph()
        self.values: dict[int, Value] = {}  # by address: views of a tensor share its value
        self.alive: list[Tensor] = []  # so that no address is given twice
        self.given: set[int] = set()  # addresses of what the step may not write to
        self.decomposing = self.in_backward = False

    def trace(self, names: Names) -> Traced:
        kinds = {
            "gate": {g.name: self._leaf(self._gate(g, names.split)) for g in names.gates},
            "state": {n: self._input(f"s.{n}") for n in names.states},
            "parameter or input": {n: self._input(f"p.{n}") for n in names.params},
        }
        leaves = {
            f"{kind[0]}.{name}": leaf.requires_grad_()
            for kind, each in kinds.items()
            for name, leaf in each.items()
        }
        with self:
            planes = [
                Planes(kind, {name: leaf.clone() for name, leaf in each.items()})
                for kind, each in kinds.items()
            ]
            self.given = {
                t.data_ptr()
                for each in planes
                for t in vars(each).values()
                if isinstance(t, Tensor)
            }
            returned = self.step(*planes)
        states = self._checked(returned, names.states)
        new = [self._value(state) for state in states]
        cotangents = [self._input(f"d.{name}") for name in names.states]
        pairs = [(s, d) for s, d in zip(states, cotangents, strict=True) if s.requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if pairs:
            self.in_backward = True
            with self:
                outs, ds = zip(*pairs, strict=True)
                gradients = torch.autograd.grad(outs, list(leaves.values()), ds, allow_unused=True)
        found = {
            name: self.graph.constant(0) if d is None else self._number(d)
            for name, d in zip(leaves, gradients, strict=True)
        }
        return Traced(self.graph, new, found)

    def _gate(self, gate: Gate, split: bool) -> Value:
        if not split:
            return self.graph.input(f"g.{gate.name}")
        x, u = self.graph.input(f"x.{gate.name}"), self.graph.input(f"u.{gate.name}")
        if gate.of_x and gate.of_u:
            return self.graph.apply("add", x, u)
        return x if gate.of_x else u

    def _input(self, name: str) -> Tensor:
        return self._leaf(self.graph.input(name))

    def _leaf(self, value: Value) -> Tensor:
        plane = torch.linspace(0.25, 0.75, self.N * self.H).view(self.N, self.H)
        self._set(plane, value)
        return plane

    def _checked(self, returned, names: tuple[str, ...]) -> Sequence[Tensor]:
        states = returned if isinstance(returned, (tuple, list)) else (returned,)
        if len(states) != len(names):
            raise self._error(
                f"it returned {len(states)} states, but declared are {len(names)}: "
                f"{' '.join(names)}. Return the new states in this order",
                here=False,
            )
        for name, state in zip(names, states, strict=True):
            if not isinstance(state, Tensor) or state.shape != (self.N, self.H):
                what = f"a {type(state).__name__}"
                if isinstance(state, Tensor):
                    what = f"of shape {self._shape(state)}"
                raise self._error(
                    f"the new state {name!r} is {what}, not a plane (N, H). "
                    "Expand it: x.expand_as(s." + name + ")",
                    here=False,
                )
            if not state.is_floating_point():
                raise self._error(
                    f"the new state {name!r} has the dtype {state.dtype}. "
                    f"Make numbers of it: x.to(s.{name}.dtype)",
                    here=False,
                )
        return states

    def _shape(self, tensor: Tensor) -> str:
        letters = {self.N: "N", self.H: "H"}
        return f"({', '.join(letters.get(n, str(n)) for n in tensor.shape)})"

    def _error(self, message: str, here: bool = True):
        if here and self.in_backward:
            message = f"its derivative: {message}"
        return step_error(self.step, message, _Recorder.trace.__code__ if here else None)

    # values of tensors

    def _set(self, tensor: Tensor, value: Value) -> None:
        self.values[tensor.data_ptr()] = value
        self.alive.append(tensor)

    def _number(self, tensor: Tensor) -> Value:
        value = self._value(tensor)
        return self.graph.constant(0) if value is self.graph.nothing else value

    def _value(self, a):
        """The value of a tensor; what is no tensor is itself."""
        if not isinstance(a, Tensor):
            return a
        value = self.values.get(a.data_ptr())
        if value is not None:
            return value
        if a.numel() == 1 and not a.requires_grad:
            return self.graph.constant(a.item())
        what = "learned tensor" if a.requires_grad else "tensor"
        raise self._error(
            f"a {what} of shape {self._shape(a)} that comes from outside of the step. Declare it "
            "in params= if it is learned for each unit, in inputs= if it is given at each call, "
            "and read it from p; a constant is a number"
        )

    # operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self._refuse(name, func, args)
        writes = name.endswith("_") and not name.endswith("__") or "out" in kwargs
        if writes:
            name = self._checked_write(name, args, kwargs)
        value = self._operation(name, func, args, kwargs)
        if value is None:
            return self._decomposed(name, func, args, kwargs)
        result = func(*args, **kwargs)
        if result.shape not in self._shapes():
            raise self._mixes(name)
        self._set(result, value)
        return result

    def _shapes(self) -> tuple:
        N, H = self.N, self.H
        return (N, H), (N, 1), (N,), (), (1,), (1, 1), (1, H), (H,)

    def _operation(self, name: str, func, args, kwargs) -> Value | None:
        """The value of an operation, or None where it has to be decomposed."""
        g = self.graph
        if name in SAME:
            if name == "slice" and func(*args, **kwargs).shape != args[0].shape:
                raise self._mixes(name)
            return self._value(args[0])
        if name in ("_to_copy", "convert_element_type"):
            return self._converted(args, kwargs)
        if name in FILLED:
            return self._filled(name, args)
        if name in ("sum", "mean"):
            return self._summed(name, *args, **kwargs)
        given = [self._value(a) for a in args]
        named = {key: self._value(a) for key, a in kwargs.items()}
        if name in ALIKE:
            return g.apply(ALIKE[name], *given)
        return OPERATIONS[name](g, *given, **named) if name in OPERATIONS else None

    def _filled(self, name: str, args) -> Value:
        g, number = self.graph, FILLED[name]
        if number is None:
            number = args[0] if name == "scalar_tensor" else args[2 if name == "new_full" else 1]
        # autograd fills the gradient that does not exist with zeros
        none = self.in_backward and number == 0 and name.startswith(("zeros_", "full_", "new_"))
        return g.nothing if none else g.constant(number)

    def _converted(self, args, kwargs) -> Value:
        value, source = self._value(args[0]), args[0].dtype
        dtype = kwargs.get("dtype") or (args[1] if len(args) > 1 else source)
        if dtype == torch.bool:
            return self.graph.as_boolean(value)
        if dtype in (torch.float32, torch.float64, source) or source == torch.bool:
            return self.graph.as_number(value)
        raise self._error(
            f"a conversion to {dtype}, which rounds. All planes have the dtype of the call; "
            "round by torch.floor, torch.round or torch.trunc"
        )

    def _summed(self, name: str, x: Tensor, dim=None, keepdim=False, *, dtype=None) -> Value:
        dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
        if x.dim() != 2 or [d % 2 for d in dims] != [1]:
            raise self._mixes(name)
        value, count = self.graph.as_number(self._value(x)), x.size(1)
        if count == self.H and not (value.row or value.number is not None):
            value, times = self.graph.apply("sum", value), 1
        else:
            times = count  # of a number that all units have
        return self.graph.apply("mul", value, times / count if name == "mean" else times)

    def _decomposed(self, name: str, func, args, kwargs):
        decomposition = DECOMPOSITIONS.get(func) or _torchs.get(func)
        outer, self.decomposing = self.decomposing, True
        try:
            with self:
                if decomposition is not None:
                    return decomposition(*args, **kwargs)
                result = func.decompose(*args, **kwargs)
        finally:
            self.decomposing = outer
        if result is not NotImplemented:
            return result
        if torch.Tag.pointwise not in func.tags:
            raise self._mixes(name)
        raise self._error(
            f"torch.{name} has no instruction in programs and no decomposition into those that "
            "there are. Write it by other functions, or give it a derivative of its own in a "
            "torch.autograd.Function that uses others"
        )

    # errors

    def _mixes(self, name: str):
        return self._error(
            f"{name.strip('_')} mixes units or rows. A step computes each unit of each row by "
            "itself. The one exception is a sum over the units of a row: x.sum(-1, keepdim=True), "
            "x.mean(-1, keepdim=True), F.layer_norm(x, x.shape[-1:]). Products belong into gates"
        )

    def _refuse(self, name: str, func, args) -> None:
        if name in _READS_NUMBERS or torch.Tag.data_dependent_output in func.tags:
            raise self._error(
                "Python reads the numbers of a plane here (if, while, bool(), float(), item()). A "
                "step is traced once, for all numbers: use torch.where(condition, a, b)"
            )
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self._error(
                f"{name.strip('_')} draws random numbers. Draw them outside, declare them in "
                "inputs= and read them from p"
            )

    def _checked_write(self, name: str, args, kwargs) -> str:
        """The operation whose result an operation in place writes."""
        target = kwargs.get("out", args[0])
        partial = name in ("index_put_", "masked_scatter_", "scatter_")
        if partial or target.data_ptr() in self.given or "out" in kwargs:
            raise self._error(
                "a write in place. A step makes new tensors: x = x + y, not x += y, and "
                "torch.where(mask, a, b), not x[mask] = a"
            )
        return name[:-1]
