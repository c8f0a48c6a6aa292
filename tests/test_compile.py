"""torch.compile, export, AOTInductor, ONNX: graphs of one node a layer, for any T and N."""

from __future__ import annotations

import io
import warnings

import onnxruntime
import pytest
import torch
from conftest import assert_matches
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import assert_same_results, layers, pair

import fastrnn

SIZES = [(5, 3), (6, 4), (2, 7), (40, 2), (9, 9)]  # T, N

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self._flat_weights", "ignore:.*LeafSpec.*:FutureWarning"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def batch(form: str, T: int, N: int):
    """Input of width 4 in one of the forms that a module takes; "cell" is a single step."""
    x = torch.randn(T, N, 4)
    if form == "cell":
        return x[0]
    if form == "padded":
        return x
    lengths = [max(1, T - 2 * k) for k in range(N)]
    if form == "unsorted":
        lengths.reverse()
    return pack_padded_sequence(x, lengths, enforce_sorted=form == "sorted")


def floats(results) -> list[Tensor]:
    return [t for t in tree_leaves(results) if t is not None and t.is_floating_point()]


def gradients(module: nn.Module, results) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        sum(t.square().sum() for t in floats(results)), list(module.parameters())
    )


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize(
    ("name", "form", "dynamic"),
    [("LSTM", form, dynamic) for form in ("padded", "sorted") for dynamic in (True, False, None)]
    + [("GRU", "unsorted", True), ("RNN", "padded", True), ("GRUCell", "cell", True)],
)
def test_compile(name, form, mode, dynamic):
    """One graph for all sizes, or two where the first call was taken for static."""
    options = {} if form == "cell" else {"num_layers": 2, "bidirectional": True}
    module = getattr(fastrnn, name)(4, 3, **options).train(mode == "training")
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=backend)
    for T, N in SIZES[:2] if dynamic is False else SIZES:
        x = batch(form, T, N)
        with torch.set_grad_enabled(mode == "training"):
            results, wanted = compiled(x), module(x)
        assert_same_results(results, wanted)
        if mode == "training":
            for a, e in zip(gradients(module, results), gradients(module, wanted), strict=True):
                assert_matches(a, e)
    assert len([graph for graph in backend.graphs if len(graph.graph.nodes)]) <= (dynamic or 2)


@layers
@pytest.mark.parametrize("form", ["sorted", "unsorted"])
def test_initial_states_of_packed_input(name, form):
    """The number of rows is a datum of the input: no graph breaks where states have to fit it."""
    module = getattr(fastrnn, name)(4, 3, num_layers=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for T, N in SIZES[:2]:
        h = torch.randn(2, N, 3)
        hx = (h, h.flip(0)) if name == "LSTM" else h
        packed = batch(form, T, N)
        assert_same_results(compiled(packed, hx), module(packed, hx))
    for shape in ((2, N - 1, 3), (1, N, 3), (2, N, 2)):
        h = torch.randn(shape)
        with pytest.raises(RuntimeError):
            compiled(packed, (h, h) if name == "LSTM" else h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inductor(dtype):
    """The default backend, forward and backward, in one graph of any size."""
    module = fastrnn.LSTM(4, 3, dtype=dtype)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for T, N in SIZES[:3]:
        x = batch("padded", T, N).to(dtype)
        results, wanted = compiled(x), module(x)
        assert_same_results(results, wanted)
        for a, e in zip(gradients(module, results), gradients(module, wanted), strict=True):
            assert_matches(a, e)


@pytest.mark.parametrize(("name", "form"), [("LSTM", "padded"), ("GRU", "sorted")])
def test_graphs_do_not_grow_with_time(name, form):
    """A layer is one node of the forward graph and one of the backward graph."""
    module = getattr(fastrnn, name)(4, 3, 2, bidirectional=True)

    def nodes(T: int) -> list[tuple[int, int]]:
        """(nodes, nodes that are ops of ours) of each graph that a training step compiles."""
        seen = []

        def compiler(graph, inputs):
            targets = [str(node.target) for node in graph.graph.nodes]
            seen.append((len(targets), sum("fastrnn" in target for target in targets)))
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        backend = aot_autograd(fw_compiler=compiler)
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)
        gradients(module, compiled(batch(form, T, 3)))
        return seen

    few, many = nodes(3), nodes(300)
    assert few == many
    # Forward also a copy of the output, which the user may change.
    assert [ops for _, ops in few] == [3, 2]


def exported(module: nn.Module, dims: tuple[int, int] = (0, 1)):
    T, N = torch.export.Dim("T"), torch.export.Dim("N")
    example = torch.randn(5, 3, 4)
    return torch.export.export(module, (example,), dynamic_shapes=(dict(zip(dims, (T, N))),))  # noqa: B905


@layers
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_export(name, mode):
    """The exported program takes any T and N, and trains if it was exported with gradients."""
    batch_first = mode == "inference"
    module = getattr(fastrnn, name)(4, 3, 2, bidirectional=True, batch_first=batch_first)
    with torch.set_grad_enabled(mode == "training"):
        program = exported(module, (1, 0) if batch_first else (0, 1))
        targets = [str(node.target) for node in program.graph.nodes]
        assert sum("fastrnn" in target for target in targets) == 2
        call = program.module()
        for T, N in [*SIZES, (1, 1)]:
            x = torch.randn((N, T, 4) if batch_first else (T, N, 4))
            results, wanted = call(x), module(x)
            assert_same_results(results, wanted)
            if mode == "training":
                for a, e in zip(gradients(call, results), gradients(module, wanted), strict=True):
                    assert_matches(a, e)


def test_export_survives_saving():
    module = fastrnn.GRU(4, 3)
    with torch.no_grad():
        program, saved = exported(module), io.BytesIO()
        torch.export.save(program, saved)
        saved.seek(0)
        call = torch.export.load(saved).module()
        x = torch.randn(7, 2, 4)
        assert_same_results(call(x), module(x))


def test_ahead_of_time_inductor(tmp_path):
    """A package compiled for any T and N, loaded and run: the way to C++ without Python."""
    module = fastrnn.LSTM(4, 3)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(module), package_path=str(tmp_path / "lstm.pt2")
        )
        call = torch._inductor.aoti_load_package(path)
        for T, N in [*SIZES, (1, 1)]:
            x = torch.randn(T, N, 4)
            assert_same_results(tree_leaves(call(x)), tree_leaves(module(x)))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])  # the exporter writes RNN out step by step
def test_onnx(name):
    """Through `to_torch`, whose layers ONNX has operators for."""
    module, theirs = pair(name, 4, 3, 2, bidirectional=True)
    x = torch.randn(5, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about packages that it does not find
        program = torch.onnx.export(
            fastrnn.to_torch(module).eval(), (x,), dynamo=True, verbose=False
        )
    model = program.model_proto
    assert name in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, e in zip(map(torch.from_numpy, results), tree_leaves(theirs(x)), strict=True):
        assert_matches(a, e)
