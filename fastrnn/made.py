"""Cells that are made of functions, as the table, the kernels and a call take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import autocast, checks, table
from .dispatch import cpu, triton
from .dispatch.reference.definition import block_diagonal
from .programs import Cell
from .programs.trace import Planes

HEAD_UNITS = 64  # kHeadUnits of csrc/layer.h
MOST_PARAMS = 16  # kMostParams there


def register(cell: Cell, H: int, projected: bool, heads: int = 1) -> str:
    """The name under which the table and the kernels know the cell from now on.

    Raises:
        StepError: the step cannot be traced.
        ValueError: no gate has an input part, there are too many params, a projected state is read
            or is not the output, or there is a second product with a projection or heads.
    """
    program = cell.program(H)
    if program.gates_x == 0:
        raise ValueError(f"{cell.name}: no gate sees the input")
    if program.params > MOST_PARAMS:
        raise ValueError(
            f"{cell.name} has {program.params} params and inputs, the kernels take {MOST_PARAMS}"
        )
    if program.gates_w and (projected or heads > 1):
        raise ValueError(
            f"{cell.name} has a second product (gates w:…), which goes with neither heads nor "
            "proj_size"
        )
    if projected and (cell.output != cell.recurrent or program.carries_h):
        raise ValueError(
            f"{cell.name} cannot be projected: its step reads the state {cell.recurrent}, or "
            "another one is the output"
        )
    cpu.register(program)
    triton.register(program)
    table.add(
        table.Cell(
            name=program.name,
            gates=program.gates_x,
            saved=program.saved,
            keeps="h" * program.carries_h + "c" * (program.own > 0),
            split=program.split,
            hidden_gates=program.gates_u + program.gates_w,
            own=program.own,
            params=program.params,
            second=program.gates_w,
            output=program.output,
            step=_Step(cell),
        )
    )
    return program.name


class _Step:
    """The step of a cell as the reference calls it, see `table.Cell`."""

    def __init__(self, cell: Cell):
        self._cell = cell
        names = cell.names
        self._gates, self._params = names.gates, names.params
        self._order = [cell.recurrent, *(s for s in cell.states if s != cell.recurrent)]

    def __str__(self) -> str:
        return f"the cell {self._cell.name}"

    def __call__(
        self,
        x: Tensor,
        u: Tensor,
        h: Tensor,
        c: Tensor | None,
        *params: Tensor,
        product: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        X, U, W = (sum(getattr(g, of) for g in self._gates) for of in ("of_x", "of_u", "of_w"))
        xs, us, ws = iter(x.chunk(X, -1)), iter(u.chunk(U, -1) if U else ()), iter(range(W))

        def of_second(k: int, plane: Tensor) -> Tensor:
            return product(plane).chunk(W, -1)[k]

        gates: dict[str, Tensor | Callable[[Tensor], Tensor]] = {}
        for gate in self._gates:
            if gate.of_w:
                gates[gate.name] = partial(of_second, next(ws))
            elif gate.of_x and gate.of_u:
                gates[gate.name] = next(xs) + next(us)
            else:
                gates[gate.name] = next(xs if gate.of_x else us)
        own = () if c is None else c.chunk(len(self._order) - 1, -1)
        states = dict(zip(self._order, (h, *own), strict=True))
        shape = *x.shape[:-1], x.size(-1) // X
        planes = {k: p.expand(shape) for k, p in zip(self._params, params, strict=True)}
        new = self._cell.step(
            Planes("gate", gates), Planes("state", states), Planes("parameter", planes)
        )
        new = dict(zip(self._cell.states, (new,) if isinstance(new, Tensor) else new, strict=True))
        others = [new[name] for name in self._order[1:]]
        return new[self._order[0]], torch.cat(others, -1) if others else None


def parameter_shapes(
    cell: Cell, H: int, bias: bool, P: int, heads: int
) -> dict[str, tuple[int | None, ...]]:
    """The shape of each parameter of a direction; None stands for the features of its input."""
    program = cell.program(H)
    X, U = program.gates_x * H, (program.gates_u + program.gates_w) * H
    shapes: dict[str, tuple[int | None, ...]] = {"weight_ih": (X, None)}
    if U:
        shapes["weight_hh"] = (U, (P or H) // heads)
    if bias:
        shapes["bias_ih"] = (X,)
    if bias and U:
        shapes["bias_hh"] = (U,)
    if P:
        shapes["weight_hr"] = (P, H)
    return shapes | dict.fromkeys(cell.params, (H,))


def check_learned(names: str, weights: Sequence[Tensor], H: int, suffix: str) -> None:
    """RuntimeError if a parameter among weights of these names is not (H,): a call may give it for
    each row, a stream may not. `suffix` ends its name."""
    for name, weight in zip(names.split(), weights, strict=False):
        if name.startswith("p_"):
            checks.check_shape(name[2:] + suffix, weight, (H,))


def given(
    cell: str, names: Sequence[str], inputs: Mapping[str, Tensor] | None
) -> dict[str, Tensor] | None:
    """The inputs of a call in the order of `names`, which are the cell's. TypeError if they have no
    names, ValueError if they are not those."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"inputs should be a dict of tensors by name, got {type(inputs).__name__}")
    if not (names or inputs):
        return None
    if set(inputs or ()) != set(names):
        due = f"needs inputs={{{', '.join(map(repr, names))}}}" if names else "takes no inputs"
        got = ", ".join(sorted(map(repr, inputs or ())))
        raise ValueError(f"{cell} {due}, got {got or 'none'}")
    return {name: inputs[name] for name in names} if inputs else None


