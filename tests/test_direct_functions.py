"""The short way of `fastrnn.functional`: it is taken, and changes no bit and no error."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS
from direct_ways import Subclass, features, long_way
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, state

import fastrnn
from fastrnn import functional

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")

KINDS = [*LAYERS, "projected", "relu"]
kinds = pytest.mark.parametrize("kind", KINDS)


def example(kind: str, N: int, dtype=torch.float32, **options) -> tuple:
    """A module, the function that does the same, and initial states for both."""
    special = {"projected": {"proj_size": 3}, "relu": {"nonlinearity": "relu"}}.get(kind, {})
    name = {"projected": "LSTM", "relu": "RNN"}.get(kind, kind)
    module = getattr(fastrnn, name)(5, 7, dtype=dtype, **special, **options)
    function = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[name]
    function = getattr(functional, "rnn_relu" if kind == "relu" else function)
    planes = module.num_layers * (1 + module.bidirectional)
    width = module.proj_size or 7
    return module, function, state(name, planes, N, width, c_width=7, dtype=dtype)


def called(module, function, x, hx, **more):
    """What the function makes of the module's weights."""
    flags = module.bias, module.num_layers, module.dropout, module.training
    return function(
        x, hx, module._flat_weights, *flags, module.bidirectional, module.batch_first, **more
    )


def assert_same(results, wanted) -> None:
    for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
        assert a is e is None or (torch.equal(a, e) and a.stride() == e.stride())


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_bit_changes(kind, dtype, taken):
    for layers, bidirectional, bias in ((1, False, True), (2, True, False), (2, False, True)):
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
        for T, N in ((1, 1), (1, 40), (4, 2)):
            module, function, hx = example(kind, N, dtype, **options)
            x = torch.randn(T, N, 5, dtype=dtype)
            for mode in (torch.no_grad, torch.inference_mode):
                with mode():
                    taken.clear()
                    results = called(module, function, x, hx)
                    assert_same(results, module(x, hx))
                    assert taken == [True, True]
                    with long_way():
                        assert_same(results, called(module, function, x, hx))


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_features_change_no_bit(kind, batch_first, taken):
    module, function, hx = example(kind, 3, num_layers=2, batch_first=batch_first)
    x = torch.randn(3, 4, 5) if batch_first else torch.randn(4, 3, 5)
    flags, lengths = torch.rand(x.shape[:2]) < 0.4, torch.tensor([2, 4, 0])
    with torch.no_grad():
        for asked in features(flags, lengths):
            taken.clear()
            results = called(module, function, x, hx, **asked)
            assert taken == [True]
            assert_same(results, module(x, hx, **asked))
        first = (slice(None), slice(1)) if batch_first else slice(1)
        new = tree_leaves(example(kind, 3, num_layers=2)[2])
        new = tuple(new) if isinstance(hx, tuple) else new[0]
        asked = {"reset": flags[first], "reset_state": new}
        taken.clear()
        results = called(module, function, x[first], hx, **asked)
        assert taken == [True]
        with long_way():
            assert_same(results, called(module, function, x[first], hx, **asked))


@kinds
def test_packed_input_changes_no_bit(kind, taken):
    module, function, hx = example(kind, 4, num_layers=2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(4, 4, 5), [4, 2, 2, 1])
    with torch.no_grad():
        results = called(module, function, packed.data, hx, batch_sizes=packed.batch_sizes)
        assert taken == [True]
        with long_way():
            assert_same(
                results,
                called(module, function, packed.data, hx, batch_sizes=packed.batch_sizes),
            )


@kinds
def test_what_has_gradients_takes_it_and_what_has_a_class_of_its_own_does_not(kind, taken):
    module, function, hx = example(kind, 3)
    x = torch.randn(4, 3, 5)
    output = called(module, function, x, hx)[0]
    assert output.requires_grad
    module.requires_grad_(False)
    assert called(module, function, x.requires_grad_(), hx)[0].requires_grad
    called(module, function, x.detach().as_subclass(Subclass), hx)
    assert taken == [True, True, False]
    called(module, function, x.detach(), hx)
    assert taken[3:] == [True]


@kinds
def test_dropout_draws_masks_the_long_way(kind, taken):
    module, function, hx = example(kind, 3, num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        torch.manual_seed(1)
        results = called(module, function, x, hx)
        torch.manual_seed(1)
        assert_same(results, module(x, hx))
        called(module.eval(), function, x, hx)
    assert taken == [False, False, True]


@kinds
def test_errors_are_those_of_the_long_way(kind):
    module, function, hx = example(kind, 3)
    x, weights = torch.randn(4, 3, 5), module._flat_weights
    h, *c = tree_leaves(hx)
    pair = isinstance(hx, tuple)

    def of(h0, *c0):
        return (h0, *(c0 or c)) if pair else h0

    sizes = torch.tensor([3, 3, 3, 3])
    wrong = [
        (x, None, weights),
        (x, of(None), weights),
        (x, of(h[:, :2]), weights),
        (x, of(h[0]), weights),
        (x, of(h.double()), weights),
        (x, of(h[..., :2]), weights),
        (x[..., :4], hx, weights),
        (x[:0], hx, weights),
        (x[0], hx, weights),
        (x.double(), hx, weights),
        (x, hx, weights[:-1]),
        (x, hx, [*weights[:-1], None]),
        (x, hx, None),
        (x, hx, weights, False),
        (x, hx, weights, True, 2),
        (x, hx, weights, True, 0),
        (x, hx, weights, True, 1.0),
        (x, hx, weights, True, 1, 0.0, False, True),
        *[
            (x.flatten(0, 1), hx, weights, True, 1, 0.0, False, False, False, each)
            for each in (sizes[:3], sizes - 1, sizes.int(), sizes[None], sizes[:0], -sizes, [3] * 4)
        ],
        *[
            {"reset": torch.zeros(4, 2, dtype=torch.bool)},
            {"reset": torch.zeros(4, 3)},
            {"reset_state": hx},
            {"reset": torch.zeros(4, 3, dtype=torch.bool), "reset_state": (h, h, h)},
            {"lengths": torch.tensor([5, 1, 1])},
            {"lengths": torch.tensor([1, 1])},
            {"grad_clip": -1.0},
            {"detach_every": 0},
        ],
    ]
    if pair:
        wrong += [(x, (h,), weights), (x, (h, None), weights), (x, (h, c[0][..., :6]), weights)]
        wrong += [(x, (h, c[0].expand(2, -1, -1)), weights), (x, (h, c[0][:0]), weights)]
    ragged = [torch.nested.nested_tensor([*each.detach()]) for each in (x, h, weights[0])]
    wrong += [(ragged[0], hx, weights), (x, of(ragged[1]), weights)]
    wrong += [(x, hx, [ragged[2], *weights[1:]]), (x, of(h.to_sparse()), weights)]
    for each in wrong:
        arguments, features = ((x, hx, weights), each) if isinstance(each, dict) else (each, {})
        errors = []
        for way in (torch.no_grad, long_way):
            with torch.no_grad(), way(), pytest.raises(Exception) as caught:
                function(*arguments, **features)
            assert isinstance(caught.value, (TypeError, ValueError, RuntimeError))
            assert type(caught.value) is not NotImplementedError  # of PyTorch's inside
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]
