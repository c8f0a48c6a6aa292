"""Gradients of many cotangents at once, after an eager forward: those of one after the other."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import assert_matches
from feature_calls import CELLS, each_backend, layer_arguments, using
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import everything, example, layers, pair

import fastrnn
from fastrnn import ops
from fastrnn.call import Call


def assert_batched_gradients(results: list[Tensor], inputs: list[Tensor]) -> None:
    """By both kinds of vmap that torch has, nested, and once more with a graph of their own."""
    results = [each for each in results if each.requires_grad]
    batch = [torch.randn(6, *each.shape, dtype=each.dtype) for each in results]

    def one(*cotangents) -> tuple[Tensor, ...]:
        return torch.autograd.grad(results, inputs, cotangents, retain_graph=True)

    def with_graph(*cotangents) -> tuple[Tensor, ...]:
        return torch.autograd.grad(results, inputs, cotangents, create_graph=True)

    def batched(**options) -> tuple[Tensor, ...]:
        return torch.autograd.grad(results, inputs, batch, is_grads_batched=True, **options)

    wanted = [torch.stack(each) for each in zip(*map(one, *batch), strict=True)]
    pairs = [each.unflatten(0, (2, 3)) for each in batch]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for actual in (
            batched(retain_graph=True),
            vmap(one)(*batch),
            vmap(with_graph)(*batch),
            [each.flatten(0, 1) for each in vmap(vmap(one))(*pairs)],
            batched(create_graph=True),
        ):
            for a, e in zip(actual, wanted, strict=True):
                assert_matches(a, e)


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_modules(name, dtype):
    module, _ = pair(name, 4, 3, dtype=dtype)
    x = example(name, dtype=dtype).requires_grad_()
    assert_batched_gradients(tree_leaves(module(x)), [x, *module.parameters()])


@layers
def test_compiled_modules(name):
    torch._dynamo.reset()
    module, _ = pair(name, 4, 3)
    compiled = torch.compile(module, backend="aot_eager")
    x, inputs = example(name).requires_grad_(), list(module.parameters())
    batch = torch.randn(6, *module(x)[0].shape)
    runs = [
        torch.autograd.grad(m(x)[0], inputs, batch, is_grads_batched=True)
        for m in (compiled, module)
    ]
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
@pytest.mark.parametrize("changed", [False, True])
def test_packed_stacks(name, changed):
    """Also where the output was changed in place, so that backward computes it again."""
    module, _ = pair(name, 4, 3, 2, bidirectional=True)
    packed = pack_padded_sequence(example(name), [5, 3, 2])
    x = packed.data.requires_grad_()
    (y, *_), state = module(packed)
    if changed:
        y.mul_(0.5)
    assert_batched_gradients([y, *tree_leaves(state)], [x, *module.parameters()])


@each_backend
@pytest.mark.parametrize("name", CELLS)
def test_features(name, backend):
    """All of them at once, by the Function of eager mode and by the op."""
    arguments = layer_arguments(name)
    with using(backend):
        for results in (
            ops.layer(Call(*arguments), traced=True)[:5],
            torch.ops.fastrnn.layer_forward(*arguments)[:5],
        ):
            given = [result for result in results if result is not None]
            assert_batched_gradients(given, list(Call(*arguments).tensors()))


@everything
def test_jacobians_and_hessians(name):
    ours, theirs = pair(name, 4, 3, dtype=torch.float64)
    x = example(name, 3, 2, dtype=torch.float64)
    first, wanted_first = (lambda x, m=m: tree_leaves(m(x))[0].sin() for m in (ours, theirs))
    wanted = jacobian(wanted_first, x, vectorize=True)
    for options in ({}, {"create_graph": True}, {"strategy": "forward-mode"}):
        assert_matches(jacobian(first, x, vectorize=True, **options), wanted)
    runs = [hessian(lambda x, f=f: f(x).sum(), x, vectorize=True) for f in (first, wanted_first)]
    assert_matches(*runs)


@everything
def test_checks_of_torch(name):
    module, _ = pair(name, 4, 3, dtype=torch.float64)
    x = example(name, 2, 2, dtype=torch.float64).requires_grad_()

    def call(x, *_):
        return tree_leaves(module(x))

    inputs = (x, *module.parameters())
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True, atol=1e-4)
    assert torch.autograd.gradgradcheck(call, inputs, check_batched_grad=True, atol=1e-4)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_state_that_got_out_of_a_transform(name):
    """It is a plain tensor after the transform, and trains as one."""
    ours, theirs = getattr(fastrnn, name)(4, 4), getattr(torch.nn, name)(4, 4)
    theirs.load_state_dict(ours.state_dict())
    x, results = torch.randn(3, 2, 4), []
    for module in (ours, theirs):
        kept = []

        def loss(weights, module=module, kept=kept):
            y, state = torch.func.functional_call(module, weights, (x,))
            kept.append(state)
            return y.sum()

        torch.func.grad(loss)({k: p.detach() for k, p in module.named_parameters()})
        y, _ = module(x, kept[0])
        results.append([y, *torch.autograd.grad(y.sin().sum(), list(module.parameters()))])
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e)
