"""The kinds of objects that `reset`, `lengths`, `detach_every` and `grad_clip` may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_pairs import assert_same_results, layers

import fastrnn
from fastrnn import features

RESET = [[False, True, False], [True, False, False], [False, False, False], [False, True, True]]
LENGTHS = [4, 2, 0]


def kinds_of(nested: list) -> list:
    """The same as lists, tuples, arrays, mixtures; a view with strides, one that is read-only."""
    array = np.array(nested)
    rows = [tuple(row) if isinstance(row, list) else row for row in nested]
    read_only = np.broadcast_to(array, array.shape)
    kinds = [nested, tuple(rows), array, np.repeat(array, 2, 0)[::2], list(array), read_only]
    return [*kinds, array.tolist(), torch.tensor(nested)]


@layers
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy")
def test_lengths_and_reset(name, batch_first):
    module = getattr(fastrnn, name)(4, 3, num_layers=2, batch_first=batch_first)
    x = torch.randn(4, 3, 4)
    reset = np.array(RESET).T.tolist() if batch_first else RESET
    x = x.transpose(0, 1) if batch_first else x
    wanted = module(x, reset=torch.tensor(reset), lengths=torch.tensor(LENGTHS))
    for kind in kinds_of(reset):
        assert_same_results(module(x, reset=kind, lengths=torch.tensor(LENGTHS)), wanted)
    for kind in [*kinds_of(LENGTHS), np.array(LENGTHS, np.uint8), np.array(LENGTHS, np.int16)]:
        assert_same_results(module(x, reset=torch.tensor(reset), lengths=kind), wanted)


@layers
@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy")
def test_unbatched_steps_and_functions(name):
    module = getattr(fastrnn, name)(4, 3)
    x, flags = torch.randn(4, 4), [False, True, False, True]
    wanted = module(x, reset=torch.tensor(flags))
    step = module.step(x, module(x[None])[1], reset=torch.tensor(flags))
    for kind in kinds_of(flags):
        assert_same_results(module(x, reset=kind), wanted)
        assert_same_results(module.step(x, module(x[None])[1], reset=kind), step)
    function = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[name]
    h = torch.zeros(1, 3, 3)
    call = (torch.randn(4, 3, 4), (h, h) if name == "LSTM" else h, module._flat_weights)
    function = getattr(fastrnn.functional, function)
    wanted = function(*call, lengths=torch.tensor(LENGTHS), reset=torch.tensor(RESET))
    assert_same_results(function(*call, lengths=LENGTHS, reset=np.array(RESET)), wanted)
    empty = module(torch.randn(4, 0, 4), lengths=[], reset=np.zeros((4, 0), bool))
    assert empty[0].shape == (4, 0, 3)


@layers
def test_numbers(name):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(6, 2, 4)

    def gradients(**asked):
        return torch.autograd.grad(module(x, **asked)[0].square().sum(), module.parameters())

    wanted = gradients(detach_every=2, grad_clip=0.01)
    for k in (np.int64(2), np.int8(2), np.uint16(2)):
        for v in (np.float32(0.01), np.float64(0.01), torch.tensor(0.01)):
            assert_same_results(gradients(detach_every=k, grad_clip=v), wanted)
    for k in (True, np.True_, 2.0, np.float64(2), np.int64(0), "2"):
        with pytest.raises(ValueError, match="detach_every must be an integer of at least 1, got"):
            module(x, detach_every=k)
    for v in (True, 0, np.float32(0), float("nan")):
        with pytest.raises(ValueError, match="grad_clip must be greater than 0, got"):
            module(x, grad_clip=v)
    for asked, error, text in (
        ({"lengths": [1.0, 2.0]}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": np.array([True, False])}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": [1, 2, 3]}, RuntimeError, "Expected lengths size"),
        ({"lengths": [1, 7]}, RuntimeError, "length"),
        ({"reset": np.zeros((6, 2))}, ValueError, "reset: expected bool"),
        ({"reset": [[0, 1]] * 6}, ValueError, "reset: expected bool"),
        ({"reset": [False] * 6}, RuntimeError, "Expected reset size"),
    ):
        with pytest.raises(error, match=text):
            module(x, **asked)
    assert_same_results(gradients(detach_every=2, grad_clip=0.01), wanted)


def test_in_compiled_code():
    torch._dynamo.reset()
    module, x = fastrnn.GRU(4, 3), torch.randn(4, 3, 4)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    wanted = module(x, reset=torch.tensor(RESET), lengths=torch.tensor(LENGTHS))
    assert_same_results(compiled(x, reset=RESET, lengths=LENGTHS), wanted)
    assert_same_results(compiled(x, reset=np.array(RESET), lengths=np.array(LENGTHS)), wanted)
    assert_same_results(compiled(x, detach_every=2, grad_clip=0.5), module(x))


def test_a_list_is_read_on_the_cpu(monkeypatch):
    """A copy straight to a GPU would wait for what runs there."""
    where, tensor = [], torch.tensor

    def made(*given, device=None):
        where.append(str(device))
        return tensor(*given, device=device)

    monkeypatch.setattr(torch, "tensor", made)
    assert features.mask_of([True, False], torch.empty(2, device="meta")).is_meta
    assert where == ["cpu"]
