"""A backward pass makes the gradients that it is asked for, and no others."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch.nn.utils import parametrize

import fastrnn
from fastrnn import autograd, backward
from fastrnn.dispatch import cpu, reference
from fastrnn.results import Needs

T, N, I, H = 4, 3, 5, 6
LAYERS = {
    "LSTM": (fastrnn.LSTM, {}),
    "LSTM, projected, 2 directions": (fastrnn.LSTM, {"proj_size": 4, "bidirectional": True}),
    "GRU": (fastrnn.GRU, {}),
    "RNN without biases": (fastrnn.RNN, {"bias": False}),
}
each_layer = pytest.mark.parametrize("layer", LAYERS)


@pytest.fixture(autouse=True)
def asks_always(monkeypatch):
    """As if every call were large."""
    monkeypatch.setattr(autograd, "_LARGE", 0)


@pytest.fixture
def asked(monkeypatch) -> list[Needs]:
    """What each backward call of a layer was asked for, the last layer first."""
    if not KERNELS:
        pytest.skip("the backward pass is PyTorch's own")
    found, derivable = [], backward.gradients

    def spied(run):
        def spy(call, cotangents, saved, needs):
            found.append(needs)
            return run(call, cotangents, saved, needs)

        return spy

    def spy_derivable(backend, call, came, saved, needs, is_stale):
        found.append(needs)
        return derivable(backend, call, came, saved, needs, is_stale)

    for name in ("run_backward", "run_backward_of_step"):
        monkeypatch.setattr(cpu, name, spied(getattr(cpu, name)))
    monkeypatch.setattr(backward, "gradients", spy_derivable)
    return found


def build(layer: str, **options):
    kind, own = LAYERS[layer]
    module = kind(I, H, dtype=torch.float64, **own, **options)
    return module, torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)


def loss_of(module, x) -> torch.Tensor:
    return module(x)[0].square().sum()


@each_layer
@pytest.mark.parametrize("create_graph", (False, True))
def test_of_the_input_alone(layer, create_graph, asked):
    module, x = build(layer, num_layers=2)
    loss = loss_of(module, x)
    (found,) = torch.autograd.grad(loss, x, retain_graph=True, create_graph=create_graph)
    assert asked == [Needs(True, False, False)] * 2
    assert_matches(found, torch.autograd.grad(loss, [x, *module.parameters()])[0])


@each_layer
def test_of_the_weights_alone(layer, asked):
    """The lower layer of two makes no gradient of the input, also where that is made of others."""
    module, x = build(layer, num_layers=2)
    for input in (x, x * 2):
        del asked[:]
        loss, weights = loss_of(module, input), list(module.parameters())
        found = torch.autograd.grad(loss, weights, retain_graph=True)
        assert asked == [Needs(True, False, True), Needs(False, False, True)]
        for one, wanted in zip(found, torch.autograd.grad(loss, [x, *weights])[1:], strict=True):
            assert_matches(one, wanted)


@each_layer
def test_of_one_weight_in_the_upper_layer(layer, asked):
    module, x = build(layer, num_layers=2)
    torch.autograd.grad(loss_of(module, x), module.weight_hh_l1)
    assert asked == [Needs(False, False, True)]  # the lower layer has no backward at all


@each_layer
@pytest.mark.parametrize("made", (False, True), ids=("leaf", "made"))
def test_everything(layer, made, asked):
    """`backward()` accumulates into every leaf, also behind what the input is made of."""
    module, x = build(layer)
    loss_of(module, x * 2 if made else x).backward()
    assert asked == [Needs(True, False, True)]
    del asked[:]
    loss_of(module, x).backward(inputs=[module.weight_ih_l0])
    assert asked == [Needs(False, False, True)]


def test_weights_that_are_made_of_others(asked):
    module, x = build("GRU")

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    own = module.parametrizations.weight_hh_l0.original
    torch.autograd.grad(loss_of(module, x), x)
    torch.autograd.grad(loss_of(module, x), own)
    assert asked == [Needs(True, False, False), Needs(False, False, True)]


def test_within_another_backward(asked):
    """A checkpoint runs a backward pass inside the one that is asked."""
    module, x = build("GRU")
    y = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=True)
    y.sum().backward()
    assert asked == [Needs(True, False, True)]
    assert x.grad is not None and module.weight_hh_l0.grad is not None


def test_a_cell(asked):
    cell = fastrnn.LSTMCell(I, H)
    x = torch.randn(N, I, requires_grad=True)
    torch.autograd.grad(cell(x)[0].sum(), x)
    torch.autograd.grad(cell(x)[0].sum(), cell.bias_hh)
    assert [needs[::2] for needs in asked] == [(True, False), (False, True)]


@pytest.mark.parametrize("what", ["input", "weights"])
def test_second_derivatives_by_the_reference(what, monkeypatch):
    """Those of a cell that is a function: what nobody wants gets no graph, and no value changes."""
    module = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, I, H, dtype=torch.float64)
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    weights, found = list(module.parameters()), []
    real = reference.differentiable_gradients

    def spy(call, cotangents, needs):
        gradients = real(call, cotangents, needs)
        found.append((gradients.input.requires_grad, gradients.weights[0].requires_grad))
        return gradients

    monkeypatch.setattr(reference, "differentiable_gradients", spy)
    loss = loss_of(module, x)
    of = [x] if what == "input" else weights
    some = torch.autograd.grad(loss, of, create_graph=True)
    every = torch.autograd.grad(loss, [x, *weights], create_graph=True)
    assert found == [(what == "input", what == "weights"), (True, True)]
    every = every[:1] if what == "input" else every[1:]
    for runs in zip(
        *(
            torch.autograd.grad(
                sum(g.square().sum() for g in each), [x, *weights], retain_graph=True
            )
            for each in (some, every)
        ),
        strict=True,
    ):
        assert_matches(*runs)


def test_a_small_call_asks_nothing(asked, monkeypatch):
    monkeypatch.setattr(autograd, "_LARGE", T * N * 3 * H * I + 1)
    module, x = build("GRU")
    torch.autograd.grad(loss_of(module, x), x)
    monkeypatch.setattr(autograd, "_LARGE", T * N * 3 * H * I)
    torch.autograd.grad(loss_of(module, x), x)
    assert [needs.weights for needs in asked] == [True, False]
