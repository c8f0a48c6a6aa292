"""A mode that sees every operation below autograd, and keeps the value of each tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import CodeType

import torch
from torch import Tensor

from ..torch_private import for_recording
from .decompositions import DECOMPOSITIONS
from .errors import StepError, step_error
from .graph import Graph, Value
from .operations import ALIKE, FILLED, OPERATIONS, SAME

_Mode, _torchs_decompositions = for_recording()


def _mapped(function: Callable[[Tensor], object], args: Iterable) -> list:
    """args, with what the function makes of each tensor."""
    return [function(a) if isinstance(a, Tensor) else a for a in args]


class Recorder(_Mode):
    """While it is on, tensors of planes (N, H) and of rows (N, 1) have values in `graph`."""

    def __init__(self, step: Callable, N: int, H: int, dtype: torch.dtype, until: CodeType):
        super().__init__()
        self.step, self.until = step, until  # for messages: `step_error`
        self.N, self.H = N, H  # which differ
        self.dtype = dtype  # of planes
        self.graph = Graph()
        self.read_only: set[int] = set()  # addresses of what the step may not write to
        self.in_backward = False
        self._values: dict[int, Value] = {}  # by address: views of a tensor share its value
        self._alive: list[Tensor] = []  # so that no address is given twice
        self._decomposing = ""  # the operation of the step that others here are made of

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep dynamo out, torch would import it: three seconds

    def forget(self) -> None:
        """Lets go of all tensors; the graph stays."""
        self._values.clear()
        self._alive.clear()

    def leaf(self, value: Value) -> Tensor:
        """A new plane that has this value. Its numbers are never looked at."""
        numbers = torch.linspace(0.25, 0.75, self.N * self.H, dtype=self.dtype)
        plane = numbers.view(self.N, self.H)
        self._set(plane, value)
        return plane

    def value(self, tensor: Tensor) -> Value:
        """Raises StepError if nothing is known of the tensor."""
        value = self._values.get(tensor.data_ptr())
        if value is not None:
            return value
        if tensor.numel() == 1 and not tensor.requires_grad:
            return self.graph.constant(tensor.item())
        raise self.error(
            f"a {'learned ' * tensor.requires_grad}tensor of shape {self.shape(tensor)} comes from "
            "outside of the step. Declare it in params= if it is learned for each unit, in inputs= "
            "if it is given at each call, and read it from p; a constant is a number"
        )

    def shape(self, tensor: Tensor) -> str:
        """The shape in letters."""
        letters = {self.N: "N", self.H: "H"}
        return f"({', '.join(letters.get(n, str(n)) for n in tensor.shape)})"

    def error(self, message: str, here: bool = True) -> StepError:
        """`here`: the line that runs now is meant, not the step as a whole."""
        if here and self.in_backward:
            message = f"in the derivative: {message}"
        return step_error(self.step, message, self.until if here else None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self._refuse(name, func, args)
        if "out" in kwargs or (name.endswith("_") and not name.endswith("__")):
            self._check_write(name, args, kwargs)
            name = name[:-1]
        value = self._operation(name, func, args, kwargs)
        if value is None:
            return self._decomposed(func, args, kwargs)
        if name == "_efficientzerotensor":  # without memory, by which values are found
            func = torch.ops.aten.zeros.default
        result = func(*args, **kwargs)
        self._set(result, value, name)
        return result

    def _set(self, tensor: Tensor, value: Value, name: str = "") -> None:
        N, H = self.N, self.H
        if tensor.shape not in ((N, H), (N, 1), (N,), (1, H), (H,), (1, 1), (1,), ()):
            raise self._mixing(f"makes a tensor of the shape {self.shape(tensor)}", name)
        self._values[tensor.data_ptr()] = value
        self._alive.append(tensor)

    def _operation(self, name: str, func, args, kwargs) -> Value | None:
        """The value of an operation, or None where it has to be decomposed."""
        if name in SAME:
            if name == "slice" and func(*args, **kwargs).shape != args[0].shape:
                raise self._mixing("takes a part of the units or rows", name)
            return self.value(args[0])
        if name in ("_to_copy", "convert_element_type"):
            return self._converted(args, kwargs)
        if name in FILLED:
            return self._filled(name, args)
        if name in ("sum", "mean"):
            return self._summed(name, *args, **kwargs)
        if name not in ALIKE and name not in OPERATIONS:
            return None
        values = _mapped(self.value, args)
        if name in ALIKE:
            return self.graph.apply(ALIKE[name], *values)
        named = dict(zip(kwargs, _mapped(self.value, kwargs.values()), strict=True))
        return OPERATIONS[name](self.graph, *values, **named)

    def _filled(self, name: str, args) -> Value:
        number = FILLED[name]
        if number is None:
            number = args[0] if name == "scalar_tensor" else args[2 if name == "new_full" else 1]
        # autograd fills the gradient that does not exist with zeros
        filled = name.endswith("_like") or name == "_efficientzerotensor"
        none = self.in_backward and number == 0 and filled
        return self.graph.nothing if none else self.graph.constant(number)

    def _converted(self, args, kwargs) -> Value:
        value, source = self.value(args[0]), args[0].dtype
        dtype = kwargs.get("dtype") or (args[1] if len(args) > 1 else source)
        if dtype == torch.bool:
            return self.graph.as_boolean(value)
        if dtype in (torch.float32, torch.float64, source) or source == torch.bool:
            return self.graph.as_number(value)
        raise self.error(
            f"a conversion to {dtype}, which rounds. All planes have the dtype of the call; "
            "round by torch.floor, torch.round or torch.trunc"
        )

    def _summed(self, name: str, x: Tensor, dim=None, keepdim=False, *, dtype=None) -> Value:
        dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
        if x.dim() != 2 or [d % 2 for d in dims] != [1]:
            raise self._mixing("is not one over the units of a row", name)
        value, count = self.graph.as_number(self.value(x)), x.size(1)
        if count == self.H and not (value.row or value.number is not None):
            value, times = self.graph.apply("sum", value), 1
        else:
            times = count  # of a number that all units have
        return self.graph.apply("mul", value, times / count if name == "mean" else times)

    def _decomposed(self, func, args, kwargs):
        # Unwrapped: torch's wrappers see to dtypes, which are all the same here, and import sympy.
        decomposition = inspect.unwrap(DECOMPOSITIONS.get(func) or _torchs_decompositions.get(func))
        name = func.overloadpacket.__name__.strip("_")
        outer, self._decomposing = self._decomposing, self._decomposing or name
        try:
            with self:
                if decomposition is not None:
                    return decomposition(*args, **kwargs)
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if not self._is_pointwise(func, args, kwargs):
                raise self._mixing("mixes units or rows", name)
            raise self.error(
                f"programs have no instruction for {self._decomposing}, and torch no decomposition "
                "into those that they have. Write it by other functions"
            )
        finally:
            self._decomposing = outer

    def _is_pointwise(self, func, args: Sequence, kwargs) -> bool:
        """Whether each number of a result is of one unit, found by a change of one unit."""
        plane = (self.N, self.H)

        def changed(tensor: Tensor) -> Tensor:
            if tensor.shape != plane or not tensor.is_floating_point():
                return tensor
            other = tensor.detach().clone()
            other[-1, -1] = -1.25
            return other

        results = [
            func(*_mapped(each, args), **kwargs) for each in (lambda tensor: tensor, changed)
        ]
        if not all(isinstance(r, Tensor) and r.shape == plane for r in results):
            return False
        differs = results[0] != results[1]
        differs[-1, -1] = False
        return not differs.any()

    def _mixing(self, does: str, name: str) -> StepError:
        if self._decomposing:
            does, name = "mixes units or rows", self._decomposing
        return self.error(f"{name.strip('_')} {does}. {MIXES}")

    def _refuse(self, name: str, func, args: Sequence) -> None:
        reads = name in ("any", "all", "equal", "is_nonzero")
        if reads or torch.Tag.data_dependent_output in func.tags:
            raise self.error(
                "Python reads the numbers of a plane here (if, while, any(), item()). A "
                "step is traced once, for all numbers: use torch.where(condition, a, b)"
            )
        if name == "native_layer_norm" and any(isinstance(a, Tensor) for a in args[2:4]):
            raise self.error(
                "the weight and the bias of layer_norm have the shape (H), which no plane has: "
                "F.layer_norm(x, x.shape[-1:]) * p.weight + p.bias"
            )
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.error(
                f"{name.strip('_')} draws random numbers. Draw them outside, declare them in "
                "inputs= and read them from p"
            )

    def _check_write(self, name: str, args, kwargs) -> None:
        partial = name in ("index_put_", "masked_scatter_", "scatter_", "index_fill_")
        if partial or "out" in kwargs or args[0].data_ptr() in self.read_only:
            raise self.error(
                "a write in place. A step makes new tensors: x = x + y, not x += y, and "
                "torch.where(mask, a, b), not x[mask] = a"
            )


MIXES = (
    "A step computes each unit of each row by itself. The one exception is a sum over the units of "
    "a row: x.sum(-1, keepdim=True), x.mean(-1, keepdim=True), F.layer_norm(x, x.shape[-1:]). "
    "What a matrix multiplies belongs into gates="
)
