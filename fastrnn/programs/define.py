"""`Cell`: a recurrent cell from a Python function."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import NoneType
from typing import TYPE_CHECKING

from torch import Tensor

from ..arguments import check_kind, count_of

if TYPE_CHECKING:
    from .program import Program
    from .trace import Names

Init = float | Callable[[Tensor], object]


def _split(kind: str, names: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        return tuple(names.split())
    if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"{kind} should be names with spaces between them, got {names!r}")
    return tuple(names)


# Names of a layer's weights, before their layer and direction.
_OF_PRODUCTS = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")


class Cell:
    """A recurrent cell whose step is a Python function.

    `step(g, s, p)` is plain PyTorch. It takes gates `g.name`, states `s.name` and parameters
    `p.name`, each a plane of shape (N, H): batch, units. It returns the new states in the order
    of `states`, or one tensor if there is one. It is traced once, and autograd derives it. The
    step and its derivative become programs that compiled kernels run.

    Args:
        step: the function. It computes each unit of each row by itself, but for sums over the
            units of a row: `x.sum(-1, keepdim=True)`, `x.mean(-1, keepdim=True)` and
            `F.layer_norm(x, x.shape[-1:])`. It draws no random numbers and has no control flow
            that depends on numbers. A `torch.autograd.Function` keeps its own derivative. A number
            that the step reads from outside, such as a global, must not change: make a new function
            and a new cell for another number.
        gates: names, with spaces between them, or a list of them. `g.n` of a gate `n` is
            W_ih x + b_ih + W_hh h + b_hh. That of `x:n` is `g.x_n`, the input part alone; that of
            `u:n` is `g.u_n`, the hidden part alone. That of `w:n` is a function: `g.w_n(v)` is
            W_hh v + b_hh, the product with a plane v that the step makes, such as `r * s.h`. All
            gates `w:n` of a step take the same v.
        states: names of what passes from step to step.
        params: names of learned vectors of shape (H,).
        inputs: names of what is given at each call and broadcast to (T, N, H), with gradients.
        recurrent: the state that W_hh multiplies; the first by default.
        output: the state that is the output of the layer; the first by default.
        init: for learned params a number, or a function that fills a tensor in place. Others are
            drawn as weights are.
        name: what the cell is called in messages; that of the step by default.

    Raises:
        ValueError: a name is no identifier, is there twice, or is not declared.
        TypeError: `gates`, `states`, `params` or `inputs` are not names, or another argument is of
            a wrong kind.

    A cell does not change. Cells of the same arguments are equal; a cell can be pickled if its
    step can.

    Example:
        >>> def step(g, s, p):
        ...     i = torch.sigmoid(g.i + p.w_i * s.c)
        ...     f = torch.sigmoid(g.f + p.w_f * s.c)
        ...     c = f * s.c + i * torch.tanh(g.c)
        ...     o = torch.sigmoid(g.o + p.w_o * c)
        ...     return o * torch.tanh(c), c
        >>> peephole = fastrnn.Cell(step, gates="i f c o", states="h c", params="w_i w_f w_o")
        >>> output, (h, c) = fastrnn.Recurrent(peephole, 10, 20)(torch.randn(5, 3, 10))
    """

    def __init__(
        self,
        step: Callable,
        gates: str | Sequence[str],
        states: str | Sequence[str] = "h",
        params: str | Sequence[str] = "",
        inputs: str | Sequence[str] = "",
        recurrent: str | None = None,
        output: str | None = None,
        init: Mapping[str, Init] | None = None,
        name: str | None = None,
    ):
        if not callable(step):
            raise TypeError(f"step must be a function, got {type(step).__name__}")
        for role, given in {"recurrent": recurrent, "output": output, "name": name}.items():
            check_kind(role, given, (str, NoneType), "a string")
        check_kind("init", init, (Mapping, NoneType), "a dict of numbers or functions")
        self._programs: dict[int, Program] = {}
        self.step = step
        self.gates, self.states = _split("gates", gates), _split("states", states)
        self.params, self.inputs = _split("params", params), _split("inputs", inputs)
        if not self.states:
            raise ValueError("a cell needs a state")
        self.recurrent = recurrent or self.states[0]
        self.output = output or self.states[0]
        self.init = dict(init or {})
        self.name = name or getattr(step, "__name__", type(step).__name__)
        self._check()
        self._frozen = True

    def program(self, H: int) -> Program:
        """The step of H units as a program for the kernels; traced once for each H.

        Raises:
            StepError: the step cannot be a program. The message names its line and the remedy: an
                operation that mixes units, control flow that depends on numbers, a write in
                place, random numbers, a tensor from outside, a number that depends on the rows or
                the dtype, a wrong number or shape of states, an operation that programs do not
                have.
            TypeError, ValueError: H is no integer, or not positive.
            Exception: what the step itself raises.
        """
        H = count_of("H", H)
        if H not in self._programs:
            from .program import build
            from .trace import trace

            traced = trace(self.step, self.names, H)
            self._programs[H] = build(traced, self.names, self.recurrent, self.output)
        return self._programs[H]

    @property
    def names(self) -> Names:
        """The names under which the step finds its planes."""
        from .trace import Gate, Names

        gates = []
        for gate in self.gates:
            kind, _, _ = gate.rpartition(":")
            parts = (kind in ("", "x"), kind in ("", "u"), kind == "w")
            gates.append(Gate(gate.replace(":", "_"), *parts))
        return Names(tuple(gates), self.states, self.params + self.inputs)

    def _check(self) -> None:
        for gate in self.gates:
            if ":" in gate and gate.split(":")[0] not in ("x", "u", "w"):
                raise ValueError(f"a gate is n, x:n, u:n or w:n, got {gate!r}")
        for kind, names in {
            "gate": [gate.replace(":", "_", 1) for gate in self.gates],
            "state": self.states,
            "parameter or input": self.params + self.inputs,
        }.items():
            for name in names:
                if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
                    raise ValueError(f"a {kind} cannot be named {name!r}")
                if names.count(name) > 1:
                    raise ValueError(f"the {kind} {name!r} is there twice")
        for name in self.params:
            if name in _OF_PRODUCTS:
                raise ValueError(
                    f"a parameter cannot be named {name!r}, as a weight of the layer is"
                )
        for role in ("recurrent", "output"):
            if (name := getattr(self, role)) not in self.states:
                raise ValueError(f"{role}={name!r} is not a state: {' '.join(self.states)}")
        for name, init in self.init.items():
            if name not in self.params:
                declared = " ".join(self.params) or "none"
                raise ValueError(f"init has {name!r}, which is not in params: {declared}")
            number = isinstance(init, Real) or (isinstance(init, Tensor) and init.dim() == 0)
            if not (init is None or callable(init) or number):
                kind = type(init).__name__
                raise TypeError(f"init of {name!r} must be a number or a function, got {kind}")

    def _key(self) -> tuple:
        init = tuple(sorted(self.init.items(), key=lambda item: item[0]))
        fields = (self.gates, self.states, self.params, self.inputs, self.recurrent, self.output)
        return self.step, *fields, init, self.name

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __setattr__(self, name: str, value: object) -> None:
        if "_frozen" in self.__dict__:
            raise AttributeError(f"a cell does not change: {name} cannot be set")
        super().__setattr__(name, value)

    def __reduce__(self):
        step, gates, states, params, inputs, *rest = self._key()
        spaced = (" ".join(names) for names in (gates, states, params, inputs))
        recurrent, output, _, name = rest
        return Cell, (step, *spaced, recurrent, output, self.init, name)

    def __deepcopy__(self, memo) -> Cell:
        return self

    def __repr__(self) -> str:
        parts = [f"gates={' '.join(self.gates)!r}", f"states={' '.join(self.states)!r}"]
        parts += [f"{k}={' '.join(v)!r}" for k in ("params", "inputs") if (v := getattr(self, k))]
        return f"Cell({self.name}, {', '.join(parts)})"