def begun(module, given: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor | None]:
    """`reset_state` of a call, which has a tensor for each state of the cell, as (h, c); each may
    have the steps as a first dimension. RuntimeError if they are not so many."""
    tensors = list(given) if isinstance(given, (tuple, list)) else [given]
    if not all(isinstance(each, Tensor) for each in tensors):
        return given  # whose checks say what is wrong
    module._check_count(given, "reset_state")
    most = max(tensors, key=Tensor.dim)
    tensors = [t if t.dim() == most.dim() else t.expand(len(most), *t.shape) for t in tensors]
    h, c = module._parts_(tensors if module._several else tensors[0])
    return h if c is None else (h, c)


def names_of(module) -> str:
    """The names of a direction's weights as in a `Call`."""
    params = "".join(f" p_{name}" for name in module.cell.params + module.cell.inputs)
    return table.weight_names(module.bias, module.proj_size > 0) + params


def as_they_are(module) -> bool:
    """Whether a module's own weights are those of a `Call`: w_hh among them, and heads, if there
    are several, of units that fill whole registers, as the kernels take them."""
    heads = module.heads
    return table.cell_named(module._cell_).hidden_gates > 0 and (
        heads == 1 or module.hidden_size // heads % HEAD_UNITS == 0
    )


def weights(
    module, input: Tensor, batch_sizes: Tensor | None, inputs: Mapping[str, Tensor] | None
) -> tuple[str, Sequence[Tensor]]:
    """The names and the weights of a `Call` for all layers: the module's, and a call's inputs.

    Raises:
        ValueError: an input does not broadcast.
    """
    flat = module._weights_()
    given = [
        _spread(name, each, input, batch_sizes, module.hidden_size, module.batch_first)
        for name, each in (inputs or {}).items()
    ]
    names = module._names
    if not given and module._as_they_are:
        return names, flat
    hidden = table.cell_named(module._cell_).hidden_gates
    each = len(flat) // (module.num_layers * (2 if module.bidirectional else 1))
    whole: list[Tensor] = []
    for at in range(0, len(flat), each):
        own = list(flat[at : at + each])
        if not hidden:
            own.insert(1, own[0].new_zeros(0, module.proj_size or module.hidden_size))
            if module.bias:
                own.insert(3, own[0].new_zeros(0))
        elif not module._as_they_are:
            own[1] = block_diagonal(own[1], module.hidden_size)
        whole += own + given
    return names, whole


class HeldInputs:
    """The inputs of a module's cell in memory that stays, (N, H) each; `like` has N rows. A module
    of a built-in cell has none."""

    def __init__(self, module, like: Tensor) -> None:
        cell = getattr(module, "cell", None)
        is_made = isinstance(cell, Cell)
        self._name = cell.name if is_made else type(module).__name__
        names = cell.inputs if is_made else ()
        planes = like.new_zeros(len(names), len(like), module.hidden_size)
        self.planes = dict(zip(names, planes, strict=True))

    def write(self, inputs: Mapping[str, Tensor] | None) -> None:
        """The inputs of the next step. TypeError, ValueError or RuntimeError as of a call."""
        found = {}
        for name, each in (given(self._name, tuple(self.planes), inputs) or {}).items():
            to = self.planes[name]
            if hasattr(each, "__array_interface__") and not isinstance(each, Real):
                # A copy: of an array that is read-only torch would warn.
                each = torch.tensor(each, device="cpu")
            found[name] = each = as_tensor(name, each, to)
            checks.check_no_tangent(f"input {name}", each)
            if each.device != to.device:
                raise checks.two_devices(to, each)
            try:
                each.expand(to.shape)
            except RuntimeError:
                raise _does_not_broadcast(name, to.shape, each) from None
        if found:
            checks.check_outside_transforms()
        with torch.no_grad():
            for name, each in found.items():
                self.planes[name].copy_(each)


def as_tensor(name: str, each: Tensor | Real, like: Tensor) -> Tensor:
    """An input of a call in the dtype of `like`; ValueError or RuntimeError if it has another."""
    if isinstance(each, Real):
        try:
            return like.new_full((), float(each))
        except OverflowError as error:
            raise ValueError(f"input {name} is too large: {error}") from error
    if not isinstance(each, Tensor):
        raise ValueError(f"input {name}: expected a tensor, got {type(each).__name__}")
    checks.check_dense(f"input {name}", each)
    if not (each.is_floating_point() or each.is_complex()):
        each = each.to(like.dtype)  # a mask, or whole numbers
    if each.dtype != like.dtype and not autocast.is_on(like):
        raise RuntimeError(
            f"input {name} must have the same dtype as the layer's input, {like.dtype}, "
            f"got {each.dtype}"
        )
    return each


def _does_not_broadcast(name: str, shape: Sequence[int], each: Tensor) -> ValueError:
    return ValueError(f"input {name} must broadcast to {tuple(shape)}, got {tuple(each.shape)}")


def _spread(
    name: str,
    each: Tensor | PackedSequence,
    input: Tensor,
    batch_sizes: Tensor | None,
    H: int,
    batch_first: bool,
) -> Tensor:
    """An input of a call as a parameter of a `Call`: (H,), or with the rows of the input."""
    each = as_tensor(name, each.data if isinstance(each, PackedSequence) else each, input)
    rows = input.shape[:-1]
    width = 1 if each.dim() and each.size(-1) == 1 else H
    try:
        if each.dim() < 2:
            return each.expand(H).contiguous()
        spread = each.expand(*rows, width)
    except RuntimeError:
        raise _does_not_broadcast(name, (*rows, H), each) from None
    if batch_first and batch_sizes is None:
        spread = spread.transpose(0, 1)
    return spread.contiguous()
