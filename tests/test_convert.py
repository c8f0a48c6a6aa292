"""The swap in models that exist: what changes is the class of a module and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch_pairs import CELLS, LAYERS, assert_same_results, everything, example, layers

import fastrnn


class Tagger(nn.Module):
    """A model of several recurrent modules: in a list, shared, tied, and one level down."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3, 2, bidirectional=True))
        self.layers = nn.ModuleList([nn.GRU(6, 4), nn.RNN(4, 4, nonlinearity="relu")])
        self.shared = self.layers[0]
        self.tied = nn.GRU(6, 4)
        for name, parameter in self.shared.named_parameters():
            setattr(self.tied, name, parameter)
        self.cell = nn.LSTMCell(4, 5)

    def forward(self, x):
        x = self.encoder(x)[0]
        x = self.shared(x)[0] + self.layers[0](x)[0] + self.tied(x)[0]
        h, c = self.cell(self.layers[1](x)[0][-1])
        return h * c


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}


def test_a_model_and_back():
    model, x = Tagger(), torch.randn(5, 2, 4)
    wanted, before = model(x), classes(model)
    kept = {name: id(m) for name, m in model.named_modules(remove_duplicate=False)}
    parameters = {k: id(p) for k, p in model.named_parameters(remove_duplicate=False)}

    assert fastrnn.convert(model) is model
    assert type(model.encoder[1]) is fastrnn.LSTM and type(model.cell) is fastrnn.LSTMCell
    assert type(model.layers[0]) is fastrnn.GRU and type(model.layers[1]) is fastrnn.RNN
    assert not any(cls.__module__.startswith("torch.nn.modules.rnn")
                   for cls in classes(model).values())  # fmt: skip
    assert_same_results(model(x), wanted)
    assert model.shared is model.layers[0]
    assert kept == {name: id(m) for name, m in model.named_modules(remove_duplicate=False)}
    assert parameters == {k: id(p) for k, p in model.named_parameters(remove_duplicate=False)}
    assert fastrnn.convert(model) is model  # a second time changes nothing

    assert fastrnn.to_torch(model) is model
    assert classes(model) == before
    assert_same_results(model(x), wanted)
    assert fastrnn.to_torch(model) is model


@everything
@pytest.mark.parametrize("bias", [True, False])
def test_a_bare_module(name, bias):
    module, x = getattr(nn, name)(4, 3, bias=bias), example(name)
    wanted = module(x)
    assert type(fastrnn.convert(module)) is getattr(fastrnn, name)
    assert_same_results(module(x), wanted)
    made = getattr(fastrnn, name)(4, 3, bias=bias)
    results = made(x)
    assert repr(made) == repr(fastrnn.to_torch(made))
    assert type(made) is getattr(nn, name)
    assert_same_results(made(x), results)


