"""What records a model: `torch.jit.trace`, ONNX, `torch.fx`, TensorBoard."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from conftest import assert_matches
from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import (
    CELLS,
    assert_same_results,
    everything,
    example,
    gradients,
    layers,
    pair,
    saved_and_loaded,
    state,
)

import fastrnn

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:.*TorchScript-based ONNX:DeprecationWarning",
    "ignore:Converting a tensor to a Python",
    "ignore:Exporting a model to ONNX with a batch_size",
)
FEATURES = [
    {"reset": torch.zeros(5, 3, dtype=torch.bool)},
    {"lengths": torch.tensor([5, 2, 3])},
    {"return_states": True},
    {"return_gates": True},
    {"detach_every": 2},
    {"grad_clip": 1.0},
]
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False},
]


class Model(nn.Module):
    """A layer or cell between others. `asked` is what torch.nn cannot do."""

    def __init__(self, rnn, **asked):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.rnn = rnn
        self.asked = asked

    def forward(self, x, hx=None):
        return self.rnn(self.inner(x), hx, **self.asked)


def operators(traced) -> set[str]:
    return {node.kind() for node in traced.inlined_graph.nodes()}


@everything
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_trace(name, options, grad):
    if name in CELLS:
        options = {key: value for key, value in options.items() if key == "bias"}
    model = Model(getattr(fastrnn, name)(4, 3, **options)).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, example(name))
    assert not any(kind.startswith("fastrnn") for kind in operators(traced))
    assert type(model.rnn) is getattr(fastrnn, name)
    loaded, x = saved_and_loaded(traced), example(name, T=7, N=2)
    assert_same_results(loaded(x), model(x))
    ours = gradients(lambda: model(x), list(model.parameters()))
    theirs = gradients(lambda: loaded(x), [dict(loaded.named_parameters())[name] for name, _ in
                                           model.named_parameters()])  # fmt: skip
    assert_same_results(ours, theirs)


@pytest.mark.filterwarnings("default:Converting a tensor to a Python")
@pytest.mark.parametrize("grad", [True, False])
@everything
def test_a_trace_warns_as_that_of_torch(name, grad):
    said = []
    for module in pair(name, 4, 3):
        with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(grad):
            warnings.simplefilter("always")
            torch.jit.trace(module, example(name), check_trace=False)
        said.append({str(each.message) for each in caught if "Converting" in str(each.message)})
    ours, theirs = said
    assert len(ours) <= len(theirs)


@everything
def test_trace_with_a_state_and_unbatched(name):
    model = Model(getattr(fastrnn, name)(4, 3)).eval()
    for shape, x in (((2,), example(name)[..., :2, :]), ((), example(name).select(-2, 0))):
        hx = state(name, *(() if name in CELLS else (1,)), *shape, 3)
        traced = torch.jit.trace(model, (x, hx))
        other = tuple(map(torch.randn_like, hx)) if isinstance(hx, tuple) else torch.randn_like(hx)
        assert_same_results(traced(x + 1, other), model(x + 1, other))


class OfPacked(nn.Module):
    def __init__(self, rnn, packed):
        super().__init__()
        self.rnn = rnn
        self.rest = packed[1:]

    def forward(self, data):
        output, hx = self.rnn(PackedSequence(data, *self.rest))
        return (output.data, *hx) if isinstance(hx, tuple) else (output.data, hx)


@layers
def test_trace_of_packed_input(name):
    """And of a projection, whose h has its own width."""
    options = {"proj_size": 2} if name == "LSTM" else {}
    rnn = getattr(fastrnn, name)(4, 3, bidirectional=True, **options)
    packed = pack_padded_sequence(torch.randn(5, 3, 4), [2, 5, 3], enforce_sorted=False)
    model = OfPacked(rnn, packed)
    traced = torch.jit.trace(model, packed.data)
    data = torch.randn_like(packed.data)
    assert_same_results(traced(data), model(data))


@layers
@pytest.mark.parametrize("asked", FEATURES, ids=lambda asked: next(iter(asked)))
def test_what_torch_lacks_is_not_dropped(name, asked):
    model, x = Model(getattr(fastrnn, name)(4, 3), **asked).eval(), example(name)
    (feature,) = asked
    with pytest.raises(RuntimeError, match=f"{feature} cannot be used here: .* torch.nn.{name}"):
        torch.jit.trace(model, x)
    with pytest.raises(RuntimeError, match=f"{feature} cannot be used here: .* torch.nn.{name}"):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)
    assert len(model(x)) >= 2
    torch.jit.trace(Model(model.rnn), x)


def test_the_newer_onnx_exporter_drops_nothing():
    """It tries another way after an error, and there finds an operator that it does not know."""
    model = Model(fastrnn.GRU(4, 3), lengths=torch.tensor([5, 2, 3])).eval()
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        torch.onnx.export(model, (example("GRU"),), dynamo=True, verbose=False)
    assert "fastrnn.layer_" in str(caught.value.__cause__)


def test_a_traced_file_needs_torch_alone(tmp_path):
    model, x = Model(fastrnn.GRU(4, 3)).eval(), example("GRU")
    torch.jit.trace(model, x).save(tmp_path / "model.pt")
    torch.save([x, model(x)], tmp_path / "example.pt")
    program = (
        "import sys, torch\n"
        "model = torch.jit.load('model.pt')\n"
        "x, wanted = torch.load('example.pt')\n"
        "for a, e in zip(model(x), wanted, strict=True): torch.testing.assert_close(a, e)\n"
        "assert 'fastrnn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)


@everything
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(name, dynamo):
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True}
    ours, theirs = pair(name, 4, 3, **options)
    x = example(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about packages that they do not find
        if dynamo:
            model = torch.onnx.export(ours.eval(), (x,), dynamo=True, verbose=False).model_proto
        else:
            file = io.BytesIO()
            torch.onnx.export(ours.eval(), (x,), file, dynamo=False)
            model = onnx.load_from_string(file.getvalue())
    assert not any(node.domain == "fastrnn" for node in model.graph.node)
    if name in ("LSTM", "GRU"):
        assert name in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, e in zip(map(torch.from_numpy, results), tree_leaves(theirs(x)), strict=True):
        assert_matches(a, e)
    assert type(ours) is getattr(fastrnn, name)
    exported = torch.export.export(ours, (x,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert any(target.startswith("fastrnn.") for target in targets)  # not torch.nn's, but for ONNX


@everything
@pytest.mark.parametrize("swap", ["import", "convert"])
def test_fx(name, swap):
    ours, theirs = pair(name, 4, 3)
    if swap == "convert":
        ours = fastrnn.convert(copy.deepcopy(theirs))
    x, hx = example(name), state(name, *(() if name in CELLS else (1,)), 3, 3)
    model = Model(ours)
    for concrete in ({"hx": None}, {}):
        traced = fx.symbolic_trace(model, concrete_args=concrete)
        reference = fx.symbolic_trace(Model(theirs), concrete_args=concrete)
        for ours_node, node in zip(traced.graph.nodes, reference.graph.nodes, strict=True):
            assert (ours_node.op, ours_node.target) == (node.op, node.target)
        arguments = (x,) if concrete else (x, hx)
        assert_same_results(traced(*arguments), model(*arguments))
    assert type(traced.rnn) is getattr(fastrnn, name) and traced.rnn is ours


@everything
def test_fx_of_a_bare_module(name):
    """It is no leaf then, and torch.nn's cannot be recorded."""
    ours, theirs = pair(name, 4, 3)
    for module in (ours, theirs):
        with pytest.raises(fx.proxy.TraceError, match="cannot be used as inputs to control flow"):
            fx.symbolic_trace(module)
    x = example(name)
    assert_same_results(ours(x), theirs(x))


