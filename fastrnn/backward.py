"""A backward of a layer as an autograd Function, which can be derived, and has a rule for `vmap`.

`Backward` takes the kernels, or in eager mode the closed form of `reference.twice`. Its derivative,
`Twice`, is in closed form. The derivative of that goes through the reference, and so does what the
closed form does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from . import dispatch
from .call import Call
from .dispatch import Backend, cpu, reference
from .dispatch.reference import twice
from .request import BEFORE, OF_CALL, OF_GRADIENTS, OF_SAVED, Request, flat, over_time, tensors_of
from .results import Cotangents, Gradients, Needs, Saved
from .samples import Tensors, apart, as_rows, each, save, size_of, spread
from .torch_private import (
    are_transforms_active,
    are_transforms_backwards,
    dispatch_modes,
    in_forward_ad,
    in_vmap,
)

_derivation = reference.in_float32(twice.Derivation)
_first = reference.in_float32(twice.Derivation.first)
_second = reference.in_float32(twice.Derivation.second)
_partial = reference.in_float32(twice.Derivation.partial)


def takes(call: Call, came: Cotangents) -> bool:
    """Whether `gradients` takes a call, and what came for its results."""
    seen = dispatch_modes() or torch.compiler.is_compiling()
    return twice.takes(call) and came.cells is came.hidden is None and not seen


joins = twice.joins


def gradients(
    backend: Backend,
    call: Call,
    came: Cotangents,
    saved: Saved,
    needs: Needs,
    is_stale: Callable[[], bool] | None,
) -> Gradients:
    """The gradients that are needed, in eager mode, where they may be derived again."""
    request = Request(call, needs)
    request.is_derived, request.backend, request.is_stale = True, backend, is_stale
    given = *came[:3], *over_time(call, saved), *tensors_of(call)
    found = Backward.gradients(Backward.apply, request, *given)
    input, h0, c0, _, _, *weights = found
    return Gradients(input, h0, c0, weights)


class Backward(Function):
    """(request, gradients of output, h_n and c_n, what was saved, *tensors of a call) -> gradients
    of the input, of h0 and c0, and of the weights, as far as they are needed. With
    `request.of_rows` those of the weights are (N, ...), one for each row. The planes that were
    saved are (D, T, N, ...) in transforms, and otherwise (D, rows, ...)."""

    @staticmethod
    def gradients(how: Callable, request, *tensors) -> list[Tensor | None]:
        """The gradients of every tensor of the call, by `apply` or by `definition`."""
        return spread(how(request, *tensors), request.makes(len(tensors) - BEFORE))

    @staticmethod
    def needed(request, found: Gradients) -> tuple[Tensor, ...]:
        """Of all gradients those that are needed."""
        input, state, weights = request.needs
        states = (found.h0, found.c0) if request.has[1] else (found.h0,)
        return (
            *((found.input,) if input else ()),
            *(states if state else ()),
            *(found.weights if weights else ()),
        )

    @staticmethod
    def forward(request, *tensors):
        call, cotangents, saved = request.parts(tensors)
        if request.is_derived:
            request.derivation = _derivation(call, cotangents, saved)
            return Backward.needed(request, _first(request.derivation, request.needs))
        given = call, cotangents, flat(call, saved), request.needs
        way = dispatch.way(request.backend, call)
        if not request.of_rows:
            return Backward.needed(request, way.run_backward(*given))
        found = cpu.run_backward_of_rows(*given) if way is cpu else None
        if found is None:
            return _row_by_row(Backward.forward, request, tensors)
        return Backward.needed(request, found)

    @staticmethod
    def definition(request, *tensors):
        """The same through the reference, which can be derived."""
        call, cotangents, _ = request.parts(tensors)
        return Backward.needed(request, reference.differentiable_gradients(call, cotangents))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.request, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors, request = spread(ctx.saved_tensors, ctx.there), ctx.request
        results = [None] * len(tensors)
        wanted = [k for k, need in enumerate(ctx.needs_input_grad[1:]) if need]
        if all(grad is None for grad in grads):
            return None, *results
        call = request.call(tensors[BEFORE:])
        directions = spread(grads, request.makes(len(tensors) - BEFORE))
        plain = twice.takes(call) and not (request.of_rows or in_forward_ad())
        plain = plain and (are_transforms_backwards() if are_transforms_active() else not in_vmap())
        how = Twice.apply if plain else Twice.definition
        if not plain:
            request.derivation = None  # of no use, and a graph that is freed must not keep it
        derived = _Derived(request, wanted, len(directions))
        if plain and ctx.needs_input_grad[1 + len(OF_GRADIENTS)] and not torch.is_grad_enabled():
            how = Twice.partial  # the output leads on to the layer's own backward
        found = how(derived, *directions, *tensors)
        for k, gradient in zip(wanted, found, strict=True):
            results[k] = gradient
        return None, *results

    @staticmethod
    def vmap(info, in_dims, request, *tensors):
        _, *dims = in_dims
        needs, h0 = request.needs, tensors[BEFORE + 1]
        saved, *of_weights = dims[len(OF_GRADIENTS)], *dims[BEFORE + len(OF_CALL) :]
        one_call = info.batch_size > 0 and saved is not None
        one_call = one_call and of_weights == [None] * len(of_weights)
        size = info.batch_size, size_of(h0, dims[BEFORE + 1], 1)
        if needs.weights:  # of samples of one row, each for the first time
            one_call = one_call and not request.of_rows and size[1] == 1
        if not one_call:
            return each(Backward, info.batch_size, dims, request, tensors)
        at = OF_GRADIENTS + OF_SAVED + OF_CALL
        rows = as_rows(tensors, dims, at, info.batch_size)
        request = Request(request.call(tensors[BEFORE:]), needs, of_rows=needs.weights)
        found = Backward.apply(request, *rows)
        count = _count_before_weights(request)
        return (*apart(found[:count], (1,) * count, size), *found[count:]), (
            *(1,) * count,
            *(0,) * (len(found) - count),
        )


class _Derived:
    """What is no tensor in the derivative of a backward: what that was asked for, of which of its
    tensors a gradient is wanted, and for how many of the call's tensors there are directions."""

    def __init__(self, request: Request, wanted: list[int], count: int) -> None:
        self.request, self.wanted, self.count = request, wanted, count


