"""`ops.layer`: its derivatives to any order, the dtypes and devices it takes, choice of backend."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import layer, reference, reference_ops
from op_cases import SMALL, TINY, Case, arguments, backward, converted, cotangents, ops_of
from torch import Tensor

import fastrnn
from fastrnn import dispatch


def leaves(args: tuple) -> list[Tensor]:
    """The differentiable arguments, as tensors that require grad."""
    input, _, h0, c0, weights, _, _ = args
    return [t.requires_grad_() for t in (input, h0, c0, *weights) if t is not None]


def layer_of(args: tuple, layer=layer):
    """`layer` as a function of its differentiable arguments, of results that are not empty."""
    _, batch_sizes, _, c0, _, cell, names = args

    def function(input, h0, *rest):
        c, weights = (None, rest) if c0 is None else (rest[0], rest[1:])
        results = layer(input, batch_sizes, h0, c, weights, cell, names)
        return results if c0 is not None else results[:2]

    return function


@pytest.mark.parametrize("case", TINY, ids=str)
def test_gradcheck(case, isa):
    args = arguments(case)
    assert torch.autograd.gradcheck(layer_of(args), leaves(args), check_undefined_grad=True)


@pytest.mark.parametrize("case", TINY[:5], ids=str)
def test_second_derivatives(case):
    args = arguments(case)
    assert torch.autograd.gradgradcheck(layer_of(args), leaves(args), fast_mode=True)


@pytest.mark.parametrize("case", TINY[:5], ids=str)
def test_forward_mode(case):
    args = arguments(case)
    primals = tuple(t.detach() for t in leaves(args))
    tangents = tuple(map(torch.randn_like, primals))
    actual = torch.func.jvp(layer_of(args), primals, tangents)
    wanted = torch.func.jvp(layer_of(args, reference.layer), primals, tangents)
    for a, e in zip(actual[0] + actual[1], wanted[0] + wanted[1], strict=True):
        assert_matches(a, e)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(primals[0], tangents[0])
        output = layer_of(args)(dual, *primals[1:])[0]
        tangent = torch.autograd.forward_ad.unpack_dual(output).tangent
    alone = (tangents[0], *map(torch.zeros_like, tangents[1:]))
    _, wanted = torch.func.jvp(layer_of(args, reference.layer), primals, alone)
    assert_matches(tangent, wanted[0])


@pytest.mark.parametrize("case", TINY[:5], ids=str)
def test_function_transforms(case):
    args = arguments(case)
    primals = tuple(t.detach() for t in leaves(args))
    layer = layer_of(args)

    def loss(*inputs):
        return sum(result.sin().sum() for result in layer(*inputs))

    every = tuple(range(len(primals)))
    gradients = torch.func.grad(loss, every)(*primals)
    attached = [t.clone().requires_grad_() for t in primals]
    for a, e in zip(gradients, torch.autograd.grad(loss(*attached), attached), strict=True):
        assert_matches(a, e)

    batches = tuple(torch.stack([t, 0.5 * t, -t]) for t in primals)
    batched = torch.vmap(layer)(*batches)
    per_sample = torch.vmap(torch.func.grad(loss, every))(*batches)
    for k in range(3):
        one = tuple(t[k] for t in batches)
        for a, e in zip(batched, layer(*one), strict=True):
            assert_matches(a[k], e)
        for a, e in zip(per_sample, torch.func.grad(loss, every)(*one), strict=True):
            assert_matches(a[k], e)


@pytest.mark.parametrize("case", TINY[:5], ids=str)
def test_only_what_requires_grad_gets_one(case):
    args = arguments(case)
    everything = leaves(args)
    full = torch.autograd.grad(sum(r.sum() for r in layer_of(args)(*everything)), everything)
    for wanted in range(len(everything)):
        some = [t.detach().requires_grad_(k == wanted) for k, t in enumerate(everything)]
        sum(r.sum() for r in layer_of(args)(*some)).backward()
        for k, tensor in enumerate(some):
            assert tensor.grad is None if k != wanted else torch.equal(tensor.grad, full[k])


def test_nothing_is_saved_where_no_gradient_is_wanted():
    args = arguments(Case())
    inputs = leaves(args)
    with torch.no_grad():
        assert not layer_of(args)(*inputs)[0].requires_grad
    with torch.inference_mode():
        assert layer_of(args)(*inputs)[0].is_inference()
    assert not layer_of(args)(*(t.detach() for t in inputs))[0].requires_grad


def test_in_place_change_of_what_was_saved_is_noticed():
    args = arguments(Case())
    inputs = leaves(args)
    output = layer_of(args)(*inputs)[0]
    with torch.no_grad():
        inputs[4].mul_(2)  # w_hh
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_op_has_a_derivative_of_its_own(case):
    """Compiled graphs call layer_forward itself, not the Function of eager mode."""
    args = arguments(case)
    inputs = leaves(args)
    results = ops_of.layer_forward(*args)[: 3 if args[3] is not None else 2]
    grads = [g for g in cotangents(results) if g is not None]
    actual = torch.autograd.grad(results, inputs, grads)
    wanted = torch.autograd.grad(layer_of(args)(*inputs), inputs, grads)
    for a, e in zip(actual, wanted, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_bfloat16_matches_float64(case, isa):
    """Results and first derivatives, also where the graph goes on to second ones."""
    args = converted(arguments(case), torch.bfloat16)
    exact = converted(args, torch.float64)
    inputs, exact_inputs = leaves(args), leaves(exact)
    results, wanted = layer_of(args)(*inputs), layer_of(exact, reference.layer)(*exact_inputs)
    grads = [torch.randn_like(result) for result in results]
    exact_grads = torch.autograd.grad(wanted, exact_inputs, [g.double() for g in grads])
    for actual, value in zip(results, wanted, strict=True):
        assert actual.dtype == torch.bfloat16
        assert_matches(actual, value)
    for create_graph in (True, False):
        actual_grads = torch.autograd.grad(results, inputs, grads, create_graph=create_graph)
        for actual, value in zip(actual_grads, exact_grads, strict=True):
            assert actual.dtype == torch.bfloat16
            assert_matches(actual, value)


@pytest.mark.parametrize("H", [64, 37])
def test_bfloat16_rounds_to_the_nearest(H, isa):
    """A layer whose only arithmetic is x + b against torch's sum; a NaN stays one."""
    module = fastrnn.RNN(H, H, nonlinearity="relu", dtype=torch.bfloat16)
    input = torch.randn(3, 50, H).bfloat16()
    input[0, 0, 1] = torch.nan
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.weight_hh_l0.zero_()
        module.bias_hh_l0.zero_()
        module.weight_ih_l0.fill_diagonal_(1)
        output = module(input)[0]
    wanted = torch.relu(input + module.bias_ih_l0.detach())
    exact = input.float() + module.bias_ih_l0.detach().float()
    assert (exact != wanted.float())[:, 1:].any(), "nothing was rounded"
    assert torch.equal(output[:, 1:], wanted[:, 1:])
    assert output[:, 0].isnan().all()


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_bfloat16_without_kernels_is_float32_rounded_at_the_ends(cell):
    """Transforms, which no kernel takes, and the ops where none is built."""
    args = converted(arguments(Case(cell)), torch.bfloat16)
    wide = converted(args, torch.float32)
    tensors, wide_tensors = ([t.detach() for t in leaves(a)] for a in (args, wide))
    ones, wide_ones = ([torch.ones_like(t) for t in ts] for ts in (tensors, wide_tensors))
    actual = torch.func.jvp(layer_of(args), tuple(tensors), tuple(ones))
    wanted = torch.func.jvp(layer_of(wide), tuple(wide_tensors), tuple(wide_ones))
    for a, e in zip(actual[0] + actual[1], wanted[0] + wanted[1], strict=True):
        assert torch.equal(a, e.bfloat16())
    args, wide = converted(args, torch.bfloat16), converted(wide, torch.float32)
    results, wanted = reference_ops.layer_forward(*args), reference_ops.layer_forward(*wide)
    for a, e in zip(results, wanted, strict=True):
        assert torch.equal(a, e.bfloat16())
    grads = cotangents(results)
    actual = backward(reference_ops.layer_backward, args, results, grads)
    grads = [None if g is None else g.float() for g in grads]
    wanted = backward(reference_ops.layer_backward, wide, wanted, grads)
    for a, e in zip([*actual[:3], *actual[3]], [*wanted[:3], *wanted[3]], strict=True):
        assert torch.equal(a, e.bfloat16())


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_float16_is_float32_rounded_at_the_ends(cell):
    dtype = torch.float16
    args = converted(arguments(Case(cell)), dtype)
    wide = converted(args, torch.float32)
    inputs, wide_inputs = leaves(args), leaves(wide)
    results, wanted = layer_of(args)(*inputs), layer_of(wide)(*wide_inputs)
    for actual, value in zip(results, wanted, strict=True):
        assert torch.equal(actual, value.to(dtype))
    grads = [torch.randn_like(result) for result in results]
    torch.autograd.backward(results, grads)
    torch.autograd.backward(wanted, [grad.float() for grad in grads])
    for actual, value in zip(inputs, wide_inputs, strict=True):
        assert torch.equal(actual.grad, value.grad.to(dtype))


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_other_dtypes_take_the_reference(cell):
    args = converted(arguments(Case(cell)), torch.complex64)
    wanted = reference.layer(*converted(args, torch.complex128))
    inputs = leaves(args)
    results = layer_of(args)(*inputs)
    for actual, value in zip(results, wanted, strict=False):
        assert_matches(actual, value)
    sum(r.abs().sum() for r in results).backward()
    assert all(t.grad.isfinite().all() for t in inputs)


