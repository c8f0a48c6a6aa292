"""The backend "reference": plain PyTorch. It takes every call on every device, and is the fallback.

Autograd goes through `run`. `run_backward` serves where a layer is an op, which autograd does not
see into.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch

from ...call import Call
from ...checks import check_lengths
from ...results import Cotangents, Gradients, Needs, Results, Saved
from ...torch_private import dispatch_modes, in_vmap, recording
from ...trees import map_tensors, tensors
from . import definition

NAME = "reference"


def status() -> None:
    """Nothing keeps it from running."""


def obstacle(call: Call, traced: bool = False) -> None:
    """Nothing keeps it from taking a call."""


def run(call: Call, save: bool) -> Results:
    """The layer, differentiable to any order.

    Raises:
        RuntimeError: a rank, size or dtype does not fit, there is no time step, or a length on the
            CPU is out of range.
    """
    check_lengths(call.lengths, len(call.input))
    return definition.layer(call, save)


def in_float32(function: Callable) -> Callable:
    """`function` as the CPU kernels compute half precision: rounding what comes in and goes out.

    Where tensors on a CPU are float16 or bfloat16, it is given float32 in their place, and what it
    returns in float32 becomes theirs.
    """

    def cast(tree, source: torch.dtype, target: torch.dtype):
        return map_tensors(lambda t: t.to(target) if t.dtype == source else t, tree)

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = {t.dtype for t in tensors((args, kwargs)) if t.is_cpu}
        half = next((d for d in (torch.float16, torch.bfloat16) if d in given), None)
        if half is None:
            return function(*args, **kwargs)
        args, kwargs = cast((args, kwargs), half, torch.float32)
        return cast(function(*args, **kwargs), torch.float32, half)

    return call


@in_float32
@torch.no_grad()
def run_detached(call: Call, save: bool) -> Results:
    """The layer without gradients, half precision as the CPU kernels compute it."""
    return run(call, save)


@in_float32
def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """The gradients, by computing the layer again; what was saved is not read."""
    attached = call.with_tensors([t.detach().requires_grad_() for t in call.tensors()])
    y, h_n, c_n, _, cells, hidden = recording(lambda: run(attached, save=True))
    wanted = [attached.input] * needs.input
    wanted += [t for t in (attached.h0, attached.c0) if t is not None] * needs.state
    wanted += list(attached.weights) * needs.weights
    pairs = zip((y, h_n, c_n, cells, hidden), cotangents, strict=True)
    pairs = [(result, grad) for result, grad in pairs if grad is not None]
    grads = ()
    if wanted and pairs:
        results, seeds = zip(*pairs, strict=True)
        grads = torch.autograd.grad(results, wanted, seeds, materialize_grads=True)
    elif wanted:
        grads = [torch.zeros_like(t) for t in wanted]
    grad = iter([g.contiguous() for g in grads])
    none = call.input.new_empty(0)
    return Gradients(
        next(grad) if needs.input else none,
        next(grad) if needs.state else none.clone(),
        next(grad) if needs.state and call.c0 is not None else none.clone(),
        list(grad),
    )


_ALL = Needs(input=True, state=True, weights=True)


def differentiable_gradients(call: Call, cotangents: Cotangents, needs: Needs = _ALL) -> Gradients:
    """The gradients under `create_graph=True` or in `vmap`: through the reference, which can be
    derived again and transformed. In eager mode those that are not needed are zeros.

    With grad_clip a second backward clamps twice, what comes through these gradients and what comes
    through the layer's results, where the reference by itself would clamp their sum.
    """
    positions = (0, 1, 2, 4, 5)  # of what cotangents belong to, in `Results`
    wanted = [k for k, grad in zip(positions, cotangents, strict=True) if grad is not None]

    def layer(*tensors):
        results = in_float32(definition.layer)(call.with_tensors(tensors), max(wanted) > 2)
        return tuple(results[k] for k in wanted)

    came = [grad for grad in cotangents if grad is not None]
    if in_vmap() or dispatch_modes() or torch.compiler.is_compiling():
        _, vjp = torch.func.vjp(layer, *call.tensors())
        grads = vjp(tuple(came))
    else:
        # Aliases: what one tensor of the call was made of, may be another one.
        own = [t.view_as(t) if t.requires_grad else t for t in call.tensors()]
        # A result may depend on none, as the last state does where every step detaches.
        pairs = [(r, g) for r, g in zip(layer(*own), came, strict=True) if r.requires_grad]
        states, weights = len(own) - len(call.weights) - 1, len(call.weights)
        due = [needs.input, *[needs.state] * states, *[needs.weights] * weights]
        inputs = [t for t, is_due in zip(own, due, strict=True) if is_due and t.requires_grad]
        found = {}
        if pairs and inputs:
            results, seeds = zip(*pairs, strict=True)
            each = torch.autograd.grad(results, inputs, seeds, create_graph=True, allow_unused=True)
            found = dict(zip(map(id, inputs), each, strict=True))
        grads = [torch.zeros_like(t) if (g := found.get(id(t))) is None else g for t in own]
    found = call.with_tensors(grads)
    return Gradients(found.input, found.h0, found.c0, found.weights)


_warned: set[str] = set()  # names of cells


def warn_of_loop(call: Call, reason: str) -> None:
    """Says once of each cell made of a function why it runs here on a GPU."""
    if call.cell in _warned or torch.compiler.is_compiling():
        return
    _warned.add(call.cell)
    warnings.warn(
        f"{call.kind.step} runs as a loop of PyTorch's operations, which is slow: {reason}",
        stacklevel=2,
    )
