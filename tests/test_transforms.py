"""torch.func, second derivatives and the tools of training, on modules, against torch in float64.

In float64 torch's own modules are made of operations whose derivatives torch knows. vmap refuses
them, so batches are compared one element at a time.
"""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from conftest import assert_matches
from torch import nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)
from torch.nn.utils import clip_grad_norm_, parametrizations, prune
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch_pairs import CELLS, assert_same_results, everything, example, layers, pair

import fastrnn


def doubles(name: str, *args, **kwargs) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Ours, torch's with the same weights, and an input of two steps, in float64."""
    ours, theirs = pair(name, 4, 3, *args, dtype=torch.float64, **kwargs)
    return ours, theirs, example(name, T=2, N=2, dtype=torch.float64)


def loss_of(module: nn.Module):
    """(parameters, x) -> a number that depends on every result."""

    def loss(parameters, x):
        results = functional_call(module, parameters, (x,))
        return sum(t.sin().sum() for t in tree_leaves(results))

    return loss


def parameters_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def assert_trees_match(actual, expected) -> None:
    for a, e in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert_matches(a, e)


@everything
def test_derivatives_equal_those_of_composite_operations(name):
    ours, theirs, x = doubles(name)
    p = parameters_of(ours)
    tangents = ({k: torch.randn_like(v) for k, v in p.items()}, torch.randn_like(x))
    runs = []
    for module in (ours, theirs):
        loss = loss_of(module)
        runs.append(
            [
                grad(loss, (0, 1))(p, x),
                jvp(loss, (p, x), tangents),
                jacrev(lambda x, m=module: tree_leaves(functional_call(m, p, (x,))))(x),
                jacfwd(lambda x, m=module: tree_leaves(m(x)))(x) if module is ours else None,
            ]
        )
    runs[1][3] = runs[1][2]  # of one function, forwards and backwards
    assert_trees_match(*runs)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
def test_hessian(name):
    """Against reverse mode twice, which torch's modules can."""
    ours, theirs, x = doubles(name)

    def scalar(module):
        return lambda x: tree_leaves(module(x))[0].sin().sum()

    wanted = torch.autograd.functional.hessian(scalar(theirs), x)
    assert_matches(hessian(scalar(ours))(x), wanted)


