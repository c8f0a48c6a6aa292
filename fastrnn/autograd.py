"""The derivative of a layer, once for each of two ways to call it.

Compiled graphs need the op's own autograd formula; eager calls take a Function, which costs less
and returns what only the backward needs where it was asked for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from . import backward, dispatch
from .call import Call
from .dispatch import Backend, cpu, reference
from .dispatch.cpu import op
from .dispatch.reference.steps import plus
from .results import Cotangents, Gradients, Needs, Results, Saved
from .torch_private import (
    apply_outside_transforms,
    dispatch_modes,
    in_vmap,
    is_functional,
    is_wanted,
)

_LARGE = 2**22  # multiplications by W_ih that take ten times as long as questions to the engine
_NO_DATA = torch.empty(0, device="cpu")


def _witnesses(given: tuple[Tensor | None, ...]) -> list[Tensor]:
    """For each result a tensor that shares its version, and not its memory, which backward frees.

    Under a mode that sees every op, or where functionalization does, it shares the memory.
    """
    witnesses = []
    for result in given:
        if result is None:
            continue
        witness = result.detach()
        stands_for_another = witness.is_meta or is_functional(witness) or dispatch_modes()
        if type(witness) is Tensor and not stands_for_another:
            witness.data = _NO_DATA
        witnesses.append(witness)
    return witnesses


def _save(ctx, call: Call, results: Results, traced: bool) -> Tensor:
    """Saves a call and the results that backward reads, and returns the output as it is saved.

    The user holds some of these too: the output of a layer, and with `traced` all of them. The user
    may change them in place. So aliases with versions of their own are saved, and witnesses tell
    whether the memory still holds what the layer gave. Autograd's own check does not run where
    hooks take the saved tensors.
    """
    output, _, _, gates, cells, hidden = results
    given = (output, gates, cells, hidden) if traced else () if call.is_step else (output,)
    ctx.witnesses = _witnesses(given)
    ctx.versions = [witness._version for witness in ctx.witnesses]
    output = output if call.is_step else output.data
    if traced:
        gates, cells, hidden = (t if t is None else t.data for t in (gates, cells, hidden))
    ctx.has_c, ctx.rest = call.c0 is not None, (*call[5:7], *call[9:])
    # Each place in what is saved takes 2 us of a call, whatever is in it.
    ctx.given, present = [], []
    for optional in (call.batch_sizes, call.c0, call.reset, call.lengths, gates, cells, hidden):
        ctx.given.append(optional is not None)
        if optional is not None:
            present.append(optional)
    ctx.save_for_backward(call.input, call.h0, output, *present, *call.weights)
    ctx.set_materialize_grads(False)
    return output


def _saved(ctx) -> tuple[Call, Saved]:
    """The call, and what it left for backward."""
    input, h0, output, *rest = ctx.saved_tensors
    tensors = iter(rest)
    batch_sizes, c0, reset, lengths, *kept = [
        next(tensors) if given else None for given in ctx.given
    ]
    cell, names, *limits = ctx.rest
    call = Call(input, batch_sizes, h0, c0, list(tensors), cell, names, reset, lengths, *limits)
    return call, Saved(output, *kept)


def _gradients(
    ctx,
    backend: Backend,
    call: Call,
    saved: Saved,
    cotangents: Cotangents,
    needs: Needs,
) -> Gradients | None:
    """The gradients that are needed; None if nothing comes in."""
    output, h_n, c_n, cells, hidden = cotangents
    if call.c0 is None:
        c_n = cells = None
        cotangents = Cotangents(output, h_n, c_n, cells)
    if output is h_n is c_n is cells is hidden is None:
        return None
    derived = torch.is_grad_enabled()
    if in_vmap() or (derived and not backward.takes(call, cotangents)):
        return reference.differentiable_gradients(call, cotangents, needs)
    way = dispatch.way(backend, call)
    is_stale = _staleness(ctx)
    if is_stale():
        results = way.run(call, save=True)  # the same numbers again
        saved, is_stale = Saved(results.output, *results[3:]), None
    if derived:
        return backward.gradients(backend, call, cotangents, saved, needs, is_stale)
    return way.run_backward(call, cotangents, saved, needs)


def _needs(ctx, call: Call) -> Needs:
    """The gradients that the backward pass wants.

    `torch.autograd.grad(loss, x)` wants none of the weights', which are half of the work. A small
    call makes whatever may be needed.
    """
    input, h0, *rest = ctx.needs_input_grad[3:]
    c0, weights = (rest[0], rest[1:]) if ctx.has_c else (False, rest)
    needs = Needs(input, h0 or c0, any(weights))
    rows = call.input.numel() // max(1, call.input.size(-1))
    if rows * call.weights[0].numel() < _LARGE:
        return needs
    of_input, *others = [node for node, _ in ctx.next_functions]  # one for each of `call.tensors()`
    of_weights = others[1 + ctx.has_c :]
    input = needs.input and is_wanted(of_input)
    return Needs(input, needs.state, needs.weights and any(map(is_wanted, of_weights)))


def _in_order(ctx, needs: Needs, found: Gradients) -> tuple[Tensor | None, ...]:
    """Gradients in the order of what `apply` was given, None for those that nobody wants."""
    input, h0, c0, weights = found
    count = len(ctx.needs_input_grad) - 5 - ctx.has_c
    return (
        None,
        None,
        None,
        input if needs.input else None,
        h0 if needs.state else None,
        *((c0 if needs.state else None,) if ctx.has_c else ()),
        *(weights if needs.weights else (None,) * count),
    )


def _staleness(ctx) -> Callable[[], bool]:
    """Whether the user has changed in place what a layer gave."""
    witnesses, versions = ctx.witnesses, ctx.versions
    return lambda: versions != [witness._version for witness in witnesses]


def _constant(call: Call, results: Results) -> list[Tensor]:
    """The results that have no gradient."""
    hidden = None if call.kind.output else results.hidden  # before a projection
    return [each for each in (results.gates, hidden) if each is not None]


class Layer(torch.autograd.Function):
    """`ops.layer` in eager mode: (backend, traced, call, *call.tensors()).

    Gives the first three results, or all of them with `traced`. The gates have no gradient. hidden
    has one only where it is not the output.

    Where `joins`, the output as it is saved comes fourth, and nobody sees it. A backward under
    `create_graph=True` is a function of it, so that the derivative of that backward arrives here
    together with what comes in otherwise. One pass over time is then enough for both.
    """

    @staticmethod
    def forward(ctx, backend, traced, call, *tensors):
        results = dispatch.way(backend, call).run(call, save=True)
        output = _save(ctx, call, results, traced)
        ctx.backend, ctx.joins = backend, not traced and backward.joins(call)
        if not traced:
            return (*results[:3], output) if ctx.joins else results[:3]
        ctx.mark_non_differentiable(*_constant(call, results))
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        call, saved = _saved(ctx)
        needs = _needs(ctx, call)
        if ctx.joins:
            cotangents = Cotangents(plus(grads[0], grads[3]), *grads[1:3], None)
        else:
            cotangents = Cotangents(*grads[:3], *(grads[4:] or (None,)))
        found = _gradients(ctx, ctx.backend, call, saved, cotangents, needs)
        return (
            (None,) * len(ctx.needs_input_grad) if found is None else _in_order(ctx, needs, found)
        )


class Step(torch.autograd.Function):
    """`ops.step` in eager mode: (backend, None, call, *call.tensors()) -> (h', c').

    Nothing has a time, nor do the kernels want it: to make views takes as long as a small step.
    """

    @staticmethod
    def forward(ctx, backend, _, call, *tensors):
        way, results = dispatch.way(backend, call), None
        if way is cpu:
            results = cpu.run_step(call)
        if results is None:
            whole = way.run(call.over_time(), save=True)
            states = [t if t is None else t.squeeze_(0) for t in whole[:3]]
            results = Results(*states, *whole[3:])
        _save(ctx, call, results, False)
        ctx.backend = backend
        return results[1:3]

    @staticmethod
    def backward(ctx, *grads):
        if grads[0] is grads[1] is None:
            return (None,) * len(ctx.needs_input_grad)
        call, saved = _saved(ctx)
        needs, found = _needs(ctx, call), None
        plain = not (torch.is_grad_enabled() or in_vmap())
        if plain and dispatch.way(ctx.backend, call) is cpu:
            found = cpu.run_backward_of_step(call, Cotangents(None, *grads, None), saved, needs)
        if found is None:
            saved = saved._replace(output=saved.output.unsqueeze(0))
            h, c = [grad if grad is None else grad.unsqueeze(0) for grad in grads]
            cotangents = Cotangents(None, h, c, None)
            found = _gradients(ctx, ctx.backend, call.over_time(), saved, cotangents, needs)
            found = found.of_step()
        return _in_order(ctx, needs, found)


# In transforms another Function stands for a layer, see `transforms`, or the reference.
_apply = apply_outside_transforms(Layer)
_apply_step = apply_outside_transforms(Step)


def layer(backend: Backend, traced: bool, call: Call) -> Results:
    """A layer that autograd records, with all results if `traced`, on a backend that takes it.
    RuntimeError if something does not fit."""
    try:
        results = _apply(backend, traced, call, *call.tensors())
    except RuntimeError:
        call = _out_of_inference_mode(call)
        results = _apply(backend, traced, call, *call.tensors())
    return Results(*results) if traced else Results(*results[:3])


def step(backend: Backend, call: Call) -> tuple[Tensor, Tensor | None]:
    """(h', c') of a cell, likewise."""
    try:
        return _apply_step(backend, None, call, *call.tensors())
    except RuntimeError:
        call = _out_of_inference_mode(call)
        return _apply_step(backend, None, call, *call.tensors())


def _out_of_inference_mode(call: Call) -> Call:
    """The call that has failed, with copies of what inference mode made, which autograd does not
    save. Raises the error that is being handled if there is nothing of the kind."""

    def own(tensor: Tensor | None) -> Tensor | None:
        return tensor.clone() if tensor is not None and tensor.is_inference() else tensor

    given = call.batch_sizes, call.reset, call.lengths
    tensors = [own(each) for each in call.tensors()]
    batch_sizes, reset, lengths = (own(each) for each in given)
    if all(map(operator.is_, (*tensors, batch_sizes, reset, lengths), (*call.tensors(), *given))):
        raise
    call = call.with_tensors(tensors)
    return call._replace(batch_sizes=batch_sizes, reset=reset, lengths=lengths)


def op_setup_context(ctx, inputs, output):
    """Saves for `op_backward` what layer_forward was given and gave."""
    call, results = Call(*inputs), Results(*output)
    _save(ctx, call, results, True)
    ctx.mark_non_differentiable(*_constant(call, results))


def op_backward(ctx, *grads):
    """The derivative of layer_forward, with respect to each of its arguments."""
    need_input, _, need_h0, need_c0, need_weights, *others = ctx.needs_input_grad
    needs = Needs(need_input, need_h0 or need_c0, any(need_weights))
    cotangents = Cotangents(*grads[:3], *grads[4:])
    call, saved = _saved(ctx)
    found = _gradients(ctx, op, call, saved, cotangents, needs)
    weights = [None] * len(call.weights)
    if found is None:
        found = Gradients(None, None, None, weights)
    return (
        found.input if needs.input else None,
        None,
        found.h0 if needs.state else None,
        found.c0 if needs.state and call.c0 is not None else None,
        found.weights if needs.weights else weights,
        *(None for _ in others),
    )
