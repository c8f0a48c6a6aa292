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
from .asked import BEFORE, OF_CALL, OF_GRADIENTS, OF_SAVED, Asked, flat, over_time, tensors_of
from .call import Call
from .dispatch import Backend, cpu, reference
from .dispatch.reference import twice
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


def takes(call: Call, came: Cotangents) -> bool:
    """Whether `gradients` takes a call, and what came for its results."""
    seen = dispatch_modes() or torch.compiler.is_compiling()
    return twice.takes(call) and came.cells is came.hidden is None and not seen


def gradients(
    backend: Backend,
    call: Call,
    came: Cotangents,
    saved: Saved,
    needs: Needs,
    is_stale: Callable[[], bool] | None,
) -> Gradients:
    """The gradients that are needed, in eager mode, where they may be derived again."""
    asked = Asked(call, needs)
    asked.is_derived, asked.backend, asked.is_stale = True, backend, is_stale
    given = *came[:3], *over_time(call, saved), *tensors_of(call)
    found = Backward.gradients(Backward.apply, asked, *given)
    input, h0, c0, _, _, *weights = found
    return Gradients(input, h0, c0, weights)


class Backward(Function):
    """(asked, gradients of output, h_n and c_n, what was saved, *tensors of a call) -> gradients of
    the input, of h0 and c0, and of the weights, as far as they are needed. With `asked.of_rows`
    those of the weights are (N, ...), one for each row. The planes that were saved are (D, T, N,
    ...) in transforms, and otherwise (D, rows, ...)."""

    @staticmethod
    def gradients(how: Callable, asked, *tensors) -> list[Tensor | None]:
        """The gradients of every tensor of the call, by `apply` or by `definition`."""
        return spread(how(asked, *tensors), asked.makes(len(tensors) - BEFORE))

    @staticmethod
    def needed(asked, found: Gradients) -> tuple[Tensor, ...]:
        """Of all gradients those that are needed."""
        input, state, weights = asked.needs
        states = (found.h0, found.c0) if asked.has[1] else (found.h0,)
        return (
            *((found.input,) if input else ()),
            *(states if state else ()),
            *(found.weights if weights else ()),
        )

    @staticmethod
    def forward(asked, *tensors):
        call, cotangents, saved = asked.parts(tensors)
        if asked.is_derived:
            asked.derivation = _derivation(call, cotangents, saved)
            return Backward.needed(asked, _first(asked.derivation, asked.needs))
        given = call, cotangents, flat(call, saved), asked.needs
        way = dispatch.way(asked.backend, call)
        if not asked.of_rows:
            return Backward.needed(asked, way.run_backward(*given))
        found = cpu.run_backward_of_rows(*given) if way is cpu else None
        if found is None:
            return _row_by_row(Backward.forward, asked, tensors)
        return Backward.needed(asked, found)

    @staticmethod
    def definition(asked, *tensors):
        """The same through the reference, which can be derived."""
        call, cotangents, _ = asked.parts(tensors)
        return Backward.needed(asked, reference.differentiable_gradients(call, cotangents))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.asked, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors, asked = spread(ctx.saved_tensors, ctx.there), ctx.asked
        results = [None] * len(tensors)
        wanted = [k for k, need in enumerate(ctx.needs_input_grad[1:]) if need]
        if all(grad is None for grad in grads):
            return None, *results
        call = asked.call(tensors[BEFORE:])
        directions = spread(grads, asked.makes(len(tensors) - BEFORE))
        plain = twice.takes(call) and not (asked.of_rows or in_forward_ad())
        plain = plain and (are_transforms_backwards() if are_transforms_active() else not in_vmap())
        how = Twice.apply if plain else Twice.definition
        if not plain:
            asked.derivation = None  # of no use, and a graph that is freed must not keep it
        found = how(_Derived(asked, wanted, len(directions)), *directions, *tensors)
        for k, gradient in zip(wanted, found, strict=True):
            results[k] = gradient
        return None, *results

    @staticmethod
    def vmap(info, in_dims, asked, *tensors):
        _, *dims = in_dims
        needs, h0 = asked.needs, tensors[BEFORE + 1]
        saved, *of_weights = dims[len(OF_GRADIENTS)], *dims[BEFORE + len(OF_CALL) :]
        one_call = info.batch_size > 0 and saved is not None
        one_call = one_call and of_weights == [None] * len(of_weights)
        size = info.batch_size, size_of(h0, dims[BEFORE + 1], 1)
        if needs.weights:  # of samples of one row, each for the first time
            one_call = one_call and not asked.of_rows and size[1] == 1
        if not one_call:
            return each(Backward, info.batch_size, dims, asked, tensors)
        at = OF_GRADIENTS + OF_SAVED + OF_CALL
        rows = as_rows(tensors, dims, at, info.batch_size)
        asked = Asked(asked.call(tensors[BEFORE:]), needs, of_rows=needs.weights)
        found = Backward.apply(asked, *rows)
        count = _count_before_weights(asked)
        return (*apart(found[:count], (1,) * count, size), *found[count:]), (
            *(1,) * count,
            *(0,) * (len(found) - count),
        )