def test_meta():
    for case in SMALL:
        args = arguments(case)
        real = reference.layer(*args)
        input, batch_sizes, h0, c0, weights, cell, names = args
        c0 = None if c0 is None else c0.to("meta")
        weights = [w.to("meta").requires_grad_() for w in weights]
        meta = (input.to("meta"), batch_sizes, h0.to("meta"), c0, weights, cell, names)
        results = layer(*meta)
        for r, e in zip(results, real, strict=True):
            assert (r.shape, r.dtype, r.device.type) == (e.shape, e.dtype, "meta")
        results[0].sum().backward()
        assert all(w.grad.shape == w.shape for w in weights)


def test_mixed_dtypes_and_devices_raise():
    input, batch_sizes, h0, c0, weights, cell, names = arguments(Case())
    for change in (torch.Tensor.float, lambda t: t.to("meta")):
        mixed = [
            (change(input), batch_sizes, h0, c0, weights, cell, names),
            (input, batch_sizes, change(h0), c0, weights, cell, names),
            (input, batch_sizes, h0, change(c0), weights, cell, names),
            (input, batch_sizes, h0, c0, [*weights[:-1], change(weights[-1])], cell, names),
        ]
        for args in mixed:
            with pytest.raises(RuntimeError, match=r"must have the same dtype|on the same device"):
                layer(*args)


