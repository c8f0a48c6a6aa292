"""What a call in a transform of `torch.func` may ask for besides, on the CPU kernels."""

from __future__ import annotations

import pytest
import torch
import transformed_calls
from torch.func import functional_call, grad, jacfwd, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformed_calls import (
    H,
    I,
    T,
    assert_same,
    inputs,
    kinds,
    loss_of,
    made,
    parameters,
    plain,
)

import fastrnn
from fastrnn.dispatch import cpu

kernels = transformed_calls.kernels  # a fixture


FEATURES = {
    "detach_every": lambda: {"detach_every": 2},
    "grad_clip": lambda: {"grad_clip": 0.1},
    "reset": lambda: {"reset": torch.rand(3, T, 1) > 0.5},
    "lengths": lambda: {"lengths": torch.tensor([[2], [T], [0]])},
}


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("feature", FEATURES)
def test_features(cell, feature, kernels):
    """Masks of each sample, and one for all."""
    module = getattr(fastrnn, cell)(I, H, dtype=torch.float64)
    x, given = inputs(module, 3), FEATURES[feature]()
    loss, p = loss_of(module), parameters(module)
    masks = isinstance(next(iter(given.values())), torch.Tensor)

    def of_sample(p, x, given):
        return grad(loss, (0, 1))(p, x, **given)

    found = vmap(of_sample, (None, 0, 0 if masks else None))(p, x, given)
    shared = {k: v[0] for k, v in given.items()} if masks else given
    alike = vmap(of_sample, (None, 0, None))(p, x, shared)
    assert kernels.reference == 0
    for k in range(3):
        own = {key: v[k] for key, v in given.items()} if masks else given
        assert_same([t[k] for t in tree_leaves(found)], plain(module, x[k], **own))
        assert_same([t[k] for t in tree_leaves(alike)], plain(module, x[k], **shared))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells(name, kernels):
    cell = getattr(fastrnn, name)(I, H, dtype=torch.float64)
    x = torch.randn(3, 2, I, dtype=torch.float64)
    found = vmap(grad(loss_of(cell), (0, 1)), (None, 0))(parameters(cell), x)
    assert kernels.run and kernels.run_backward and kernels.reference == 0
    for k in range(3):
        assert_same([t[k] for t in tree_leaves(found)], plain(cell, x[k]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype, kernels):
    """In half precision each row's weight gradients take a call."""
    module = made("LSTM", dtype)
    x = inputs(module, 3)
    found = vmap(grad(loss_of(module)), (None, 0))(parameters(module), x)
    assert kernels.reference == 0
    assert kernels.run_backward == (3 if dtype == torch.bfloat16 else 0)
    for k in range(3):
        assert_same({key: g[k] for key, g in found.items()}, plain(module, x[k])[0])


@kinds
@pytest.mark.parametrize("each", [False, True])
def test_gradients_of_gradients_outside(kind, each, kernels):
    """As meta-learning has them: autograd goes through `grad`, and through that of each sample."""
    module = made(kind)
    x = inputs(module, 2)
    runs = []
    for backend in ("auto", "reference"):
        own = {key: p.clone().requires_grad_() for key, p in parameters(module).items()}
        data = x.clone().requires_grad_()
        with fastrnn.backend(backend):
            loss = loss_of(module)
            inner = vmap(grad(loss), (None, 0)) if each else grad(loss)
            found = inner(own, data if each else data[0])
            before = kernels.reference
            value = sum(g.sin().sum() for g in found.values())
            runs.append((found, torch.autograd.grad(value, [*own.values(), data])))
        if backend == "auto":
            assert before == 0
    assert_same(*runs)


def test_three_gradients_take_the_reference(kernels):
    module = made("GRU")
    x = inputs(module)
    loss = loss_of(module)

    def twice(x):
        return grad(lambda x: grad(loss, 1)(parameters(module), x).sum())(x).sum()

    twice(x)
    assert kernels.run and not kernels.reference
    ran = kernels.run
    grad(twice)(x)
    assert kernels.reference and kernels.run == ran


def test_an_output_changed_in_place(kernels):
    module = made("LSTM")
    x, p = inputs(module, 3), parameters(module)

    def loss(p, x):
        return functional_call(module, p, (x,))[0].relu_().sin().sum()

    found = vmap(grad(loss), (None, 0))(p, x)
    assert kernels.reference == 0
    for k in range(3):
        own = {key: t.clone().requires_grad_() for key, t in p.items()}
        wanted = torch.autograd.grad(loss(own, x[k]), list(own.values()))
        assert_same([g[k] for g in found.values()], wanted)


def test_results_that_nobody_asked_of():
    """No gradient comes in, or none is wanted of what there is."""
    module = made("LSTM")
    x, p = inputs(module, 3), parameters(module)
    none = grad(lambda x: (0 * module(x)[0].detach()).sum() + 0 * x.sum())(x[0])
    assert_same(none, torch.zeros_like(x[0]))
    of_state = vmap(grad(lambda x: module(x)[1][1].sum()))(x)
    for k in range(3):
        own = x[k].clone().requires_grad_()
        assert_same(of_state[k], torch.autograd.grad(module(own)[1][1].sum(), own)[0])
    bias = vmap(
        grad(lambda b, x: functional_call(module, p | {"bias_hh_l0": b}, (x,))[0].sum()), (None, 0)
    )
    found = bias(p["bias_hh_l0"], x)
    module.zero_grad()
    module(x[1])[0].sum().backward()
    assert_same(found[1], module.bias_hh_l0.grad)


def test_flops_are_counted():
    module = made("LSTM")
    x, p = inputs(module, N=2), parameters(module)
    counts = []
    for run in (lambda: grad(loss_of(module))(p, x), lambda: module(x)[0].sum().backward()):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_errors_are_those_of_a_call():
    module = made("LSTM")
    x = inputs(module, 3)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        vmap(lambda x: module(x[..., 1:])[0])(x)
    wrong = parameters(module) | {"weight_hh_l0": torch.zeros(4 * H, H + 1, dtype=x.dtype)}
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have shape"):
        vmap(grad(loss_of(module)), (None, 0))(wrong, x)
    assert_same(vmap(lambda x: module(x)[0])(x)[1], module(x[1])[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
def test_transforms_of_what_vjp_returned(name, kernels):
    """Forward mode, and a gradient, through the gradient."""
    module = getattr(fastrnn, name)(I, H, dtype=torch.float64)
    x = torch.randn(2, I, dtype=torch.float64) if "Cell" in name else inputs(module)
    c = torch.randn(2, H, dtype=torch.float64) if "Cell" in name else torch.randn(T, 1, H).double()

    def results() -> list:
        _, pull = vjp(lambda x: tree_leaves(module(x))[0], x)

        def of_input(c):
            return pull(c)[0]

        forward = jvp(of_input, (c,), (2 * c,)), jacfwd(of_input)(c)
        return [*forward, grad(lambda c: of_input(c).sin().sum())(c)]

    found = results()
    assert kernels.run > 0
    with fastrnn.backend("reference"):
        assert_same(found, results())


@pytest.mark.parametrize("kind", ["LSTM", "GRU both ways"])
def test_nothing_is_saved_where_nothing_is_derived(kind, monkeypatch):
    module, saved, run = made(kind), [], cpu.run
    x, p = inputs(module, 3), parameters(module)
    monkeypatch.setattr(cpu, "run", lambda call, save: saved.append(save) or run(call, save))
    with torch.no_grad():
        found = vmap(lambda x: module(x))(x)
        stacked = {key: torch.stack([t, 2 * t]) for key, t in p.items()}
        many = vmap(lambda p: functional_call(module, p, (x[0],))[0])(stacked)
    assert saved and not any(saved)
    with torch.no_grad():  # from outside it does not reach into the transform
        grads = grad(lambda p: vmap(loss_of(module), (None, 0))(p, x).sum())(p)
    assert saved[-1]
    own = {key: t.clone().requires_grad_() for key, t in p.items()}  # autograd below `vmap`
    vmap(lambda x: functional_call(module, own, (x,)))(x)[0].sum().backward()
    assert saved[-1] and all(t.grad is not None for t in own.values())
    monkeypatch.undo()
    assert_same([t[1] for t in tree_leaves(found)], module(x[1]))
    assert_same(many[0], module(x[0])[0])
    each = [plain(module, one)[0] for one in x]
    assert_same(grads, {key: sum(g[key] for g in each) for key in p})


def test_no_samples():
    lstm, gru = fastrnn.LSTM(I, H), fastrnn.GRUCell(I, H)
    assert vmap(lambda x: lstm(x)[0])(torch.randn(0, T, 2, I)).shape == (0, T, 2, H)
    assert vmap(gru)(torch.randn(0, 2, I)).shape == (0, 2, H)
    stacked = {key: t.new_zeros(0, *t.shape) for key, t in parameters(lstm).items()}
    x = torch.randn(T, 2, I)
    found = vmap(lambda p: functional_call(lstm, p, (x,))[0])(stacked)
    assert found.shape == (0, T, 2, H)
    x, lengths, p = torch.randn(0, T, 1, I), torch.tensor([2]), parameters(lstm)

    def of_sample(x):
        output, pull = vjp(lambda p: functional_call(lstm, p, (x,), {"lengths": lengths})[0], p)
        return pull(torch.ones_like(output))[0]

    found = vmap(of_sample)(x)
    assert {key: g.shape for key, g in found.items()} == {k: (0, *t.shape) for k, t in p.items()}


@pytest.mark.parametrize("kind", ["LSTM", "GRU both ways"])
def test_compiled_transforms_of_given_parameters(kind):
    """What the graph leaves in the module does not belong to the transform."""
    module = made(kind, torch.float32)
    x, p = inputs(module, 3), parameters(module)
    before = module(x[0])[0]
    torch._dynamo.reset()
    for function, given in (
        (grad(loss_of(module)), x[0]),
        (vmap(grad(loss_of(module)), (None, 0)), x),
    ):
        compiled = torch.compile(function, backend="aot_eager")(p, given)
        for key, g in function(p, given).items():
            torch.testing.assert_close(compiled[key], g, rtol=1e-4, atol=1e-5)
    assert torch.equal(module(x[0])[0], before)
