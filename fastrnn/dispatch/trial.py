"""Tiny layers on a backend against the reference in float64: what is wrong, if anything is."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import Call
from ..results import Cotangents, Needs, Saved
from ..table import cell_named, weight_names, weight_shapes
from . import gpu, reference

T, N, I, H = 4, 17, 5, 20  # a row more than a tile of the kernels has, and no multiple of anything
# Of an element, in units of the largest one expected, at least 1.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 8e-2}
ALL = Needs(input=True, state=True, weights=True)


class Case(NamedTuple):
    """A call, and what comes into its backward."""

    call: Call
    cotangents: Cotangents

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Case:
        call, (output, h_n, c_n, *_) = self
        tensors = [tensor.to(device, dtype) for tensor in call.tensors()]
        masks = {name: _on(getattr(call, name), device) for name in ("reset", "lengths")}
        grads = (None if t is None else t.to(device, dtype) for t in (output, h_n, c_n))
        return Case(call.with_tensors(tensors)._replace(**masks), Cotangents(*grads, None))


def _on(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def cases(cells: Sequence[str], call: Call | None = None) -> list[Case]:
    """Of each cell a call in one direction and one in two, in float64 on the CPU, that ask for what
    torch.nn lacks. Of a cell that is a function, weights are as those of `call`."""
    generator = torch.Generator("cpu").manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    def weight(name: str, shape: tuple[int, ...], cell: str) -> Tensor:
        if name.startswith("p_"):
            return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        if cell == "rnn_relu" and name == "b_ih":
            # The derivative jumps at 0, where rounding would choose: units are clearly on or off.
            return 4.0 - 8.0 * (torch.arange(shape[0], device="cpu") % 2).double()
        return numbers(*shape) * (0.2 if cell == "rnn_relu" else 1.0) / max(1, shape[-1]) ** 0.5

    found = []
    for cell in cells:
        kind = cell_named(cell)
        names, shapes, inputs, width, units = weight_names(True, False), [], I, H, H
        if kind.step:
            names, inputs = call.names, call.input.size(-1)
            width, units = call.h0.size(-1), call.hidden_size
            for given in call.weights[: len(names.split())]:
                of_rows = given.dim() == 3  # an input of the cell
                shapes.append((T, N, given.size(-1)) if of_rows else tuple(given.shape))
        else:
            by_name = weight_shapes(kind, I, H, H)
            shapes = [by_name[name] for name in names.split()]
        for D in (1, 2):
            weights = [
                weight(name, shape, cell)
                for _ in range(D)
                for name, shape in zip(names.split(), shapes, strict=True)
            ]
            c = (D, N, kind.own * units)
            tiny = Call(
                numbers(T, N, inputs),
                None,
                numbers(D, N, width),
                numbers(*c) if kind.has_c else None,
                weights,
                cell,
                names,
                numbers(T, N) > 0.5 if D == 1 else None,
                torch.arange(N, device="cpu") % (T + 1),
                detach_every=3,
                grad_clip=0.5,
            )
            of_c = numbers(*c) if kind.has_c else None
            found.append(
                Case(tiny, Cotangents(numbers(T, N, D * width), numbers(D, N, width), of_c, None))
            )
    return found


def results(backend: ModuleType, case: Case) -> dict[str, Tensor]:
    """What a backend gives, forward and backward, by name, on the host; what is empty is left
    out."""
    call = case.call
    output, h_n, c_n, gates, cells, hidden = backend.run(call, True)
    saved = Saved(output, gates, cells, hidden)
    input, h0, c0, weights = backend.run_backward(call, case.cotangents, saved, ALL)
    named = {"output": output, "h_n": h_n, "c_n": c_n}
    named |= {f"the gradient of {k}": v for k, v in (("input", input), ("h0", h0), ("c0", c0))}
    for k, gradient in enumerate(weights):
        named[f"the gradient of weight {k}"] = gradient
    return {k: v.cpu().double() for k, v in named.items() if v is not None and v.numel()}


def wrong(
    found: dict[str, Tensor], wanted: dict[str, Tensor], case: Case, dtype: torch.dtype
) -> str | None:
    """What of these is not what it should be, or None.

    Each element counts; of a cell that is a function a result as a whole, for it may jump or bend
    where rounding decides.
    """
    for name, expected in wanted.items():
        error = found[name] - expected
        if case.call.kind.step:
            off = error.norm() / expected.norm().clamp(min=1)
        else:
            off = error.abs().max() / expected.abs().max().clamp(min=1)
        if not off <= TOLERANCE[gpu.precision(dtype)]:
            return f"{case.call.cell}: {name} is off by {off:.2g}"
    return None


def expected(case: Case) -> dict[str, Tensor]:
    """The reference's results, of the numbers of `case`, in float64 on the CPU."""
    return results(reference, case.to("cpu", torch.float64))
