"""Tiny layers on a backend against the reference in float64: what is wrong, if anything is."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import Call
from ..results import Cotangents, Needs, Saved
from ..table import Cell, cell_named, weight_names, weight_shapes
from . import gpu, reference

T, I, H, P = 4, 5, 20, 12  # no multiple of anything that kernels count in
# Of an element, in units of the largest one expected, at least 1.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 8e-2}
ALL = Needs(input=True, state=True, weights=True)


class Form(NamedTuple):
    """What decides which launches a call of a built-in cell takes."""

    D: int
    N: int
    bias: bool = True
    projected: bool = False
    packed: bool = False
    states: bool = False  # whether a gradient comes into c of every step


# Rows cross tiles of 16 and of 32 rows, and are more than these or less.
FORMS = (
    Form(1, 17, states=True),
    Form(2, 33),
    Form(2, 7, bias=False, packed=True, states=True),
    Form(1, 17, projected=True, states=True),  # a step is two launches
)


class Case(NamedTuple):
    """A call, and what comes into its backward."""

    call: Call
    cotangents: Cotangents

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Case:
        call, cotangents = self
        tensors = [tensor.to(device, dtype) for tensor in call.tensors()]
        masks = {name: _on(getattr(call, name), device) for name in ("reset", "lengths")}
        grads = (None if t is None else t.to(device, dtype) for t in cotangents)
        return Case(call.with_tensors(tensors)._replace(**masks), Cotangents(*grads))


def _on(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def cases(cells: Sequence[str], call: Call | None = None) -> list[Case]:
    """Calls of each cell that ask for what torch.nn lacks, in float64 on the CPU. Of a cell that is
    a function they have one direction and two, and weights as those of `call`."""
    generator = torch.Generator("cpu").manual_seed(0)
    found = []
    for cell in cells:
        kind = cell_named(cell)
        for form in FORMS:
            if kind.step and (form.packed or form.projected):
                continue
            if kind.has_c or not form.projected:
                found.append(_case(kind, form, call, generator))
    return found


def _case(kind: Cell, form: Form, call: Call | None, generator: torch.Generator) -> Case:
    D, N, *_ = form

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.startswith("p_"):
            return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        relu = kind.name == "rnn_relu"
        drawn = numbers(*shape) * (0.2 if relu else 1.0) / max(1, shape[-1]) ** 0.5
        if relu and name == ("b_ih" if form.bias else "w_ih"):
            # The derivative jumps at 0, where rounding would choose: units are clearly on or off.
            on = 4.0 - 8.0 * (torch.arange(shape[0], device="cpu") % 2).double()
            drawn.view(shape[0], -1)[:, 0] = on  # without a bias the first input, 1, drives them
        return drawn

    names, inputs, units = weight_names(form.bias, form.projected), I, H
    width = P if form.projected else H
    by_name = weight_shapes(kind, I, H, width)
    shapes = [by_name[name] for name in names.split() if name in by_name]
    if kind.step:
        names, inputs = call.names, call.input.size(-1)
        width, units = call.h0.size(-1), call.hidden_size
        given = call.weights[: len(names.split())]  # with 3 dimensions an input of the cell
        shapes = [(T, N, w.size(-1)) if w.dim() == 3 else tuple(w.shape) for w in given]
    lengths = torch.arange(N, device="cpu") % (T + 1)
    steps = torch.arange(T, 0, -1, device="cpu") * N // T  # rows that take part in each
    rows = (int(steps.sum()),) if form.packed else (T, N)
    input = numbers(*rows, inputs)
    if kind.name == "rnn_relu" and not form.bias:
        input[..., 0] = 1
    c = (D, N, kind.own * units)
    tiny = Call(
        input,
        steps if form.packed else None,
        numbers(D, N, width),
        numbers(*c) if kind.has_c else None,
        [weight(*each) for _ in range(D) for each in zip(names.split(), shapes, strict=True)],
        kind.name,
        names,
        numbers(T, N) > 0.5 if D == 1 else None,
        None if form.packed else lengths,
        detach_every=3,
        grad_clip=0.5,
    )
    of_c = numbers(*c) if kind.has_c else None
    of_cells = None
    if kind.has_c and form.states:
        of_cells = numbers(D, rows[0] if form.packed else T * N, kind.own * units)
    came = Cotangents(numbers(*rows, D * width), numbers(D, N, width), of_c, of_cells)
    return Case(tiny, came)


def results(backend: ModuleType, case: Case) -> dict[str, Tensor]:
    """What a backend gives, forward and backward, by name, on the host; what is empty is left
    out."""
    call = case.call
    inferred = backend.run(call, False)
    output, h_n, c_n, gates, cells, hidden = backend.run(call, True)
    saved = Saved(output, gates, cells, hidden)
    input, h0, c0, weights = backend.run_backward(call, case.cotangents, saved, ALL)
    named = {"output": output, "h_n": h_n, "c_n": c_n, "the output of inference": inferred.output}
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
