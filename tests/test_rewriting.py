"""What rewrites a model: `torch.jit.script`, quantization, pruning, the old `weight_norm`."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.pruning._experimental.pruner import BaseStructuredSparsifier
from torch.ao.quantization import quantize_fx
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


class OfTheFirstKind(torch.jit.ScriptModule):
    """A model that is compiled as soon as it is built, with what is in it."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = nn.Sequential(rnn)

    @torch.jit.script_method
    def forward(self, x):
        return self.rnn(x)


@everything
def test_script_modules(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    for rnn in (ours, theirs):
        assert_same_results(saved_and_loaded(OfTheFirstKind(rnn))(x), theirs(x))
    assert_same_results(ours(x), theirs(x))
    assert type(ours) is getattr(fastrnn, name)
    with pytest.raises(RuntimeError, match="cannot compile Derived.*to_torch"):
        OfTheFirstKind(Derived(4, 3))


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


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell"])
def test_dynamic_quantization(name, dtype):
    """By torch's class, by ours, by place and by default: what torch.nn's module becomes."""
    default = quantization.default_dynamic_qconfig
    asked = [None, {getattr(nn, name)}, {getattr(fastrnn, name)}, {"0"}]
    if dtype is torch.qint8:
        asked += [{getattr(nn, name): default}, {getattr(fastrnn, name): default}, {"": default}]
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    wanted = quantization.quantize_dynamic(nn.Sequential(theirs), {getattr(nn, name)}, dtype)
    exact = ours(x)
    for spec in asked:
        quantized = quantization.quantize_dynamic(nn.Sequential(ours), spec, dtype)
        assert type(quantized[0]) is type(wanted[0]), spec
        assert_same_results(quantized(x), wanted(x))
    assert type(ours) is getattr(fastrnn, name) and not hasattr(ours, "qconfig")
    assert_same_results(ours(x), exact)
    wanted.load_state_dict(quantized.state_dict())
    quantized = quantization.quantize_dynamic(ours := nn.Sequential(ours), inplace=True)
    assert quantized is ours and type(ours[0]) is type(wanted[0])


def test_dynamic_quantization_of_layers_in_a_model():
    """Several layers and directions, batch first, an old name of the package; a converted class."""

    class Derived(nn.LSTM):
        pass

    x = example("LSTM")
    for cls in (nn.LSTM, nn.GRU, Derived):
        theirs = cls(4, 3, 2, bidirectional=True, batch_first=True)
        model = nn.ModuleDict({"rnn": theirs, "head": nn.Linear(3, 2)})
        wanted = torch.quantization.quantize_dynamic(model)
        ours = fastrnn.convert(copy.deepcopy(model))
        assert isinstance(ours["rnn"], fastrnn.RNNBase)
        quantized = torch.quantization.quantize_dynamic(ours)
        assert type(quantized["rnn"]) is type(wanted["rnn"])
        assert type(quantized["head"]) is type(wanted["head"])
        assert_same_results(quantized["rnn"](x), wanted["rnn"](x))


def test_what_is_not_quantized():
    """In silence where nobody asked for it, and with one line where torch cannot."""

    class Derived(fastrnn.LSTM):
        pass

    x = example("LSTM")
    for module, torchs in ((fastrnn.RNN(4, 3), nn.RNN), (Derived(4, 3), nn.LSTM)):
        wanted = module(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            quantized = quantization.quantize_dynamic(nn.Sequential(module), {nn.Linear})
        assert type(quantized[0]) is type(module)
        with pytest.warns(
            UserWarning, match=f"leaves {type(module).__name__} of fastrnn in"
        ) as told:
            quantized = quantization.quantize_dynamic(nn.Sequential(module), {torchs})
        assert sum("of fastrnn" in str(each.message) for each in told) == 1
        assert type(quantized[0]) is type(module)
        assert_same_results(quantized[0](x), wanted)


class Tagger(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(3, 2)

    def forward(self, x):
        output = self.rnn(x)
        return self.head(output if isinstance(self.rnn, nn.RNNCellBase) else output[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "GRUCell", "RNNCell"])
def test_quantization_by_graph(name):
    """For all, by torch's class and by ours; not where only something else is meant."""
    ours, x = Tagger(getattr(fastrnn, name)(4, 3)), example(name)
    exact, default = ours(x), quantization.default_dynamic_qconfig
    wanted = None
    for spec in (None, getattr(nn, name), getattr(fastrnn, name), nn.Linear):
        asked = quantization.QConfigMapping()
        asked = asked.set_object_type(spec, default) if spec else asked.set_global(default)
        results = []
        for model in (copy.deepcopy(ours), fastrnn.to_torch(copy.deepcopy(ours))):
            prepared = quantize_fx.prepare_fx(model, asked, (x,))
            results.append(quantize_fx.convert_fx(prepared))
        if spec is nn.Linear:
            assert type(results[0].rnn) is getattr(fastrnn, name)
        else:
            wanted = results[1].rnn if wanted is None else wanted
            assert type(results[0].rnn) is type(wanted) is not getattr(nn, name)
        if spec is not getattr(fastrnn, name):  # which torch.nn's is not
            assert_same_results(results[0](x), results[1](x))
    assert_same_results(ours(x), exact)


def test_quantization_by_graph_has_no_rnn():
    model, x = Tagger(fastrnn.RNN(4, 3)), example("RNN")
    asked = quantization.QConfigMapping().set_object_type(nn.Linear, None)
    prepared = quantize_fx.prepare_fx(model, asked, (x,))
    assert type(prepared.rnn) is fastrnn.RNN
    assert_same_results(prepared(x), model(x))


class FirstUnit(BaseStructuredSparsifier):
    def update_mask(self, module, tensor_name, **options):
        getattr(module.parametrizations, tensor_name)[0].mask[::3] = False


def test_structured_pruning():
    """The pruner looks for types, in the order of their calls."""
    models = [Tagger(each) for each in pair("LSTM", 4, 3)]
    config = [{"tensor_fqn": f"rnn.{name}"} for name in ("weight_ih_l0", "weight_hh_l0")]
    models[0].head.load_state_dict(models[1].head.state_dict())
    pruned, x = [], example("LSTM")
    for model in models:
        pruner = FirstUnit({})
        pruner.prepare(model, config)
        pruner.step()
        pruned.append(pruner.prune())
    assert type(pruned[0].rnn) is fastrnn.LSTM
    for a, e in zip(*(each.parameters() for each in pruned), strict=True):
        assert torch.equal(a, e)
    assert pruned[0].rnn.weight_ih_l0.size(0) < 12
    assert_same_results(pruned[0](x), pruned[1](x))


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