def test_backend():
    args = arguments(Case())
    assert set(dispatch.backends()) == {"cpu", "cuda", "triton", "cudnn", "reference"}
    assert dispatch.backends()["reference"] == "usable"
    with dispatch.backend("reference"):
        assert "LayerBackward" not in repr(layer_of(args)(*leaves(args))[0].grad_fn)
        with dispatch.backend("auto"):
            layer(*args)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"), dispatch.backend("gpu"):
        pass
    if KERNELS is None:
        assert "fastrnn._C" in dispatch.backends()["cpu"]
        with pytest.raises(RuntimeError, match="fastrnn._C"), dispatch.backend("cpu"):
            pass
        return
    assert dispatch.backends()["cpu"] == "usable"
    with dispatch.backend("cpu"):
        assert "LayerBackward" in repr(layer_of(args)(*leaves(args))[0].grad_fn)
        with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run: dtype is torch.compl"):
            layer(*converted(args, torch.complex64))
        with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: tensors are on meta"):
            input, _, h0, c0, weights, cell, names = (
                a.to("meta") if isinstance(a, Tensor) else a for a in args
            )
            layer(input, None, h0, c0, [w.to("meta") for w in weights], cell, names)
        with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: forward-mode AD"):
            torch.func.jvp(lambda x: layer(x, *args[1:])[0], args[:1], args[:1])
    layer(*converted(args, torch.complex64))


def test_backend_is_restored_after_an_error():
    with pytest.raises(KeyError), dispatch.backend("reference"):
        raise KeyError
    assert dispatch.chosen() == "auto"
