"""Layers in `grad`, `vjp`, `jacrev` and `vmap` on the CPU kernels, against calls of each sample.

test_transforms.py compares transforms with torch. Here the kernels have to be taken, too.
"""

from __future__ import annotations

import pytest
import torch
import transformed_calls
from conftest import assert_matches
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_leaves
from transformed_calls import (
    assert_same,
    inputs,
    kinds,
    loss_of,
    made,
    parameters,
    plain,
)

import fastrnn

kernels = transformed_calls.kernels  # a fixture


@kinds
def test_gradients(kind, kernels):
    module = made(kind)
    x = inputs(module, N=2)
    wanted = plain(module, x)
    kernels.run_backward = 0
    assert_same(grad(loss_of(module), (0, 1))(parameters(module), x), wanted)
    assert kernels.run_backward == module.num_layers and kernels.reference == 0
    _, pull = vjp(lambda x: module(x)[0], x)
    y = module(own := x.clone().requires_grad_())[0]
    seed = torch.randn_like(y)
    assert_same(pull(seed)[0], torch.autograd.grad(y, own, seed)[0])
    assert kernels.reference == 0


@kinds
@pytest.mark.parametrize("N", [1, 2])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradients_of_each_sample(kind, N, dim, kernels):
    """Of one row in one call, and of more rows in a call each."""
    module = made(kind)
    x = inputs(module, 3, N=N)
    of_each = vmap(grad(loss_of(module), (0, 1)), (None, dim), out_dims=1)
    found = of_each(parameters(module), x.movedim(0, dim))
    layers = module.num_layers
    assert kernels.run == layers and kernels.reference == 0
    assert kernels.run_backward_of_rows == (layers if N == 1 else 0)
    assert kernels.run_backward == (0 if N == 1 else 3 * layers)
    for k in range(3):
        assert_same([t.select(1, k) for t in tree_leaves(found)], plain(module, x[k]))


@kinds
def test_batches_without_and_within_gradients(kind, kernels):
    module = made(kind)
    x, p = inputs(module, 2, 3), parameters(module)
    twice = vmap(vmap(lambda x: module(x)))(x)
    assert kernels.run == module.num_layers
    for k, j in ((0, 1), (1, 2)):
        assert_same([t[k, j] for t in tree_leaves(twice)], module(x[k, j]))
    loss = loss_of(module)
    whole = grad(lambda p: vmap(loss, (None, 0))(p, x[0]).sum())(p)
    each = [plain(module, one)[0] for one in x[0]]
    assert_same(whole, {key: sum(g[key] for g in each) for key in p})
    nested = vmap(vmap(grad(loss), (None, 0)), (None, 0))(p, x)
    assert_same({key: g[1, 2] for key, g in nested.items()}, plain(module, x[1, 2])[0])
    assert kernels.reference == 0


@kinds
def test_jacobians(kind, kernels):
    module = made(kind)
    x = inputs(module)
    found = jacrev(lambda x: tree_leaves(module(x)))(x)
    assert kernels.reference == 0 and kernels.run_backward > 1
    wanted = torch.autograd.functional.jacobian(lambda x: tuple(tree_leaves(module(x))), x)
    assert_same(found, wanted)


@kinds
def test_ensembles(kind, kernels):
    modules = [made(kind) for _ in range(3)]
    stacked, _ = stack_module_state(modules)
    stacked = {key: p.detach() for key, p in stacked.items()}
    x = inputs(modules[0], N=2)
    found = vmap(grad(loss_of(modules[0]), (0, 1)), (0, None))(stacked, x)
    assert kernels.reference == 0
    for k, module in enumerate(modules):
        assert_same([t[k] for t in tree_leaves(found)], plain(module, x))


def test_many_small_ensembles_take_the_reference(kernels):
    """A call of the kernels for each member would take longer."""
    modules = [fastrnn.LSTM(2, 2) for _ in range(9)]
    stacked, _ = stack_module_state(modules)
    for steps, by_kernels in ((2, False), (3, True)):
        kernels.run = kernels.reference = 0
        x = torch.randn(steps, 1, 2)
        found = vmap(loss_of(modules[0]), (0, None))(stacked, x)
        assert (kernels.run > 0, kernels.reference > 0) == (by_kernels, not by_kernels)
        assert_matches(found[8], loss_of(modules[8])(parameters(modules[8]), x))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("last", [False, True], ids=["all outputs", "the last output"])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_steps_and_samples(cell, last, threads, kernels):
    """More steps than a chunk has, of which the last ones alone count; threads that share."""
    module = getattr(fastrnn, cell)(7, 33, dtype=torch.float64)
    x, p = torch.randn(9, 700, 1, 7, dtype=torch.float64), parameters(module)

    def loss(p, x):
        output = functional_call(module, p, (x,))[0]
        return output[-1 if last else 0 :].sin().sum()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = vmap(grad(loss, (0, 1)), (None, 0))(p, x)
    finally:
        torch.set_num_threads(before)
    assert kernels.run_backward_of_rows == 1 and kernels.reference == 0
    for k in (0, 4, 8):
        with fastrnn.backend("reference"):
            wanted = grad(loss, (0, 1))(p, x[k])
        assert_same([t[k] for t in tree_leaves(found)], wanted)
