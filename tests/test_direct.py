"""The short way of a call that records nothing: that it is taken, and that it changes no bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import KERNELS, assert_matches
from direct_ways import Subclass, both_ways, features, long_way
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, assert_same_results, cells, layers, pair, state

import fastrnn
from fastrnn.call import Call
from fastrnn.dispatch import cpu
from fastrnn.dispatch.cpu import op

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, "projected", "relu"])
def test_layers_change_no_bit(name, dtype, taken):
    """All that a call of a layer may be made of, in one step and in more, few rows and many."""
    special = {"projected": {"proj_size": 3}, "relu": {"nonlinearity": "relu"}}.get(name, {})
    kind = {"projected": "LSTM", "relu": "RNN"}.get(name, name)
    options = itertools.product([1, 2], [False, True], [True, False])
    for num_layers, bidirectional, bias in options:
        ours, theirs = pair(
            kind, 5, 7, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, **special
        )
        planes = num_layers * (1 + bidirectional)
        for T, N in ((1, 1), (1, 3), (1, 40), (4, 2)):
            x = torch.randn(T, N, 5, dtype=dtype)
            width = special.get("proj_size", 7)
            hx = state(kind, planes, N, width, c_width=7, dtype=dtype)
            for given in ((x,), (x, hx)):
                with torch.inference_mode():
                    both_ways(ours, *given)
                with torch.no_grad():
                    both_ways(ours, *given)
                    assert_same_results(ours(*given), theirs(*given))
    # Of three calls, one was told to take the long way.
    assert taken.count(True) == len(taken) // 5 * 3 and len(taken) == 8 * 4 * 2 * 5


@layers
def test_forms_of_input(name, taken):
    module = getattr(fastrnn, name)(5, 7, batch_first=True)
    for shape in ((2, 1, 5), (1, 4, 5), (1, 1, 5)):
        with torch.no_grad():
            output = both_ways(module, torch.randn(shape))[0]
        assert output.shape == (*shape[:2], 7)
    with torch.no_grad():
        both_ways(module, torch.randn(4, 5))
        both_ways(module, torch.randn(4, 5), state(name, 1, 7))
        stream = torch.randn(1, 9, 5)
        both_ways(module, stream[:, 3:4])
    assert taken == [True, False] * 6


@cells
@pytest.mark.parametrize("bias", [True, False])
def test_cells_change_no_bit(name, bias, taken):
    ours, theirs = pair(name, 5, 7, bias)
    with torch.no_grad():
        for N in (1, 3, 40):
            for given in ((), (state(name, N, 7),)):
                x = torch.randn(N, 5)
                assert_same_results(ours(x, *given), theirs(x, *given))
        assert_same_results(ours(x[0], *given[:0]), theirs(x[0], *given[:0]))
    assert taken == [True] * 7


def test_a_cell_is_a_layer_of_one_step():
    layer, cell = fastrnn.GRU(5, 7), fastrnn.GRUCell(5, 7)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(layer, f"{name}_l0"))
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    with torch.no_grad():
        assert torch.equal(cell(x, h), layer(x[None], h[None])[1][0])


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_features_change_no_bit(name, batch_first, taken):
    """Features and strides go the short way; what the kernels do not take as it is, does not."""
    module = getattr(fastrnn, name)(5, 7, num_layers=2, batch_first=batch_first)
    x = (
        torch.randn(4, 3, 5).transpose(0, 1)
        if batch_first
        else torch.randn(5, 4, 3).permute(1, 2, 0)
    )
    flags = torch.rand(x.shape[:2]) < 0.4
    lengths = torch.tensor([2, 4, 0][: x.size(0 if batch_first else 1)])

    def both(x, **asked) -> None:
        results = tree_leaves(module(x, **asked))
        with long_way():
            wanted = tree_leaves(module(x, **asked))
        for a, e in zip(results, wanted, strict=True):
            assert a is e is None or (torch.equal(a, e) and a.stride() == e.stride())

    with torch.no_grad():
        for asked in features(flags, lengths):
            taken.clear()
            both(x, **asked)
            assert taken == [True, False]
        taken.clear()
        both(x, lengths=lengths.int())
        both(x, reset=flags.as_subclass(Subclass))
        assert taken == [False] * 4
        for wrong in ({"grad_clip": -1.0}, {"reset": flags.int()}, {"lengths": lengths[:2]}):
            with pytest.raises((ValueError, RuntimeError)):
                module(x, **wrong)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@layers
def test_packed_input_changes_no_bit(name, bidirectional, enforce_sorted, taken):
    ours, theirs = pair(name, 5, 7, 2, bidirectional=bidirectional)
    lengths = [4, 2, 2, 1] if enforce_sorted else [2, 4, 1, 2]
    x = pack_padded_sequence(torch.randn(4, 4, 5), lengths, enforce_sorted=enforce_sorted)
    hx = state(name, 4 if bidirectional else 2, 4, 7)
    with torch.no_grad():
        for given in ((x,), (x, hx)):
            results = ours(*given)
            assert_same_results(results, theirs(*given))
            with long_way():
                wanted = ours(*given)
            for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
                assert a is e is None or torch.equal(a, e)
    assert taken == [True, False] * 2


def test_changes_through_data_are_seen(taken):
    module, x = fastrnn.LSTM(5, 7), torch.randn(1, 3, 5)
    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.data.mul_(3)
        module.weight_ih_l0.data.mul_(2)
        after = module(x)[0]
        with long_way():
            assert torch.equal(after, module(x)[0])
    assert not torch.equal(before, after)
    assert taken == [True, True, False]


@layers
def test_a_frozen_module_with_gradients_on(name, taken):
    """Both with something that requires a gradient, which then comes, and without."""
    module = getattr(fastrnn, name)(5, 7).requires_grad_(False)
    x, hx = torch.randn(3, 2, 5), state(name, 1, 2, 7)
    assert not module(x, hx)[0].requires_grad and not module(x)[0].requires_grad
    assert taken == [True, True]
    for tensor in [x, *tree_leaves(hx), module.weight_hh_l0, module.bias_ih_l0]:
        tensor.requires_grad_()
        module(x, list(hx) if name == "LSTM" else hx)[0].sum().backward()
        assert tensor.grad.abs().sum() > 0
        tensor.requires_grad_(False)
    assert not module(x, hx)[0].requires_grad
    assert all(taken)


@pytest.mark.parametrize("form", [tuple, list])
def test_a_frozen_cell_with_gradients_on(form, taken):
    cell, states = fastrnn.LSTMCell(5, 7).requires_grad_(False), torch.randn(2, 3, 7)
    cell(torch.randn(3, 5), form(states))
    states.requires_grad_()
    cell(torch.randn(3, 5), form(states))[0].sum().backward()
    assert (states.grad.abs().sum((1, 2)) > 0).all() and taken == [True, True]


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_training_goes_past_the_dispatcher(name, dtype, monkeypatch):
    """Forward and backward of every layer, and no bit is another than through the op."""
    module = getattr(fastrnn, name)(5, 7, 2, bidirectional=True, batch_first=True, dtype=dtype)
    x, hx = torch.randn(3, 4, 5, dtype=dtype), state(name, 4, 3, 7, dtype=dtype)
    ops = []
    for function in ("run", "run_backward"):
        real = getattr(op, function)
        monkeypatch.setattr(op, function, lambda *a, real=real: (ops.append(1), real(*a))[1])

    def gradients() -> list[torch.Tensor]:
        output, last = module(x, hx)
        loss = output.double().square().sum() + sum(t.double().sum() for t in tree_leaves(last))
        return [output, *torch.autograd.grad(loss, list(module.parameters()))]

    found = gradients()
    assert not ops
    with long_way():
        wanted = gradients()
    assert len(ops) == 4
    for a, e in zip(found, wanted, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells_in_training_have_no_time(name, bias, dtype, monkeypatch):
    """The kernels take a step as it is, also with states that are not contiguous, and give the bits
    of the way through views. Some of what comes back is missing."""
    cell = getattr(fastrnn, name)(5, 7, bias=bias, dtype=dtype)
    x = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    whole, ways = torch.randn(7, 6, dtype=dtype, requires_grad=True), []
    over_time = Call.over_time
    monkeypatch.setattr(Call, "over_time", lambda call: ways.append(call) or over_time(call))

    def gradients(*some: int) -> tuple[torch.Tensor, ...]:
        h, c = whole.t().chunk(2)
        found = cell(x, (h, c)) if name == "LSTMCell" else (cell(x, h),)
        loss = sum(found[k].float().sin().sum() for k in some)
        return *found, *torch.autograd.grad(loss, [x, whole, *cell.parameters()])

    each = [(0,), (1,), (0, 1)] if name == "LSTMCell" else [(0,)]
    short = [gradients(*some) for some in each]
    assert not ways
    for step in ("run_step", "run_backward_of_step"):
        monkeypatch.setattr(cpu, step, lambda *_: None)
    for some, found in zip(each, short, strict=True):
        assert all(map(torch.equal, found, gradients(*some)))
    assert len(ways) == 2 * len(each)


@layers
def test_sums_of_rows_that_are_alike(name):
    """Their roundings do not cancel: a sum in one go over all of them would be off by 7e-5."""
    module, exact = getattr(fastrnn, name)(64, 27), getattr(torch.nn, name)(64, 27).double()
    exact.load_state_dict(module.state_dict())
    x, seed = (
        torch.randn(144, 1, 64).expand(-1, 185, -1),
        torch.randn(144, 1, 27).expand(-1, 185, -1),
    )
    grads = []
    for each in (module, exact):
        dtype = each.weight_ih_l0.dtype
        output, _ = each(x.to(dtype))
        grads.append(torch.autograd.grad(output, list(each.parameters()), seed.to(dtype)))
    for a, e in zip(*grads, strict=True):
        assert_matches(a, e)