@everything
def test_vmap_over_inputs_ensembles_and_samples(name):
    """torch.nn raises in each of these, or falls back to a loop and warns."""
    members = [doubles(name)[0] for _ in range(3)]
    for k, module in enumerate(members):
        for p in module.parameters():
            p.data.mul_(k + 1)
    theirs = doubles(name)[1]
    x = torch.stack([example(name, T=2, N=2, dtype=torch.float64) for _ in range(3)])
    stacked, _ = stack_module_state(members)
    loss, wanted_loss, single = loss_of(members[0]), loss_of(theirs), parameters_of(members[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over_inputs = vmap(lambda x: tree_leaves(members[0](x)))(x)
        ensemble = vmap(loss, (0, None))(stacked, x[0])
        per_sample = vmap(grad(loss), (None, 0))(single, x)
        of_each = vmap(grad(loss))(stacked, x)
    for k, module in enumerate(members):
        assert_trees_match([t[k] for t in over_inputs], tree_leaves(theirs(x[k])))
        own = parameters_of(module)
        assert_matches(ensemble[k], wanted_loss(own, x[0]))
        for batched, p in ((per_sample, single), (of_each, own)):
            wanted = grad(wanted_loss)(p, x[k])
            assert_trees_match({key: g[k] for key, g in batched.items()}, wanted)


@layers
def test_forward_mode_in_float32(name):
    """torch.nn has no forward derivative of the float32 LSTM."""
    module, theirs = pair(name, 4, 3)
    x, tangent = example(name), torch.randn(5, 3, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        actual = torch.autograd.forward_ad.unpack_dual(module(dual)[0]).tangent
    theirs.double()
    _, wanted = jvp(lambda x: theirs(x)[0], (x.double(),), (tangent.double(),))
    assert_matches(actual, wanted)


@everything
def test_what_cannot_be_transformed_raises(name):
    """The kernels know no forward mode and are derived twice: neither is silent where forced."""
    module, _, x = doubles(name)

    def number(x):
        return tree_leaves(module(x))[0].sin().sum()

    for call in (
        lambda: jvp(lambda x: tree_leaves(module(x))[0], (x,), (x,)),
        lambda: grad(lambda x: grad(lambda x: grad(number)(x).sum())(x).sum())(x),
    ):
        with pytest.raises(RuntimeError, match="'cpu' cannot run"), fastrnn.backend("cpu"):
            call()
    if name not in CELLS:
        packed = nn.utils.rnn.pack_padded_sequence(x, [2, 1])
        sizes = torch.stack([packed.batch_sizes] * 2)
        with pytest.raises(RuntimeError, match="give padded input and lengths="):
            vmap(lambda s: module(nn.utils.rnn.PackedSequence(packed.data, s))[0].data)(sizes)


@everything
def test_second_derivatives(name):
    module, _, x = doubles(name)
    names = list(parameters_of(module))

    def call(x, *values):
        return tuple(
            tree_leaves(functional_call(module, dict(zip(names, values, strict=True)), (x,)))
        )

    inputs = (x.requires_grad_(), *module.parameters())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@layers
def test_a_gradient_penalty_trains(name):
    """A critic with the penalty of WGAN-GP: the steps of torch.nn, and a gradient of length 1."""
    runs = []
    for rnn in pair(name, 2, 8, dtype=torch.float64):
        torch.manual_seed(0)
        critic = nn.Linear(8, 1, dtype=torch.float64)
        optimizer = torch.optim.Adam([*rnn.parameters(), *critic.parameters()], 0.02)
        penalties = []
        for _ in range(30):
            real = torch.randn(4, 8, 2, dtype=torch.float64).cumsum(0)
            fake = torch.randn(4, 8, 2, dtype=torch.float64)
            mixed = torch.lerp(real, fake, torch.rand(1, 8, 1, dtype=torch.float64))
            scores = [critic(rnn(x)[0][-1]).mean() for x in (fake, real)]
            x = mixed.requires_grad_()
            (slope,) = torch.autograd.grad(critic(rnn(x)[0][-1]).sum(), x, create_graph=True)
            penalty = (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            (scores[0] - scores[1] + 10 * penalty).backward()
            optimizer.step()
            penalties.append(penalty.item())
        runs.append(penalties)
    assert runs[0] == pytest.approx(runs[1], rel=1e-8)
    assert sum(runs[0][-5:]) < 0.5 * sum(runs[0][:5])


@layers
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(name, reentrant):
    """Dropout included: the second forward draws the masks of the first."""
    module, _, _ = doubles(name, 2, dropout=0.5)
    x = example(name, dtype=torch.float64).requires_grad_()
    inputs, runs = (x, *module.parameters()), []
    for call in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        tree_leaves(call(x))[0].square().sum().backward()
        runs.append([t.grad.clone() for t in inputs])
        for t in inputs:
            t.grad = None
    assert_trees_match(*runs)


@everything
def test_modes_of_autograd(name):
    """Deterministic algorithms (the whole suite runs with them), inference and anomaly mode."""
    assert torch.are_deterministic_algorithms_enabled()
    module, theirs = pair(name, 4, 3)
    x, wanted = example(name), tree_leaves(module(example(name)))[0].shape
    with torch.inference_mode():
        results = module(x)
        assert all(t.is_inference() for t in tree_leaves(results))
        assert tree_leaves(results)[0].shape == wanted
        inside = torch.randn_like(x)
    assert_same_results(results, theirs(x))
    assert_same_results(module.requires_grad_(False)(inside), theirs.requires_grad_(False)(inside))
    module.requires_grad_(True)
    with torch.autograd.detect_anomaly(check_nan=True), warnings.catch_warnings():
        tree_leaves(module(x))[0].sum().backward()
        with pytest.raises(RuntimeError, match="nan"):
            (tree_leaves(module(x))[0] * float("nan")).sum().backward()


@everything
def test_hooks(name):
    module, _ = pair(name, 4, 3)
    x, seen = example(name).requires_grad_(), []
    module.register_forward_pre_hook(lambda m, args: (2 * args[0],))
    module.register_forward_hook(lambda m, args, out: seen.append("forward"))
    module.register_full_backward_hook(lambda m, inner, outer: seen.append("backward"))
    weight = next(module.parameters())
    weight.register_hook(lambda g: seen.append("gradient") or 3 * g)
    weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    tree_leaves(module(x))[0].sum().backward()
    assert seen[0] == "forward" and set(seen[1:]) == {"backward", "gradient", "accumulated"}
    _, theirs = pair(name, 4, 3)
    tree_leaves(theirs(2 * x))[0].sum().backward()
    assert_matches(weight.grad, 3 * next(theirs.parameters()).grad)


@everything
def test_utilities_for_weights(name):
    """One training step with each, and with all of them, equals that of torch.nn."""
    suffix = "" if name in CELLS else "_l0"
    x, runs = example(name), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older weight_norm is deprecated
        for module in pair(name, 4, 3):
            torch.manual_seed(1)
            nn.utils.weight_norm(module, f"weight_ih{suffix}")
            parametrizations.spectral_norm(module, f"weight_hh{suffix}")
            prune.random_unstructured(module, f"bias_hh{suffix}", amount=0.3)
            optimizer, steps = torch.optim.SGD(module.parameters(), 0.1), []
            for _ in range(3):
                optimizer.zero_grad()
                tree_leaves(module(x))[0].square().sum().backward()
                steps.append(clip_grad_norm_(module.parameters(), 0.1))
                optimizer.step()
            runs.append([*steps, *parameters_of(module).values()])
    assert_trees_match(*runs)


@everything
def test_threads_share_a_module(name):
    """Many threads, each with inputs of its own sizes, get what one thread gets."""
    module, _ = pair(name, 4, 3)
    inputs = [example(name, T=k % 5 + 1, N=k % 7 + 1) for k in range(24)]
    with torch.no_grad():
        wanted = [tree_leaves(module(x)) for x in inputs]
    together, wrong = threading.Barrier(8), []

    def work(k: int) -> None:
        together.wait()
        with torch.no_grad():
            for _ in range(5):
                for x, results in zip(
                    inputs[k:] + inputs[:k], wanted[k:] + wanted[:k], strict=True
                ):
                    if not all(map(torch.equal, tree_leaves(module(x)), results)):
                        wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
