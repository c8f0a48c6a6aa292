"""The swap of subclasses of torch.nn's: what they compute and what they add is kept."""

from __future__ import annotations

import abc
import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_pairs import assert_same_results

import fastrnn


class Named(nn.LSTM):
    """A subclass that leaves the computation alone."""

    def __init__(self, width):
        super().__init__(width, 3)
        self.tag = "mine"

    def extra_repr(self):
        return f"named {self.tag}"


class Doubled(nn.LSTM):
    """It computes itself, with what it finds in the class above."""

    def forward(self, input, hx=None):
        output, state = nn.LSTM.forward(self, input, hx)
        return 2 * output, state


class Lengths(abc.ABC, nn.RNNBase):
    """The half of a class that adds something to a call, and asks the class above for the rest."""

    def forward(self, input, hx=None, lengths=None):
        if lengths is None:
            return super().forward(input, hx)
        packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        return pad_packed_sequence(output)[0], state

    @abc.abstractmethod
    def tag(self): ...


class LengthsGRU(Lengths, nn.GRU):
    def tag(self):
        return "GRU"


class Wrapping(LengthsGRU):
    @torch.no_grad()
    def forward(self, input, hx=None, lengths=None):
        output, state = super().forward(input, hx, lengths=lengths)
        return output + 1, state


class Unchecked(nn.LSTM):
    def check_input(self, input, batch_sizes):
        pass


class UncheckedState(nn.GRU):
    def check_forward_args(self, input, hidden, batch_sizes):
        pass


class Derived(fastrnn.LSTM):
    pass


def test_subclasses_that_compute_themselves_are_left_and_listed():
    model = nn.ModuleDict({"a": Doubled(4, 3), "b": Unchecked(4, 3), "c": nn.LSTM(4, 3)})
    model["d"] = nn.GRU(4, 3)
    model["d"].forward = lambda x: x
    model["e"] = UncheckedState(4, 3)
    with pytest.warns(UserWarning) as caught:
        fastrnn.convert(model)
    (warning,) = caught
    assert warning.filename == __file__
    for text in ("a (Doubled overrides forward without super().forward)",
                 "b (Unchecked overrides check_input)",
                 "d (GRU overrides forward)",
                 "e (UncheckedState overrides check_forward_args)"):  # fmt: skip
        assert text in str(warning.message)
    assert "c (" not in str(warning.message)
    assert list(map(type, model.values())) == [
        Doubled, Unchecked, fastrnn.LSTM, nn.GRU, UncheckedState,
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(model, lambda name, _: name == "c")
    with pytest.warns(UserWarning, match=r"the module \(Doubled"):
        fastrnn.convert(model["a"])
    with pytest.warns(UserWarning, match="Derived is a subclass of fastrnn's"):
        assert type(fastrnn.to_torch(Derived(4, 3))) is Derived
    replaced = fastrnn.GRU(4, 3)
    replaced.forward = lambda x: x
    with pytest.warns(UserWarning, match="GRU overrides forward"):
        assert type(fastrnn.to_torch(replaced)) is fastrnn.GRU


def test_other_subclasses_keep_what_they_add():
    module, x = Named(4), torch.randn(5, 2, 4)
    wanted = module(x)
    fastrnn.convert(module)
    assert isinstance(module, fastrnn.LSTM) and isinstance(module, Named)
    assert type(module).forward is fastrnn.LSTM.forward
    assert repr(module) == "Named(named mine)" and module.tag == "mine"
    assert type(fastrnn.convert(Named(4))) is type(module)
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is type(module)
        assert_same_results(copied(x), wanted)
    parametrizations.weight_norm(module, "weight_hh_l0")
    with pytest.raises(RuntimeError, match="parametrized modules"):
        pickle.dumps(module)
    assert type(fastrnn.to_torch(module)).__bases__ == (Named,)
    assert type(fastrnn.to_torch(copied)) is Named
    assert_same_results(copied(x), wanted)


@pytest.mark.parametrize("cls", [LengthsGRU, Wrapping])
def test_a_forward_that_calls_the_class_above_goes_on_to_ours(cls, monkeypatch):
    module, x, lengths = cls(4, 3), torch.randn(5, 2, 4), torch.tensor([2, 5])
    wanted = module(x), module(x, lengths=lengths)
    kept = copy.deepcopy(module)
    calls, run = [], fastrnn.GRU.forward
    monkeypatch.setattr(
        fastrnn.modules.RNNBase, "forward", lambda *args: calls.append(args) or run(*args)
    )
    assert fastrnn.convert(module) is module
    for _ in range(2):
        assert isinstance(module, cls) and isinstance(module, fastrnn.GRU)
        assert isinstance(module, abc.ABC) and module.tag() == "GRU"
        assert_same_results((module(x), module(x, lengths=lengths)), wanted)
        module = pickle.loads(pickle.dumps(module))
    assert len(calls) == 4
    parametrizations.weight_norm(module, "weight_hh_l0")
    assert_same_results(module(x), wanted[0])
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert len(calls) == 5
    parametrizations.weight_norm(kept, "weight_hh_l0")
    assert_same_results(fastrnn.convert(kept)(x), wanted[0])
    assert len(calls) == 6
    assert type(fastrnn.to_torch(module)) is cls
    assert_same_results(module(x), wanted[0])
    assert len(calls) == 6


def test_a_patch_leaves_subclasses_alone():
    with fastrnn.patch():
        assert type(Named(4)) is Named and type(Doubled(4, 3)) is Doubled
