"""Layers of a few units and many rows, which the kernels put into lanes, and sizes around them."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch_pairs import compare, exact, layers, state

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
# Of I and H. In a register of 16 lanes a layer may have 8 units, in one of 8 four, in one of 4 one.
SIZES = ((1, 1), (17, 1), (16, 2), (3, 4), (4, 5), (2, 8), (16, 8), (1, 9))
ROWS = (7, 8, 16, 37)


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients(isa, name, dtype, bidirectional, bias):
    options = {"bidirectional": bidirectional, "bias": bias}
    for I, H in SIZES:
        ours = getattr(fastrnn, name)(I, H, dtype=dtype, **options)
        theirs = exact(ours, name, I, H, **options)
        for T, N in ((1, 37), *((3, N) for N in ROWS)):
            hx = state(name, 1 + bidirectional, N, H, dtype=dtype)
            compare(ours, theirs, torch.randn(T, N, I, dtype=dtype), hx)


@layers
@pytest.mark.parametrize("of", ["output", "state", "a step"])
def test_losses_of_a_part(name, of):
    """Of which nothing comes for the other results, or zeros for most of them."""
    ours = getattr(fastrnn, name)(3, 4, 2, batch_first=True)
    theirs = exact(ours, name, 3, 4, 2, batch_first=True)
    x = torch.randn(21, 6, 3)
    found = []
    for module, cast in ((ours, x.dtype), (theirs, torch.float64)):
        output, last = module(x.to(cast))
        last = last[-1] if isinstance(last, tuple) else last
        part = {"output": output, "state": last, "a step": output[:, 2]}[of]
        weights = list(module.parameters())
        found.append(torch.autograd.grad(part.double().sin().sum(), weights, allow_unused=True))
    for a, e in zip(*found, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            assert_matches(a, e)


@layers
@pytest.mark.parametrize("what", ["x", "h0", "nothing"])
def test_steps_to_which_nothing_comes(name, what):
    """Their zeros meet an infinite input or state, if there is one, and are NaN then, as those of
    `torch.nn` are."""
    ours, theirs = getattr(fastrnn, name)(3, 4), getattr(torch.nn, name)(3, 4).double()
    theirs.load_state_dict(ours.state_dict())
    x, h0 = torch.randn(30, 19, 3), torch.randn(1, 19, 4)
    if what == "x":
        x[20, 5, 1] = torch.inf  # after the step of the loss
    if what == "h0":
        h0[0, 5, 1] = torch.inf  # before the steps whose gradient fades away
    found = []
    for module, cast in ((ours, torch.float32), (theirs, torch.float64)):
        inputs = [x.to(cast).requires_grad_(), h0.to(cast).requires_grad_()]
        hx = (inputs[1], torch.zeros(1, 19, 4, dtype=cast)) if name == "LSTM" else inputs[1]
        loss = module(inputs[0], hx)[0][9].sin().sum()
        found.append(torch.autograd.grad(loss, [*inputs, *module.parameters()]))
    assert found[0][0][10:].nan_to_num().abs().max() == 0
    for a, e in zip(*found, strict=True):
        assert torch.equal(a.isnan(), e.isnan())
        assert_matches(a.nan_to_num(), e.nan_to_num())


@layers
def test_frozen_weights_and_input(name):
    """One without the gradients of the other."""
    ours = getattr(fastrnn, name)(3, 4)
    x = torch.randn(5, 19, 3, requires_grad=True)
    whole = torch.autograd.grad(ours(x)[0].sin().sum(), [x, *ours.parameters()])
    weights = torch.autograd.grad(ours(x.detach())[0].sin().sum(), list(ours.parameters()))
    assert all(map(torch.equal, weights, whole[1:]))
    ours.requires_grad_(False)
    assert torch.equal(torch.autograd.grad(ours(x)[0].sin().sum(), x)[0], whole[0])


@layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_bits_do_not_depend_on_the_threads(name, bidirectional):
    """Of so many rows that threads share them."""
    module = getattr(fastrnn, name)(4, 4, bidirectional=bidirectional)
    x = torch.randn(30, 3001, 4, requires_grad=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output, _ = module(x)
        gradients = torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])
        found.append([output, *gradients])
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
    theirs = exact(module, name, 4, 4, bidirectional=bidirectional)
    wide = x.detach().double().requires_grad_()
    output, _ = theirs(wide)
    wanted = torch.autograd.grad(output.sin().sum(), [wide, *theirs.parameters()])
    for a, e in zip(found[0], [output, *wanted], strict=True):
        assert_matches(a, e)


@layers
def test_features_take_the_other_way(name):
    """Which has the same bits forward, and gradients of every step backward."""
    module = getattr(fastrnn, name)(3, 4)
    x = torch.randn(5, 19, 3, requires_grad=True)
    plain = module(x)[0]
    wanted = torch.autograd.grad(plain.sin().sum(), [x, *module.parameters()])
    never = torch.zeros(5, 19, dtype=torch.bool)
    whole = torch.full((19,), 5)
    for asked in (
        {"reset": never},
        {"lengths": whole},
        {"return_states": True},
        {"grad_clip": 1e9},
        {"detach_every": 5},
    ):
        output = module(x, **asked)[0]
        assert torch.equal(output, plain)
        found = torch.autograd.grad(output.sin().sum(), [x, *module.parameters()])
        for a, e in zip(found, wanted, strict=True):
            assert_matches(a, e.double())
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, whole)
    assert torch.equal(module(packed)[0].data, plain.flatten(0, 1))