class Twice(Function):
    """(derived, what came for each gradient of a backward, *tensors of that) -> the gradients of
    those of its tensors that are wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derived, *tensors):
        derivation, directions = Twice._begin(derived, tensors)
        of_call, of_came = _second(derivation, directions)
        return Twice._wanted(derived, of_came, (None,) * len(OF_SAVED), of_call)

    @staticmethod
    def partial(derived, *tensors):
        """The same where the output that was saved is a tensor like others."""
        derivation, directions = Twice._begin(derived, tensors)
        of_call, of_came, output = _partial(derivation, directions)
        return Twice._wanted(derived, of_came, (output, None, None, None), of_call)

    @staticmethod
    def _begin(derived, tensors):
        request, directions = derived.request, tensors[: derived.count]
        input, h0, c0, _, _, *weights = directions
        call, came, saved = request.parts(tensors[derived.count :])
        derivation, request.derivation = request.derivation, None  # as there
        if request.is_stale is not None and request.is_stale():
            results = dispatch.way(request.backend, call).run(call, save=True)
            saved, derivation = over_time(call, Saved(results.output, *results[3:])), None
        if derivation is None:
            derivation = _derivation(call, came, saved)
        return derivation, Gradients(input, h0, c0, weights)

    @staticmethod
    def _wanted(derived, of_came, of_saved, of_call):
        whole = of_came[:3] + of_saved + of_call[:3] + (None, None, *of_call.weights)
        return tuple(whole[k] for k in derived.wanted)

    @staticmethod
    def definition(derived, *tensors):
        """The same through the reference, which can be derived, but None for zeros. It knows
        nothing of what was saved."""
        request, again = derived.request, torch.is_grad_enabled()
        directions, tensors = tensors[: derived.count], list(tensors[derived.count :])
        with torch.enable_grad():
            for k in derived.wanted:  # an alias: one tensor may have been made of another
                tensors[k] = tensors[k].view_as(tensors[k])
            if request.of_rows:
                found = _row_by_row(Backward.definition, request, tensors)
            else:
                found = Backward.definition(request, *tensors)
        made = request.makes(derived.count)
        came = [grad for grad, own in zip(directions, made, strict=True) if own]
        inputs = [tensors[k] for k in derived.wanted]
        return _derived(found, inputs, came, again)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.derived, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors = spread(ctx.saved_tensors, ctx.there)
        wanted = [k for k, need in enumerate(ctx.needs_input_grad[1:]) if need]
        again, results = torch.is_grad_enabled(), [None] * len(tensors)
        with torch.enable_grad():
            for k in wanted:
                tensors[k] = tensors[k].view_as(tensors[k])
            found = Twice.definition(ctx.derived, *tensors)
        each = _derived(found, [tensors[k] for k in wanted], grads, again)
        for k, gradient in zip(wanted, each, strict=True):
            results[k] = gradient
        return None, *results


def _derived(
    results: Tensors, inputs: Sequence[Tensor], came: Tensors, again: bool
) -> Sequence[Tensor | None]:
    """The gradients of the inputs, from what came for each result."""
    pairs = zip(results, came, strict=True)
    pairs = [(r, c) for r, c in pairs if r is not None and c is not None and r.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    own, came = zip(*pairs, strict=True)
    return torch.autograd.grad(own, inputs, came, create_graph=again, allow_unused=True)


def _count_before_weights(request: Request) -> int:
    """How many gradients a backward gives before those of the weights."""
    return request.needs.input + request.needs.state * (2 if request.has[1] else 1)


def _row_by_row(function: Callable, request: Request, tensors: Tensors) -> tuple[Tensor, ...]:
    """What a backward with `request.of_rows` gives, by a call of `function` for each row."""
    at = OF_GRADIENTS + OF_SAVED + OF_CALL
    at += (None,) * (len(tensors) - len(at))
    alone = Request(request.call(tensors[BEFORE:]), request.needs)
    results = []
    for k in range(tensors[BEFORE + 1].size(1)):
        row = [
            t if t is None or where is None else t.narrow(where, k, 1)
            for t, where in zip(tensors, at, strict=True)
        ]
        results.append(function(alone, *row))
    count = _count_before_weights(request)
    joined = [*map(torch.stack, zip(*results, strict=True))]
    return *(t.squeeze(2).movedim(0, 1) for t in joined[:count]), *joined[count:]
