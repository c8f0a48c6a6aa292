"""Parameters, and the everyday tools that handle them, against torch.nn."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import assert_matches
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_leaves
from torch_pairs import CELLS, assert_same_results, everything, example, layers, pair

import fastrnn


@everything
def test_state_dict_goes_both_ways(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(0.5)
    ours.load_state_dict(theirs.state_dict())
    assert_same_results(ours(x), theirs(x))
    with torch.no_grad():
        for p in ours.parameters():
            p.neg_()
    theirs.load_state_dict(ours.state_dict())
    assert_same_results(ours(x), theirs(x))
    replaced = {k: 2 * v for k, v in ours.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(replaced, assign=True)
    assert_same_results(ours(x), theirs(x))


@pytest.fixture
def swapping():
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(swaps)


@pytest.mark.parametrize("grad", [True, False])
@everything
def test_parameters_are_swapped_after_a_call(swapping, name, grad):
    """PyTorch refuses that where a weak reference to one is left."""
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    with torch.set_grad_enabled(grad):
        ours(x), theirs(x)
    assert_same_results(ours.double()(x.double()), theirs.double()(x.double()))
    if name in CELLS:  # to the parameters of a layer torch.nn keeps references
        for parameter in ours.parameters():
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.zeros_like(parameter)))
        assert all(not t.any() for t in tree_leaves(ours(x.double())))


@everything
def test_copies(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    wanted = ours(x)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(saved, weights_only=False),
    ):
        for p in ours.parameters():
            assert all(p is not q for q in copied.parameters())
        assert_same_results(copied(x), wanted)
        with torch.no_grad():
            for p in copied.parameters():
                p.zero_()
        assert all(not t.any() for t in tree_leaves(copied(x)))
    assert_same_results(ours(x), wanted)
    assert_same_results(ours.double()(x.double()), theirs.double()(x.double()))


def test_pickles_from_before_proj_size():
    module = fastrnn.GRU(4, 3)
    old = module.__getstate__()
    del old["proj_size"]
    restored = fastrnn.GRU.__new__(fastrnn.GRU)
    restored.__setstate__(old)
    assert restored.proj_size == 0
    x = torch.randn(5, 2, 4)
    assert_same_results(restored(x), module(x))


@everything
def test_meta_device(name):
    with torch.device("meta"):
        ours = getattr(fastrnn, name)(4, 3)
    wanted = getattr(torch.nn, name)(4, 3, device="meta")(example(name).to("meta"))
    results = ours(example(name).to("meta"))
    for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
        assert a.is_meta and a.shape == e.shape
    ours.to_empty(device="cpu")
    _, theirs = pair(name, 4, 3)
    ours.load_state_dict(theirs.state_dict())
    x = example(name)
    assert_same_results(ours(x), theirs(x))


@everything
def test_functional_call(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    before = ours(x)
    changed = {k: (2 * v).detach().requires_grad_() for k, v in ours.named_parameters()}
    runs = []
    for module in (ours, theirs):
        results = torch.func.functional_call(module, changed, (x,))
        loss = tree_leaves(results)[0].sum()
        runs.append((results, torch.autograd.grad(loss, list(changed.values()))))
    assert_same_results(*runs)
    assert_same_results(ours(x), before)


@everything
@pytest.mark.parametrize("tool", ["weight_norm", "orthogonal", "prune"])
def test_parametrizations(name, tool):
    suffix = "" if name in CELLS else "_l0"
    runs = []
    x = example(name)
    for module in pair(name, 4, 3):
        torch.manual_seed(1)  # orthogonal draws a basis
        for weight in (f"weight_ih{suffix}", f"weight_hh{suffix}"):
            if tool == "weight_norm":
                parametrizations.weight_norm(module, weight)
            elif tool == "orthogonal":
                parametrizations.orthogonal(module, weight)
            else:
                prune.l1_unstructured(module, weight, amount=0.5)
        runs.append([])
        for _ in range(2):  # the weights of the second call are not those of the first
            results = module(x)
            module.zero_grad()
            tree_leaves(results)[0].square().sum().backward()
            assert all(p.grad is not None for p in module.parameters())
            runs[-1] += [*tree_leaves(results), *(p.grad for p in module.parameters())]
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.1)
        if tool == "weight_norm":
            parametrize.remove_parametrizations(module, f"weight_ih{suffix}")
            runs[-1] += tree_leaves(module(x))
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_deleted_weights(name):
    """As weight-drop recipes do: delete the parameter, then set a tensor at every call."""
    runs = []
    x = example(name)
    for module in pair(name, 4, 3):
        raw = module.weight_hh_l0
        del module.weight_hh_l0
        results = [module(x)]
        module.weight_hh_l0 = raw * 0.5
        results.append(module(x))
        tree_leaves(results[-1])[0].sum().backward()
        runs.append([*tree_leaves(results), raw.grad])
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_replaced_weights(name):
    ours, theirs = pair(name, 4, 3, 2)
    x = example(name)
    for module in (ours, theirs):
        module.weight_ih_l1 = torch.nn.Parameter(torch.ones_like(module.weight_ih_l1))
        module._parameters["bias_hh_l0"] = torch.nn.Parameter(torch.ones_like(module.bias_hh_l0))
    assert_same_results(ours(x), theirs(x))
    replica = ours._replicate_for_data_parallel()
    assert replica._flat_weights is not ours._flat_weights


@everything
def test_frozen_parameters(name):
    """Whatever requires grad gets one, and nothing else."""
    ours, theirs = pair(name, 4, 3)
    for k in range(len(list(ours.parameters()))):
        x = example(name)
        runs = []
        for module in (ours, theirs):
            for j, p in enumerate(module.parameters()):
                p.requires_grad_(j == k)
                p.grad = None
            sum(t.sum() for t in tree_leaves(module(x))).backward()
            runs.append([p.grad for p in module.parameters()])
        assert [g is None for g in runs[0]] == [g is None for g in runs[1]]
        assert_matches(runs[0][k], runs[1][k])
    for module in (ours, theirs):
        module.requires_grad_(False)
    x.requires_grad_()
    gradients = [torch.autograd.grad(tree_leaves(m(x))[0].sum(), x)[0] for m in (ours, theirs)]
    assert_matches(*gradients)


@layers
def test_backward_in_eval_mode(name):
    ours, theirs = pair(name, 4, 3, 2, dropout=0.5)
    x = example(name)
    gradients = [
        torch.autograd.grad(tree_leaves(m.eval()(x))[0].sum(), list(m.parameters()))
        for m in (ours, theirs)
    ]
    for a, e in zip(*gradients, strict=True):
        assert_matches(a, e)