class _Derived:
    """What is no tensor in the derivative of a backward: what that was asked for, of which of its
    tensors a gradient is wanted, and for how many of the call's tensors there are directions."""

    def __init__(self, asked: Asked, wanted: list[int], count: int) -> None:
        self.asked, self.wanted, self.count = asked, wanted, count


class Twice(Function):
    """(derived, what came for each gradient of a backward, *tensors of that) -> the gradients of
    those of its tensors that are wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derived, *tensors):
        asked, directions = derived.asked, tensors[: derived.count]
        input, h0, c0, _, _, *weights = directions
        call, came, saved = asked.parts(tensors[derived.count :])
        derivation, asked.derivation = asked.derivation, None  # as there
        if asked.is_stale is not None and asked.is_stale():
            results = dispatch.way(asked.backend, call).run(call, save=True)
            saved, derivation = over_time(call, Saved(results.output, *results[3:])), None
        if derivation is None:
            derivation = _derivation(call, came, saved)
        of_call, of_came = _second(derivation, Gradients(input, h0, c0, weights))
        whole = of_came[:3] + (None,) * len(OF_SAVED)
        whole += of_call[:3] + (None, None, *of_call.weights)
        return tuple(whole[k] for k in derived.wanted)

    @staticmethod
    def definition(derived, *tensors):
        """The same through the reference, which can be derived, but None for zeros. It knows
        nothing of what was saved."""
        asked, again = derived.asked, torch.is_grad_enabled()
        directions, tensors = tensors[: derived.count], list(tensors[derived.count :])
        with torch.enable_grad():
            for k in derived.wanted:  # an alias: one tensor may have been made of another
                tensors[k] = tensors[k].view_as(tensors[k])
            if asked.of_rows:
                found = _row_by_row(Backward.definition, asked, tensors)
            else:
                found = Backward.definition(asked, *tensors)
        made = asked.makes(derived.count)
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


def _count_before_weights(asked: Asked) -> int:
    """How many gradients a backward gives before those of the weights."""
    return asked.needs.input + asked.needs.state * (2 if asked.has[1] else 1)


def _row_by_row(function: Callable, asked: Asked, tensors: Tensors) -> tuple[Tensor, ...]:
    """What a backward with `asked.of_rows` gives, by a call of `function` for each row."""
    at = OF_GRADIENTS + OF_SAVED + OF_CALL
    at += (None,) * (len(tensors) - len(at))
    alone = Asked(asked.call(tensors[BEFORE:]), asked.needs)
    results = []
    for k in range(tensors[BEFORE + 1].size(1)):
        row = [
            t if t is None or where is None else t.narrow(where, k, 1)
            for t, where in zip(tensors, at, strict=True)
        ]
        results.append(function(alone, *row))
    count = _count_before_weights(asked)
    joined = [*map(torch.stack, zip(*results, strict=True))]
    return *(t.squeeze(2).movedim(0, 1) for t in joined[:count]), *joined[count:]