@layers
def test_fx_keeps_what_torch_lacks(name):
    asked = {"lengths": torch.tensor([5, 2, 3]), "return_states": True, "detach_every": 2}
    model, x = Model(getattr(fastrnn, name)(4, 3), **asked), example(name)
    traced = fx.symbolic_trace(model, concrete_args={"hx": None})
    (node,) = [n for n in traced.graph.nodes if n.target == "rnn"]
    assert node.op == "call_module" and set(node.kwargs) >= set(asked)
    assert_same_results(traced(x), model(x))


class Lookalike:
    """No tensor, but every function of torch takes it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        found = getattr(self.tensor, name)
        return (lambda *args: wrapped(found(*unwrapped(args)))) if callable(found) else found

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return wrapped(function(*unwrapped(args), **(kwargs or {})))


def wrapped(x):
    if isinstance(x, torch.Tensor):
        return Lookalike(x)
    return type(x)(map(wrapped, x)) if type(x) in (tuple, list) else x


def unwrapped(x):
    if isinstance(x, Lookalike):
        return x.tensor
    return type(x)(map(unwrapped, x)) if type(x) in (tuple, list) else x


@everything
@pytest.mark.parametrize("grad", [True, False])
def test_what_only_looks_like_a_tensor(name, grad):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    with torch.set_grad_enabled(grad):
        results = [m(Lookalike(x)) for m in (ours, theirs)]
        assert all(isinstance(each, Lookalike) for each in tree_leaves(results))
        assert_same_results(*map(unwrapped, results))
        if name not in CELLS:
            with pytest.raises(
                RuntimeError, match=f"lengths cannot be used here: .*torch.nn.{name}"
            ):
                ours(Lookalike(x), lengths=torch.tensor([1, 1, 1]))
        assert_same_results(ours(x), theirs(x))
    for library in (fastrnn, nn):
        with pytest.raises(AttributeError, match="'list' object has no attribute"):
            getattr(library, name)(4, 3)(x.tolist())
