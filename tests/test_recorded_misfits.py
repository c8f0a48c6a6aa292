"""Calls in training that are out of the ordinary: as torch.nn, whichever way they take."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from torch import nn
from torch_pairs import assert_same_results, layers, outcome, pair, state

import fastrnn

BOTH = pytest.mark.parametrize("grad", [True, False])


def transposed(weight: torch.Tensor) -> nn.Parameter:
    """The same numbers in another order of memory."""
    return nn.Parameter(weight.detach().t().contiguous().t())


@layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_form_of_the_state(name, bidirectional):
    """Of calls that the kernels do not take as they lie: the op computes them."""
    ours, theirs = pair(name, 5, 7, bidirectional=bidirectional)
    assert_same_results(ours(torch.randn(4, 0, 5)), theirs(torch.randn(4, 0, 5)))
    ours.weight_hh_l0 = transposed(ours.weight_hh_l0)
    for x in (torch.randn(4, 3, 5), torch.randn(4, 5), torch.randn(1, 3, 5)):
        assert_same_results(ours(x), theirs(x))
    imaginary = torch.randn(4, 3, 5, dtype=torch.cfloat).conj().imag
    assert_same_results(ours(imaginary), theirs(imaginary))


CHANGES = (
    {"num_layers": 1}, {"bidirectional": True}, {"hidden_size": 9}, {"input_size": 9},
)  # fmt: skip


@BOTH
@layers
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_attributes_that_were_changed(name, changes, grad):
    hx = state(name, 2, 3, 7)
    if not grad and "input_size" in changes:
        return  # the weight counts there, which docs/differences.md says

    def call(library):
        module = getattr(library, name)(7, 7, 2)
        for key, value in changes.items():
            setattr(module, key, value)
        return module(torch.randn(4, 3, 7), hx)

    with torch.set_grad_enabled(grad):
        ours, theirs = outcome(call, fastrnn), outcome(call, nn)
    assert ours == theirs and theirs[0] is RuntimeError


@BOTH
@layers
def test_checks_of_a_subclass(name, grad):
    class Own(getattr(fastrnn, name)):
        def check_forward_args(self, input, hidden, batch_sizes):
            raise RuntimeError("mine")

    with torch.set_grad_enabled(grad):
        own, x = Own(5, 7), torch.randn(4, 3, 5)
        own(x)
        with pytest.raises(RuntimeError, match="mine"):
            own(x, state(name, 1, 3, 7))


@BOTH
@layers
def test_a_list_of_weights_that_the_user_made(name, grad):
    """torch.nn reads it. Code that drops or masks weights may put them there."""
    ours, theirs = pair(name, 5, 7)
    x = torch.randn(4, 3, 5)
    for module in (ours, theirs):
        module._flat_weights = [0.5 * weight for weight in module._flat_weights]
    with torch.set_grad_enabled(grad):
        assert_same_results(ours(x), theirs(x))
    if grad:
        for module in (ours, theirs):
            module(x)[0].sum().backward()
        for a, e in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_matches(a.grad, e.grad)


@layers
def test_the_list_of_weights_after_a_replacement(name):
    module = getattr(fastrnn, name)(5, 7)
    new = nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    module._parameters["weight_hh_l0"] = new
    module(torch.randn(4, 3, 5))
    assert module._flat_weights[1] is new


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, TypeError])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_an_error_of_a_hook_is_not_lost(name, error):
    module, calls = getattr(fastrnn, name)(5, 7), []
    x = torch.randn(3, 5) if "Cell" in name else torch.randn(4, 3, 5)

    def pack(tensor):
        calls.append(1)
        if len(calls) == 2:
            raise error("mine")
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.raises(error, match="mine"),
    ):
        module(x)
    assert len(calls) == 2


@layers
def test_a_call_that_fails_draws_its_masks_once(name):
    numbers = []
    for library, kind in ((fastrnn, name), (nn, "GRU")):  # nn.LSTM would read past the weight
        module = getattr(library, kind)(5, 7, 3, dropout=0.5)
        module.weight_hh_l2 = nn.Parameter(torch.zeros(3, 2))
        torch.manual_seed(5)
        with pytest.raises((RuntimeError, IndexError)):
            module(torch.randn(4, 3, 5))
        numbers.append(torch.rand(3))
    assert torch.equal(*numbers)


def test_a_parameter_of_a_cell_has_its_name_in_errors():
    module = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 5, 7, 2)
    name = next(key for key, _ in module.named_parameters() if key.startswith("w_") and "l1" in key)
    setattr(module, name, nn.Parameter(getattr(module, name).double()))
    with pytest.raises(RuntimeError, match=f"of {name}$"):
        module(torch.randn(4, 3, 5))
