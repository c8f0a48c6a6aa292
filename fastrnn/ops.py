"""The custom ops, and `layer`, which runs one layer on the backend that was chosen.

The extension `fastrnn._C` registers kernels for CPU tensors under the schemas of the ops. This file
registers everything else that an op runs on.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from . import autograd, dispatch, transforms
from .call import SCHEMA, Call
from .dispatch import Backend, cpu, cudnn, reference
from .dispatch.cpu import op
from .dispatch.cudnn import graph  # noqa: F401  (its ops)
from .results import Cotangents, Needs, Results, Saved, empty_results
from .torch_private import are_transforms_active

_SCHEMAS = {
    "layer_inference": f"({SCHEMA}) -> (Tensor output, Tensor h_n, Tensor c_n)",
    "layer_forward": f"({SCHEMA}) -> "
    "(Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor hidden)",
    "layer_backward": "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cells, Tensor? grad_hidden, Tensor output, Tensor gates, Tensor cells, "
    "Tensor hidden, "
    f"bool need_input, bool need_state, bool need_weights, {SCHEMA}) -> "
    "(Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)",
}


def backward_arguments(arguments: tuple) -> tuple[Call, Cotangents, Saved, Needs]:
    """What `layer_backward` was given."""
    call = Call(*arguments[12:])
    return call, Cotangents(*arguments[:5]), Saved(*arguments[5:9]), Needs(*arguments[9:12])


# What the ops run on in Python: kernels for GPUs, and the reference without any.


def _loops_for(call: Call):
    """The kernels for GPUs that take a call, or None. RuntimeError if forced ones do not."""
    loops, chosen = dispatch.loops_for(call), dispatch.chosen()
    if loops is None and chosen in ("cuda", "triton"):
        raise dispatch.cannot_run(chosen, dispatch.BACKENDS[chosen].obstacle(call))
    return loops


def _inference(*arguments) -> tuple:
    call = Call(*arguments)
    if (loops := _loops_for(call)) is not None:
        return tuple(loops.run(call, False).filled()[:3])
    if dispatch.choose(call) is cudnn:
        return torch.ops.fastrnn.torch_layer.default(*call)
    return tuple(reference.run_detached(call, False)[:3])


def _forward(*arguments) -> tuple:
    call = Call(*arguments)
    return tuple(getattr(_loops_for(call), "run", reference.run_detached)(call, True).filled())


def _backward(*arguments) -> tuple:
    call, *rest = backward_arguments(arguments)
    return tuple((_loops_for(call) or reference).run_backward(call, *rest))


def _backward_batched(*arguments) -> tuple:
    """Of many cotangents at once, in the graph of a compiled layer: see `torch_private.in_vmap`."""
    call, *rest = backward_arguments(arguments)
    return tuple(reference.run_backward(call, *rest))


_IN_PYTHON = {"layer_inference": _inference, "layer_forward": _forward, "layer_backward": _backward}


def _register() -> torch.library.Library:
    library = torch.library.Library("fastrnn", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, _IN_PYTHON[name], "CUDA")
        if cpu.not_built:
            library.impl(name, _IN_PYTHON[name], "CPU")
    library.impl("layer_backward", _backward_batched, "Batched")
    library.define("copied(Tensor tensor) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("copied", torch.clone, "CompositeExplicitAutograd")
    if cpu.not_built:
        warnings.warn(
            f"{cpu.not_built} Until then PyTorch's own kernels run, as in torch.nn, and plain "
            "PyTorch, which is slow, for what torch.nn lacks.",
            stacklevel=5,
        )
    return library


_library = _register()
_override: torch.library.Library | None = None


def _set_override(on: bool) -> None:
    """Puts the kernels for GPUs in front of those for the CPU, for their tests without a GPU."""
    global _override
    if on and _override is None:
        _override = torch.library.Library("fastrnn", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[\\s\\S]*Overriding a previously registered kernel")
            for name, function in _IN_PYTHON.items():
                _override.impl(name, function, "CPU", allow_override=True)
    elif not on and _override is not None:
        _override._destroy()
        _override = None


dispatch.on_cpu_override(_set_override)

torch.library.register_autograd(
    "fastrnn::layer_forward", autograd.op_backward, setup_context=autograd.op_setup_context
)


torch.library.register_autograd("fastrnn::copied", lambda ctx, grad: grad)

# Fake kernels: shapes and dtypes of the results, without data.


torch.library.register_fake("fastrnn::copied", torch.empty_like)


@torch.library.register_fake("fastrnn::layer_inference")
def _(*arguments):
    return tuple(empty_results(Call(*arguments), save=False)[:3])


@torch.library.register_fake("fastrnn::layer_forward")
def _(*arguments):
    return tuple(empty_results(Call(*arguments), save=True))


@torch.library.register_fake("fastrnn::layer_backward")
def _(*arguments):
    call, _, _, needs = backward_arguments(arguments)
    empty = call.input.new_empty
    return (
        empty(call.input.shape if needs.input else 0),
        empty(call.h0.shape if needs.state else 0),
        empty(call.c0.shape if needs.state and call.c0 is not None else 0),
        [empty(w.shape) for w in call.weights] if needs.weights else [],
    )


def layer(call: Call, backend: Backend | None = None, traced: bool = False) -> Results:
    """One layer in all its directions, on the backend, or on the one that is chosen for it alone.

    All tensors share one device, except batch_sizes. They share one dtype, except batch_sizes,
    reset and lengths. On the CPU a layer of float16 or bfloat16 computes in float32 and keeps its
    states in float32 from step to step. Where the CPU multiplies bfloat16, h and gradients are
    rounded to it for the products. `traced` adds to the results: gates (detached), cells, and
    hidden where it is not the output. Differentiable to any order, on PyTorch's own kernels for
    GPUs only once.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit, the backend that was forced
            cannot run, or, on the CPU, a length is not in [0, T].
    """
    attached = call.attached()  # and its checks
    if backend is None:
        backend = dispatch.choose(call, traced=traced)
    if call.input.dtype.itemsize == 2 and dispatch.widens(backend, call.input):
        return _in_float32(call, traced)
    compiling = torch.compiler.is_compiling()
    if backend is reference:
        results = backend.run(call, traced)
        return results._replace(gates=results.gates.detach()) if traced else results
    if backend is cudnn:
        if compiling:
            return Results(*torch.ops.fastrnn.torch_layer.default(*call))
        return cudnn.run(call, False)
    if cpu.asks and backend is cpu:
        call = cpu.asked(call)
    if backend is cpu and are_transforms_active():
        return transforms.layer(call)
    save = traced or attached
    if compiling:
        return op.run(call, save)
    if attached:
        return autograd.layer(backend, traced, call)
    return dispatch.way(backend, call).run(call, save)


def step(call: Call) -> tuple[Tensor, Tensor | None]:
    """(h', c') of a cell, of which no tensor has a time. Errors as of `layer`."""
    backend, whole = None, torch.compiler.is_compiling() or are_transforms_active()
    if not whole and call.attached():
        backend = dispatch.choose(call)
        whole = backend in (reference, cudnn) or dispatch.widens(backend, call.input)
        if not whole:
            call = cpu.asked(call) if cpu.asks and backend is cpu else call
            return autograd.step(backend, call)
    _, h_n, c_n, *_ = layer(call.over_time(), backend)
    return h_n.squeeze(0), None if call.c0 is None else c_n.squeeze(0)


def handed_out(results: Results) -> Results:
    """The results of a layer in a compiled graph, with copies of those that its backward reads.

    After the graph the user may change a result in place. The witnesses of `autograd` do not exist
    there, so backward keeps the original. Results that nobody uses are not copied. The copy is an
    op of ours, because Inductor removes a `Tensor.clone` before it knows what backward reads.
    """
    _, _, _, *traced = results
    copied = torch.ops.fastrnn.copied.default
    traced = [each if each is None else copied(each) for each in traced]
    return Results(copied(results.output), *results[1:3], *traced)


def _in_float32(call: Call, traced: bool) -> Results:
    """`layer` of a call in half precision, computed in float32; its results are rounded."""
    dtype = call.input.dtype
    wide = call.with_tensors([tensor.float() for tensor in call.tensors()])
    if dtype is torch.float16:  # whose 11 bits are two parts, of 8 each
        wide = wide._replace(parts=2)
    results = layer(wide, None, traced)
    return Results(*(None if r is None else r.to(dtype) for r in results))
