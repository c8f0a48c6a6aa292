"""Layers inside the transforms of `torch.func` that go backwards, on the CPU kernels: `grad`, `vjp`
and `jacrev`, with `vmap` around them, inside them or alone.

A transform cannot see into an op. It takes an autograd Function, which has a rule for `vmap`. So a
layer is one Function here, and its backward is another.

- Samples with the same weights become the rows of one batch. If a sample is one row, one call
  gives the weight gradients of all samples, too.
- Otherwise each set of weights, and each sample that wants weight gradients, takes a call.
"""

from __future__ import annotations

from torch.autograd import Function

from . import dispatch
from .backward import Backward
from .call import Call
from .dispatch import cpu
from .request import OF_CALL, OF_GRADIENTS, OF_SAVED, Request, tensors_of
from .results import Needs, Results
from .samples import apart, as_rows, each, size_of, spread
from .torch_private import are_transforms_backwards, in_forward_ad


def layer(call: Call) -> Results:
    """A layer of padded input, of which nobody wants the gates; errors as of `ops.layer`."""
    call.sizes()  # and its checks
    output, h_n, *rest = _Forward.apply(Request(call), *tensors_of(call))
    return Results(output, h_n, rest[0] if call.kind.has_c else None)


class _Forward(Function):
    """(request, *tensors of a call) -> output, h_n, c_n, and what backward may read, if there is
    one: a copy of the output, which the user may change, and gates, cells and hidden as (D, T, N,
    ...). What a cell does not have is left out."""

    @staticmethod
    def forward(request, *tensors):
        call = request.call(tensors)
        output, h_n, c_n, *saved = dispatch.way(cpu, call).run(call, request.saves)
        given = [output, h_n] if call.c0 is None else [output, h_n, c_n]
        if not request.saves:
            return tuple(given)
        steps = output.shape[:2]
        saved = [t.unflatten(1, steps) for t, has in zip(saved, request.has, strict=True) if has]
        return *given, output.clone(), *saved

    @staticmethod
    def setup_context(ctx, inputs, output):
        request, *tensors = inputs
        given = 2 if tensors[2] is None else 3
        ctx.request, ctx.there = request, [tensor is not None for tensor in tensors]
        ctx.there += [True, *request.has]
        ctx.mark_non_differentiable(*output[given:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(t for t in tensors if t is not None), *output[given:])

    @staticmethod
    def backward(ctx, *grads):
        request, (_, *needed) = ctx.request, ctx.needs_input_grad
        came = spread(grads, (True, True, ctx.there[2]))
        if not any(needed) or came == [None] * 3:
            return (None,) * (1 + len(needed))
        tensors = spread(ctx.saved_tensors, ctx.there)
        tensors, saved = tensors[: len(needed)], tensors[len(needed) :]
        weights = needed[len(OF_CALL) :]
        request = Request(request.call(tensors), Needs(needed[0], any(needed[1:3]), any(weights)))
        # Another transform may have begun meanwhile, such as `jvp` of what `vjp` returned.
        plain = are_transforms_backwards() and not in_forward_ad()
        how = Backward.apply if plain else Backward.definition
        return None, *Backward.gradients(how, request, *came, *saved, *tensors)

    @staticmethod
    def vmap(info, in_dims, request, *tensors):
        _, *dims = in_dims
        if any(dim is not None for dim in dims[len(OF_CALL) :]):
            return each(_Forward, info.batch_size, dims, request, tensors)
        rows = as_rows(tensors, dims, OF_CALL, info.batch_size)
        there = [True, True, tensors[2] is not None]
        there += [True, *request.has] if request.saves else [False] * len(OF_SAVED)
        at = [at for at, has in zip((*OF_GRADIENTS, *OF_SAVED), there, strict=True) if has]
        size = info.batch_size, size_of(tensors[1], dims[1], 1)
        return apart(_Forward.apply(request, *rows), at, size), tuple(at)
