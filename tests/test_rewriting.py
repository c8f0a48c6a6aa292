"""What rewrites a model: `torch.jit.script`, `torch.ao.quantization`, the old `weight_norm`."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations
from torch_pairs import assert_same_results, everything, example, gradients, pair, saved_and_loaded

import fastrnn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore:torch.ao.quantization is deprecated"
)


class Scripted(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor):
        return self.rnn(x)


@everything
def test_script(name):
    ours, theirs = pair(name, 4, 3)
    model, x = Scripted(ours), example(name)
    for _ in range(2):
        scripted = saved_and_loaded(torch.jit.script(model))
        assert_same_results(scripted(x), theirs(x))
    assert model.rnn is ours and isinstance(ours, getattr(fastrnn, name))
    assert isinstance(ours, getattr(nn, name))
    assert_same_results(model(x), theirs(x))
    assert type(ours) is getattr(fastrnn, name)


def test_after_a_script_the_module_is_ours_again():
    x = example("LSTM")
    for use in (
        lambda m: m.step(x[0]),
        fastrnn.Streamer,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        fastrnn.convert,
        lambda m: fastrnn.to_torch(fastrnn.convert(m)),
        fastrnn.to_torch,
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: torch.jit.trace(m, x),
    ):
        ours = fastrnn.LSTM(4, 3)
        torch.jit.script(Scripted(ours))
        wanted = fastrnn.LSTM(4, 3)
        wanted.load_state_dict(ours.state_dict())
        used = use(ours)
        if isinstance(used, nn.Module) and not isinstance(used, torch.jit.ScriptModule):
            assert_same_results(used(x), wanted(x))
            assert isinstance(used, nn.LSTM)
            assert isinstance(used, fastrnn.LSTM) or type(used) is nn.LSTM
        assert_same_results(ours(x), wanted(x))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ours.nothing  # noqa: B018


class Derived(fastrnn.GRU):
    pass


class Named(nn.GRU):
    pass


def test_script_of_subclasses():
    with pytest.raises(RuntimeError, match="cannot compile Derived.*to_torch"):
        torch.jit.script(Scripted(Derived(4, 3)))
    module, x = fastrnn.convert(Named(4, 3)), example("GRU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.jit.script(Scripted(Named(4, 3)))
        except Exception as error:
            with pytest.raises(type(error)):
                torch.jit.script(Scripted(module))
    assert len(module(x)) == 2 and isinstance(module, fastrnn.GRU)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell"])
def test_quantization(name):
    """What is set by our class is quantized, what is not is named."""
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    default = quantization.default_dynamic_qconfig
    wanted = quantization.quantize_dynamic(nn.Sequential(theirs), {getattr(nn, name)})
    for spec in ({getattr(fastrnn, name)}, {getattr(fastrnn, name): default}, {"": default}):
        quantized = quantization.quantize_dynamic(nn.Sequential(ours), spec)
        assert type(quantized[0]) is type(wanted[0])
        assert_same_results(quantized(x), wanted(x))
    assert type(ours) is getattr(fastrnn, name) and not hasattr(ours, "qconfig")
    for spec in (None, {getattr(nn, name)}, {nn.Linear}):
        model = nn.Sequential(ours, nn.Linear(3, 3))
        with pytest.warns(UserWarning, match=rf"leaves {name} of fastrnn .*to_torch\(model\)"):
            quantized = quantization.quantize_dynamic(model, spec)
        assert type(quantized[0]) is getattr(fastrnn, name)
        assert_same_results(quantized[0](x), ours(x))
    quantized = quantization.quantize_dynamic(fastrnn.to_torch(model))
    assert type(quantized[0]) is type(wanted[0])


def test_old_weight_norm():
    """It puts a plain attribute where the parameter was, before each call."""
    ours, theirs = pair("LSTM", 4, 3)
    x, grads = example("LSTM"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in (ours, theirs):
            nn.utils.weight_norm(module, "weight_hh_l0")
    for _ in range(2):
        assert_same_results(ours(x), theirs(x))
        grads = [gradients(lambda m=m: m(x), list(m.parameters())) for m in (ours, theirs)]
        assert_same_results(*grads)
        with torch.no_grad():
            for module in (ours, theirs):
                module.weight_hh_l0_g.mul_(2)
