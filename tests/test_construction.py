"""Modules made as those of torch.nn: attributes, weights, errors and warnings of constructors."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch_pairs import LAYERS, assert_same_error, layers, pair

import fastrnn

CONSTRUCTIONS = [
    ("LSTM", (4, 3, 2, False, True, 0.5, True, 2), {}),
    ("LSTM", (4, 3, 1, True, False, 0.0, False, 0, "cpu", torch.float64), {}),
    ("LSTM", (4, 3), {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    ("LSTM", (True, 3), {}),
    ("GRU", (4, 3, 2, False, True, 0.5, True), {}),
    ("GRU", (4,), {"hidden_size": 3, "dtype": torch.float64, "device": "cpu"}),
    ("RNN", (4, 3, 2, "relu", False, True, 0.5, True), {}),
    ("RNN", (4, 3), {"nonlinearity": "relu", "num_layers": 2}),
    ("RNNBase", ("LSTM", 4, 3, 1, True, False, 0.0, False, 2), {}),
    ("RNNBase", ("RNN_RELU", 4, 3), {}),
    ("LSTMCell", (4, 3, False, "cpu", torch.float64), {}),
    ("GRUCell", (4, 3), {"bias": False}),
    ("RNNCell", (4, 3, False, "relu", "cpu", torch.float64), {}),
    ("RNNCell", (4, 3, True, "tanh"), {}),
    ("GRUCell", (4, 0), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CONSTRUCTIONS)
def test_construction(name, args, kwargs):
    ours, theirs = pair(name, *args, **kwargs)
    assert repr(ours) == repr(theirs)
    skip = {"_flat_weights", "_flat_weight_refs", "_parameters"}
    attributes = {k: v for k, v in vars(theirs).items() if k not in skip}
    assert {k: v for k, v in vars(ours).items() if k not in skip} == attributes
    assert ours.__constants__ == theirs.__constants__
    for a, e in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a[0] == e[0]
        assert a[1].dtype == e[1].dtype and torch.equal(a[1], e[1])
    assert ours._parameters.keys() == theirs._parameters.keys()
    if "Cell" not in name:
        assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
        assert list(map(id, ours._flat_weights)) == list(map(id, ours.parameters()))
        assert ours.flatten_parameters() is None
    torch.manual_seed(1)
    ours.reset_parameters()
    torch.manual_seed(1)
    theirs.reset_parameters()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((4, 3), {"dropout": "a"}),
        ((4, 3), {"dropout": True}),
        ((4, 3), {"dropout": 1.5}),
        ((4, 3), {"dropout": -0.1}),
        ((4, 3), {"bias": 1}),
        ((4, 3), {"batch_first": 1}),
        ((4.0, 3), {}),
        ((4, "3"), {}),
        ((0, 3), {}),
        ((4, 0), {}),
        ((4, -1), {}),
        ((4, 3), {"num_layers": 0}),
        ((4, 3), {"proj_size": 0.5, "bias": None}),
        ((4, 3), {"dtype": torch.int32}),
        ((4, 3), {"device": "nowhere"}),
    ],
)
@layers
def test_constructor_errors(name, args, kwargs):
    assert_same_error(lambda library: getattr(library, name)(*args, **kwargs))


def test_proj_size_errors():
    for size in (-1, 3, 4):
        assert_same_error(lambda library: library.LSTM(4, 3, proj_size=size))  # noqa: B023
    for name in ("GRU", "RNN"):
        for size in (0, 2):
            assert_same_error(lambda library: getattr(library, name)(4, 3, proj_size=size))  # noqa: B023
    # torch.nn takes it by position and builds a projection that it does not use
    for name, args in (("GRU", (1, True)), ("RNN", (1, "tanh", True))):
        with pytest.raises(ValueError, match="only supported for LSTM"):
            getattr(fastrnn, name)(4, 3, *args, False, 0.0, False, 2)
        assert getattr(fastrnn, name)(4, 3, *args, False, 0.0, False, "meta").weight_ih_l0.is_meta


def test_other_constructor_errors():
    assert_same_error(lambda library: library.RNN(2, 3, 1, True))
    assert_same_error(lambda library: library.RNN(2, 3, nonlinearity="selu"))
    assert_same_error(lambda library: library.RNNBase("ELMAN", 2, 3))
    for name in LAYERS:
        for args, kwargs in (((), {}), ((4, 3), {"depth": 2})):
            with pytest.raises(TypeError):
                getattr(fastrnn, name)(*args, **kwargs)


@layers
def test_dropout_warning(name):
    seen = []
    for library in (fastrnn, torch.nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(library, name)(4, 3, dropout=0.5)
        seen.append([(w.category, str(w.message)) for w in caught])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1