def test_an_optimizer_made_before_goes_on():
    """The same steps as without conversion, momentum included."""
    x, runs = torch.randn(5, 2, 4), []
    for swap in (lambda model: model, fastrnn.convert):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(4):
            if step == 2:
                swap(model)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        runs.append(list(model.parameters()))
    for a, e in zip(*runs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_hooks_and_modes_are_kept():
    model, x, seen = Tagger().eval(), torch.randn(5, 2, 4), []
    model.layers[1].train()
    lstm = model.encoder[1]
    lstm.register_forward_pre_hook(lambda m, args: seen.append("before"))
    lstm.register_forward_hook(lambda m, args, out: seen.append(type(m)))
    lstm.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    lstm.register_state_dict_post_hook(lambda m, state, prefix, _: seen.append(prefix))
    lstm.weight_ih_l0.register_hook(lambda grad: seen.append("gradient"))
    fastrnn.convert(model)
    model(x).sum().backward()
    model.state_dict()
    assert seen[:2] == ["before", fastrnn.LSTM] and seen[-1] == "encoder.1."
    assert {"backward", "gradient"} <= set(seen)
    assert [m.training for m in model.layers] == [False, True]
    assert not model.cell.training


@everything
def test_parametrizations_are_kept(name):
    suffix = "" if name in CELLS else "_l0"
    x, modules = example(name), []
    for _ in range(2):
        torch.manual_seed(1)  # orthogonal draws a basis
        module = getattr(nn, name)(4, 3)
        parametrizations.weight_norm(module, f"weight_ih{suffix}")
        parametrizations.orthogonal(module, f"weight_hh{suffix}")
        prune.l1_unstructured(module, f"bias_ih{suffix}", amount=0.5)
        modules.append(module)
    module, other = modules
    wanted, parameters = module(x), dict(module.named_parameters())
    fastrnn.convert(module)
    assert isinstance(module, getattr(fastrnn, name))
    assert type(module).forward is getattr(fastrnn, name).forward
    assert_same_results(module(x), wanted)
    assert all(parameters[k] is p for k, p in module.named_parameters())
    assert not isinstance(other, getattr(fastrnn, name))

    parametrize.remove_parametrizations(module, f"weight_hh{suffix}")
    assert_same_results(module(x), wanted)
    assert_same_results(fastrnn.to_torch(module)(x), wanted)
    parametrize.remove_parametrizations(module, f"weight_ih{suffix}")
    assert type(module) is getattr(nn, name)

    for weight in ("weight_ih", "weight_hh"):
        parametrize.remove_parametrizations(fastrnn.convert(other), f"{weight}{suffix}")
    assert type(other) is getattr(fastrnn, name)
    assert_same_results(other(x), wanted)


def test_filter():
    model, seen = Tagger(), {}

    def no_gru(name, module):
        seen[name] = module
        return not isinstance(module, nn.GRU)

    fastrnn.convert(model, filter=no_gru)
    assert list(seen) == ["encoder.1", "layers.0", "layers.1", "tied", "cell"]
    assert type(model.layers[0]) is type(model.tied) is nn.GRU
    assert type(model.layers[1]) is fastrnn.RNN
    bare = nn.LSTM(4, 3)
    assert type(fastrnn.convert(bare, lambda name, _: name != "")) is nn.LSTM


def test_a_model_with_nothing_to_convert():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="nothing to convert: Sequential has no LSTM") as caught:
        assert fastrnn.convert(model) is model
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.convert(fastrnn.convert(nn.GRU(2, 2)))
        fastrnn.convert(nn.GRU(2, 2), lambda name, module: False)


def third_party(lstm=nn.LSTM):
    """A constructor that got hold of the class long ago."""
    return nn.Sequential(lstm(4, 3, num_layers=2, dropout=0.1), nn.GRUCell(3, 3))


@everything
def test_patch(name):
    with fastrnn.patch():
        torch.manual_seed(0)
        module = getattr(nn, name)(4, 3)
        with fastrnn.patch():
            assert type(third_party()[0]) is fastrnn.LSTM
        assert type(third_party()[1]) is fastrnn.GRUCell
        with pytest.raises(TypeError):
            getattr(nn, name)(4)
    assert type(module) is getattr(fastrnn, name)
    torch.manual_seed(0)
    theirs = getattr(nn, name)(4, 3)
    assert type(theirs) is getattr(nn, name)
    assert_same_results(module(x := example(name)), theirs(x))
    with pytest.raises(KeyError), fastrnn.patch():
        raise KeyError
    assert type(third_party()[0]) is nn.LSTM


class Wrapped(nn.Module):
    """TorchScript takes torch's recurrent modules inside another one only."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor):
        return self.rnn(x)[0]


@layers
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_torchscript(name):
    model, x = Wrapped(getattr(fastrnn, name)(4, 3)), torch.randn(5, 2, 4)
    wanted = model(x)
    scripted = torch.jit.script(fastrnn.to_torch(model))
    assert_same_results(scripted(x), wanted)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])  # the layers that torch quantizes
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantization(name):
    """Dynamic quantization finds the layers by their class."""
    model, x = Wrapped(getattr(fastrnn, name)(4, 3)), torch.randn(5, 2, 4)
    wanted = model(x)
    quantized = torch.ao.quantization.quantize_dynamic(fastrnn.to_torch(model), {nn.LSTM, nn.GRU})
    assert type(quantized.rnn) is getattr(torch.ao.nn.quantized.dynamic, name)
    torch.testing.assert_close(quantized(x), wanted, rtol=0, atol=0.05)


def test_every_class_has_a_counterpart():
    for name in LAYERS + CELLS:
        assert type(fastrnn.to_torch(getattr(fastrnn, name)(4, 3))) is getattr(nn, name)
