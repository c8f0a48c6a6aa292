"""The short way of a call that autograd records: no result and no gradient has another bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import KERNELS
from direct_ways import Subclass, features, long_way
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import CELLS, LAYERS, layers, state

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


def _step(g, s, p):
    c = torch.sigmoid(g.f) * s.c + torch.tanh(g.z) * p.w
    return torch.tanh(c), c


FUNCTION = fastrnn.Cell(_step, gates="f z", states="h c", params="w")
KINDS = [*LAYERS, "projected", "relu", "function"]
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **options) -> torch.nn.Module:
    if kind == "function":
        return fastrnn.Recurrent(FUNCTION, 5, 7, **options)
    special = {"projected": {"proj_size": 3}, "relu": {"nonlinearity": "relu"}}.get(kind, {})
    name = {"projected": "LSTM", "relu": "RNN"}.get(kind, kind)
    return getattr(fastrnn, name)(5, 7, **special, **options)


def states(kind: str, module: torch.nn.Module, N: int, dtype=torch.float32):
    planes = module.num_layers * (1 + module.bidirectional)
    pair = "LSTM" if kind in ("projected", "function") else kind
    width = 3 if kind == "projected" else 7
    return state(pair, planes, N, width, c_width=7, dtype=dtype)


def gradients(module, x, hx, **asked) -> list[torch.Tensor]:
    """All results of a call, and the gradients of everything that it was given."""
    given = [each for each in tree_leaves((x, hx)) if each is not None]
    given = [each for each in given if each.is_floating_point()]
    sources = [each.requires_grad_() for each in given] + list(module.parameters())
    torch.manual_seed(2)  # of dropout
    leaves = [each for each in tree_leaves(module(x, hx, **asked)) if torch.is_tensor(each)]
    attached = [each for each in leaves if each.requires_grad]
    weight = [torch.linspace(-1, 1, each.numel()).view(each.shape) for each in attached]
    loss = sum((each.double() * w).sum() for each, w in zip(attached, weight, strict=True))
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    return [*leaves, *(each for each in found if each is not None)]


def assert_no_bit_changes(module, x, hx, taken, **asked) -> None:
    taken.clear()
    results = gradients(module, x, hx, **asked)
    assert taken == [True]
    with long_way():
        wanted = gradients(module, x, hx, **asked)
    assert taken == [True, False]
    for a, e in zip(results, wanted, strict=True):
        assert torch.equal(a, e) and a.dtype == e.dtype and a.requires_grad == e.requires_grad
        assert a.stride() == e.stride() or not a.requires_grad  # of results, not of gradients


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_bit_changes(kind, dtype, taken):
    options = itertools.product([1, 2], [False, True], [False, True], [False, True])
    for num_layers, bidirectional, bias, batch_first in options:
        module = made(
            kind,
            num_layers=num_layers,
            bidirectional=bidirectional,
            bias=bias,
            batch_first=batch_first,
            dtype=dtype,
        )
        for T, N in ((1, 1), (1, 40), (4, 2)):
            x = torch.randn((N, T, 5) if batch_first else (T, N, 5), dtype=dtype)
            assert_no_bit_changes(module, x, None, taken)
            assert_no_bit_changes(module, x, states(kind, module, N, dtype), taken)


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_features_change_no_bit(kind, batch_first, taken):
    module = made(kind, num_layers=2, batch_first=batch_first)
    x = torch.randn(3, 4, 5) if batch_first else torch.randn(4, 3, 5)
    flags, lengths = torch.rand(x.shape[:2]) < 0.4, torch.tensor([2, 4, 0])
    more = {"reset": flags, "lengths": [2, 4, 0], "detach_every": 2, "grad_clip": 0.01}
    for asked in (*features(flags, lengths), more):
        if kind == "function" and "return_gates" in asked:
            continue  # it has no such argument
        assert_no_bit_changes(module, x, states(kind, module, 3), taken, **asked)


@kinds
def test_dropout_between_layers_draws_the_same_masks(kind, taken):
    module = made(kind, num_layers=3, dropout=0.5)
    assert_no_bit_changes(module, torch.randn(4, 3, 5), None, taken)


@kinds
def test_packed_and_unbatched_input(kind, taken):
    module, x = made(kind, num_layers=2, bidirectional=True), torch.randn(4, 3, 5)
    for lengths in ([4, 2, 1], [1, 4, 3]):
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        assert_no_bit_changes(module, packed, None, taken)
        assert_no_bit_changes(module, packed, states(kind, module, 3), taken)
    assert_no_bit_changes(module, torch.randn(4, 5), None, taken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_cells_change_no_bit(name, dtype, taken):
    for bias, shape in itertools.product([False, True], [(5,), (1, 5), (70, 5)]):
        cell, x = getattr(fastrnn, name)(5, 7, bias, dtype=dtype), torch.randn(shape, dtype=dtype)
        given = state(name, *shape[:-1], 7, dtype=dtype)
        for hx in (None, given):
            results = gradients(cell, x, hx)
            with long_way():
                wanted = gradients(cell, x, hx)
            for a, e in zip(results, wanted, strict=True):
                assert torch.equal(a, e) and a.dtype == e.dtype
    theirs = name == "RNNCell" and dtype is not torch.bfloat16  # a step of torch's own is faster
    assert not any(taken) if theirs else taken == [True, False] * (len(taken) // 2)


@layers
def test_one_weight_alone_requires_a_gradient(name, taken):
    module, x = getattr(fastrnn, name)(5, 7, 2).requires_grad_(False), torch.randn(4, 3, 5)
    for weight in module.parameters():
        weight.requires_grad_()
        found = torch.autograd.grad(module(x)[0].sum(), weight)
        with long_way():
            (wanted,) = torch.autograd.grad(module(x)[0].sum(), weight)
        assert torch.equal(found[0], wanted)
        weight.requires_grad_(False)
    assert taken == [True, False] * (len(taken) // 2)


@layers
def test_what_is_no_plain_tensor_takes_the_long_way(name, taken):
    module, x = getattr(fastrnn, name)(5, 7), torch.randn(4, 3, 5)
    hx = state(name, 1, 3, 7)
    special = tuple(each.as_subclass(Subclass) for each in tree_leaves(hx))
    module(x, special if name == "LSTM" else special[0])
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().as_subclass(Subclass))
    module(x, hx)
    assert taken == [False, False]


@layers
def test_tensors_of_inference_mode(name, taken):
    """Autograd cannot save them, so they are copied."""
    module = getattr(fastrnn, name)(5, 7)
    with torch.inference_mode():
        x = torch.randn(4, 3, 5)
    output = module(x)[0]
    output.sum().backward()
    assert taken == [True]
    assert torch.equal(output, module(x.clone())[0])


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_half_precision_and_autocast_take_the_long_way(name, taken):
    x = torch.randn(3, 5) if name in CELLS else torch.randn(2, 3, 5)
    module = getattr(fastrnn, name)(5, 7)
    with torch.autocast("cpu"):
        module(x)[0].sum().backward()
    module.half()(x.half())[0].sum().backward()
    assert taken == [False, False]
