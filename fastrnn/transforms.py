"""Layers inside the transforms of `torch.func` that go backwards, on the CPU kernels: `grad`, `vjp`
and `jacrev`, with `vmap` around them, inside them or alone.

A transform cannot see into an op. It takes an autograd Function, which has a rule for `vmap`. So a
layer is one Function here, and its backward is another.

- Samples with the same weights become the rows of one batch. If a sample is one row, one call
  gives the weight gradients of all samples, too.
- Otherwise each set of weights, and each sample that wants weight gradients, takes a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from . import dispatch
from .call import Call
from .dispatch import cpu, reference
from .results import Cotangents, Gradients, Needs, Results, Saved
from .torch_private import (
    are_transforms_active,
    are_transforms_backwards,
    in_forward_ad,
    may_derive,
)

# In which dimension tensors hold the rows of the batch: input, h0, c0, reset and lengths; gradients
# of output, h_n and c_n; output, gates, cells and hidden as they are saved.
_OF_CALL, _OF_GRADIENTS, _OF_SAVED = (1, 1, 1, 1, 0), (1, 1, 1), (1, 2, 2, 2)
_BEFORE = len(_OF_GRADIENTS + _OF_SAVED)  # what comes before the call in a backward

Tensors = Sequence[Tensor | None]


class _Asked:
    """What is no tensor in a call, and what of it may have gradients. `vmap` looks into tuples, and
    not into this.

    needs: which gradients a backward makes.
    of_rows: whether those of the weights are those of each row.
    """

    def __init__(self, call: Call, needs: Needs | None = None, of_rows: bool = False) -> None:
        self.rest, self.limits, self.needs, self.of_rows = call[5:7], call[9:], needs, of_rows
        kind = call.kind
        self.has = (kind.saved > 0, kind.has_c, kind.keeps_hidden(call.projected))
        self.saves = may_derive()

    def call(self, tensors: Tensors) -> Call:
        input, h0, c0, reset, lengths, *weights = tensors
        return Call(input, None, h0, c0, weights, *self.rest, reset, lengths, *self.limits)


def layer(call: Call) -> Results:
    """A layer of padded input, of which nobody wants the gates; errors as of `ops.layer`."""
    call.sizes()  # and its checks
    output, h_n, *rest = _Forward.apply(_Asked(call), *_tensors(call))
    return Results(output, h_n, rest[0] if call.kind.has_c else None)


def _tensors(call: Call) -> list[Tensor | None]:
    return [call.input, call.h0, call.c0, call.reset, call.lengths, *call.weights]


def _spread(some: Sequence, present: Sequence[bool]) -> list:
    """These, with None where nothing is present."""
    rest = iter(some)
    return [next(rest) if there else None for there in present]


class _Forward(Function):
    """(asked, *tensors of a call) -> output, h_n, c_n, and what backward may read, if there is one:
    a copy of the output, which the user may change, and gates, cells and hidden as (D, T, N, ...).
    What a cell does not have is left out."""

    @staticmethod
    def forward(asked, *tensors):
        call = asked.call(tensors)
        output, h_n, c_n, *saved = dispatch.way(cpu, call).run(call, asked.saves)
        given = [output, h_n] if call.c0 is None else [output, h_n, c_n]
        if not asked.saves:
            return tuple(given)
        steps = output.shape[:2]
        saved = [t.unflatten(1, steps) for t, has in zip(saved, asked.has, strict=True) if has]
        return *given, output.clone(), *saved

    @staticmethod
    def setup_context(ctx, inputs, output):
        asked, *tensors = inputs
        given = 2 if tensors[2] is None else 3
        ctx.asked, ctx.there = asked, [tensor is not None for tensor in tensors]
        ctx.there += [True, *asked.has]
        ctx.mark_non_differentiable(*output[given:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(t for t in tensors if t is not None), *output[given:])

    @staticmethod
    def backward(ctx, *grads):
        asked, (_, *needed) = ctx.asked, ctx.needs_input_grad
        came = _spread(grads, (True, True, ctx.there[2]))
        if not any(needed) or came == [None] * 3:
            return (None,) * (1 + len(needed))
        tensors = _spread(ctx.saved_tensors, ctx.there)
        tensors, saved = tensors[: len(needed)], tensors[len(needed) :]
        weights = needed[len(_OF_CALL) :]
        asked = _Asked(asked.call(tensors), Needs(needed[0], any(needed[1:3]), any(weights)))
        # Another transform may have begun meanwhile, such as `jvp` of what `vjp` returned.
        plain = are_transforms_backwards() and not in_forward_ad()
        how = _Backward.apply if plain else _Backward.definition
        return None, *_Backward.gradients(how, asked, *came, *saved, *tensors)

    @staticmethod
    def vmap(info, in_dims, asked, *tensors):
        _, *dims = in_dims
        if any(dim is not None for dim in dims[len(_OF_CALL) :]):
            return _each(_Forward, info.batch_size, dims, asked, tensors)
        rows = _as_rows(tensors, dims, _OF_CALL, info.batch_size)
        there = [True, True, tensors[2] is not None]
        there += [True, *asked.has] if asked.saves else [False] * len(_OF_SAVED)
        at = [at for at, has in zip((*_OF_GRADIENTS, *_OF_SAVED), there, strict=True) if has]
        size = info.batch_size, _size(tensors[1], dims[1], 1)
        return _apart(_Forward.apply(asked, *rows), at, size), tuple(at)


class _Backward(Function):
    """(asked, gradients of output, h_n and c_n, what was saved, *tensors of a call) -> gradients of
    the input, of h0 and c0, and of the weights, as far as they are needed. With `asked.of_rows`
    those of the weights are (N, ...), one for each row."""

    @staticmethod
    def gradients(how: Callable, asked, *tensors) -> list[Tensor | None]:
        """The gradients of every tensor of the call, by `apply` or by `definition`."""
        input, state, weights = asked.needs
        there = [t is not None for t in tensors[_BEFORE:]]
        needed = [input, state, state and there[2], False, False]
        needed += [weights] * (len(there) - len(needed))
        return _spread(how(asked, *tensors), needed)

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
        call, cotangents, saved = _parts(asked, tensors)
        flat = [t if t is None else t.flatten(1, 2).contiguous() for t in saved[1:]]
        given = call, cotangents, Saved(saved.output, *flat), asked.needs
        way = dispatch.way(cpu, call)
        if not asked.of_rows:
            return _Backward.needed(asked, way.run_backward(*given))
        found = cpu.run_backward_of_rows(*given) if way is cpu else None
        if found is None:
            return _row_by_row(_Backward.forward, asked, tensors)
        return _Backward.needed(asked, found)

    @staticmethod
    def definition(asked, *tensors):
        """The same through the reference, which can be derived."""
        call, cotangents, _ = _parts(asked, tensors)
        return _Backward.needed(asked, reference.differentiable_gradients(call, cotangents))

    @staticmethod
    def setup_context(ctx, inputs, output):
        asked, *tensors = inputs
        ctx.asked, ctx.there = asked, [t is not None for t in tensors]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(t for t in tensors if t is not None))

    @staticmethod
    def backward(ctx, *grads):
        """Through the reference, which knows nothing of what was saved."""
        tensors = _spread(ctx.saved_tensors, ctx.there)
        wanted = [k for k, need in enumerate(ctx.needs_input_grad[1:]) if need]
        with torch.enable_grad():
            for k in wanted:  # an alias: one tensor may have been made of another
                tensors[k] = tensors[k].view_as(tensors[k])
        again, results = torch.is_grad_enabled(), [None] * len(tensors)
        with torch.enable_grad():
            if ctx.asked.of_rows:
                found = _row_by_row(_Backward.definition, ctx.asked, tensors)
            else:
                found = _Backward.definition(ctx.asked, *tensors)
        pairs = zip(found, grads, strict=True)
        pairs = [(own, came) for own, came in pairs if came is not None and own.requires_grad]
        if pairs:
            own, came = zip(*pairs, strict=True)
            inputs = [tensors[k] for k in wanted]
            each = torch.autograd.grad(own, inputs, came, create_graph=again, allow_unused=True)
            for k, gradient in zip(wanted, each, strict=True):
                results[k] = gradient
        return None, *results

    @staticmethod
    def vmap(info, in_dims, asked, *tensors):
        _, *dims = in_dims
        needs, h0 = asked.needs, tensors[_BEFORE + 1]
        saved, *of_weights = dims[len(_OF_GRADIENTS)], *dims[_BEFORE + len(_OF_CALL) :]
        one_call = info.batch_size > 0 and saved is not None
        one_call = one_call and of_weights == [None] * len(of_weights)
        size = info.batch_size, _size(h0, dims[_BEFORE + 1], 1)
        if needs.weights:  # of samples of one row, each for the first time
            one_call = one_call and not asked.of_rows and size[1] == 1
        if not one_call:
            return _each(_Backward, info.batch_size, dims, asked, tensors)
        at = _OF_GRADIENTS + _OF_SAVED + _OF_CALL
        rows = _as_rows(tensors, dims, at, info.batch_size)
        asked = _Asked(asked.call(tensors[_BEFORE:]), needs, of_rows=needs.weights)
        found = _Backward.apply(asked, *rows)
        count = _count_before_weights(asked)
        return (*_apart(found[:count], (1,) * count, size), *found[count:]), (
            *(1,) * count,
            *(0,) * (len(found) - count),
        )


def _count_before_weights(asked: _Asked) -> int:
    """How many gradients a backward gives before those of the weights."""
    return asked.needs.input + asked.needs.state * (2 if asked.has[1] else 1)


def _size(tensor: Tensor, dim: int | None, at: int) -> int:
    """The size in a dimension of a tensor, as it is without its batch of `vmap`."""
    return tensor.size(at + 1 if dim is not None and dim <= at else at)


def _row_by_row(function: Callable, asked: _Asked, tensors: Tensors) -> tuple[Tensor, ...]:
    """What a backward with `asked.of_rows` gives, by a call of `function` for each row."""
    at = _OF_GRADIENTS + _OF_SAVED + _OF_CALL
    at += (None,) * (len(tensors) - len(at))
    alone = _Asked(asked.call(tensors[_BEFORE:]), asked.needs)
    results = []
    for k in range(tensors[_BEFORE + 1].size(1)):
        row = [
            t if t is None or where is None else t.narrow(where, k, 1)
            for t, where in zip(tensors, at, strict=True)
        ]
        results.append(function(alone, *row))
    count = _count_before_weights(asked)
    joined = [*map(torch.stack, zip(*results, strict=True))]
    return *(t.squeeze(2).movedim(0, 1) for t in joined[:count]), *joined[count:]


def _parts(asked: _Asked, tensors: Tensors) -> tuple[Call, Cotangents, Saved]:
    count = len(_OF_GRADIENTS)
    came, saved = tensors[:count], tensors[count:_BEFORE]
    return asked.call(tensors[_BEFORE:]), Cotangents(*came, None), Saved(*saved)


def _each(function: type[Function], batch: int, dims: Sequence, asked: _Asked, tensors: Tensors):
    """What `vmap` of a function gives, by a call for each."""
    if batch == 0:  # of one that is made up, for the shapes
        one = [
            t if d is None else t.new_zeros((*t.shape[:d], 1, *t.shape[d + 1 :]))
            for t, d in zip(tensors, dims, strict=True)
        ]
        stacked, at = _each(function, 1, dims, asked, one)
        return tuple(t[:0] for t in stacked), at
    members = [
        (t,) * batch if d is None else t.unbind(d) for t, d in zip(tensors, dims, strict=True)
    ]
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    plain = not (recorded or are_transforms_active())
    call = function.forward if plain else function.apply
    results = [call(asked, *member) for member in zip(*members, strict=True)]
    stacked = tuple(map(torch.stack, zip(*results, strict=True)))
    return stacked, (0,) * len(stacked)


def _as_rows(tensors: Tensors, dims: Sequence, at: Sequence[int], batch: int) -> list:
    """The tensors with the samples of `vmap` among their rows; `at` is the dimension of the rows.
    The tensors beyond `at` have no samples, and stay."""
    rows = []
    for tensor, dim, where in zip(tensors, dims, at, strict=False):
        if tensor is not None:
            if dim is None:
                tensor = tensor.unsqueeze(where)
                tensor = tensor.expand(*tensor.shape[:where], batch, *tensor.shape[where + 1 :])
            else:
                tensor = tensor.movedim(dim, where)
            tensor = tensor.flatten(where, where + 1)
        rows.append(tensor)
    return rows + list(tensors[len(at) :])


def _apart(
    results: Sequence[Tensor], at: Sequence[int], size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """The rows of each result apart: (samples, rows of one)."""
    return tuple(t.unflatten(k, size) for t, k in zip(results, at, strict=True))
