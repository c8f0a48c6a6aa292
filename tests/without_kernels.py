"""Tests for a process in which `fastrnn._C` cannot be imported; see test_without_kernels.py."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from conftest import assert_matches
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import assert_same_results, cells, everything, example, layers, pair, state

import fastrnn
from fastrnn import diagnosis
from fastrnn.dispatch import cpu, cudnn, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
FORMS = [
    {},
    {"num_layers": 3, "dropout": 0.4},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "bidirectional": True},
]


def results_and_gradients(module, x, *hx) -> list[torch.Tensor]:
    torch.manual_seed(1)
    leaves = [t for t in tree_leaves(module(x, *hx)) if t.is_floating_point()]
    wanted = [t for t in (*tree_leaves((x, hx)), *module.parameters()) if t.requires_grad]
    loss = sum(t.float().square().sum() for t in leaves)
    return [*leaves, *torch.autograd.grad(loss, wanted)]


def assert_equal(ours, theirs) -> None:
    """The very same numbers: the same function was called."""
    for a, e in zip(ours, theirs, strict=True):
        assert a.dtype == e.dtype and torch.equal(a, e)


@pytest.fixture
def no_reference(monkeypatch):
    """What goes through the definition, in Python, is an error."""

    def refuse(*_):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(reference.definition, "layer", refuse)


def test_kernels_are_hidden():
    assert cpu.not_built
    assert fastrnn.backends()["cudnn"] == fastrnn.backends()["reference"] == "usable"
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: fastrnn._C was not"):
        fastrnn.set_backend("cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "LSTM proj", "GRU", "RNN"])
def test_layers_are_those_of_torch(name, form, dtype, no_reference):
    more = {"proj_size": 2} if "proj" in name else {}
    kind = name.split()[0]
    ours, theirs = pair(kind, 4, 3, dtype=dtype, **form, **more)
    x = torch.randn(5, 2, 4, dtype=dtype, requires_grad=True)
    D = ours.num_layers * (1 + bool(form.get("bidirectional")))
    N = 5 if form.get("batch_first") else 2
    hx = state(kind, D, N, 2 if more else 3, c_width=3, dtype=dtype)
    for h in tree_leaves(hx):
        h.requires_grad_()
    packed = pack_sequence([torch.randn(n, 4, dtype=dtype) for n in (2, 5)], enforce_sorted=False)
    for arguments in ((x,), (x, hx), (x[0],), (packed,)):
        for mode in (True, False):
            results = [results_and_gradients(m.train(mode), *arguments) for m in (ours, theirs)]
            assert_equal(*results)
    with torch.no_grad():
        assert_same_results(ours.eval()(x, hx), theirs.eval()(x, hx))
        assert_same_results(ours(packed), theirs(packed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@cells
def test_cells_are_those_of_torch(name, dtype, no_reference):
    for bias in (True, False):
        ours, theirs = pair(name, 4, 3, bias=bias, dtype=dtype)
        x, hx = torch.randn(2, 4, dtype=dtype, requires_grad=True), state(name, 2, 3, dtype=dtype)
        assert_equal(results_and_gradients(ours, x), results_and_gradients(theirs, x))
        assert_equal(results_and_gradients(ours, x, hx), results_and_gradients(theirs, x, hx))
        with torch.no_grad():
            assert_equal(tree_leaves(ours(x[0])), tree_leaves(theirs(x[0])))


@everything
def test_float16_is_computed_in_float32(name):
    """torch.nn's own float16 on a CPU takes many times as long."""
    ours, theirs = pair(name, 4, 3, dtype=torch.float16)
    x = example(name, dtype=torch.float16).requires_grad_()
    for a, e in zip(*(results_and_gradients(m, x) for m in (ours, theirs)), strict=True):
        assert a.dtype == e.dtype
        assert_matches(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@everything
def test_autocast(name, dtype):
    """The dtypes of torch.nn, and in bfloat16 its numbers."""
    # torch's kernel for an LSTM without a projection has no bfloat16 on older CPUs
    ours, theirs = pair(name, 4, 3, **({"proj_size": 2} if name == "LSTM" else {}))
    if name == "LSTM" and dtype is torch.float16:
        return  # torch returns float32 of a projected one
    x = example(name).requires_grad_()
    with torch.autocast("cpu", dtype):
        results = [results_and_gradients(module, x) for module in (ours, theirs)]
    for a, e in zip(*results, strict=True):
        assert a.dtype == e.dtype
        if dtype is torch.bfloat16:
            assert torch.equal(a, e)
        else:
            torch.testing.assert_close(a.float(), e.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_autocast_of_the_fused_lstm(form, supported, monkeypatch):
    """In bfloat16 where oneDNN can, in float32 elsewhere; results are bfloat16, gradients too."""
    supported = supported and cudnn._fused_lstm_has_bfloat16()
    monkeypatch.setattr(cudnn, "_fused_lstm_has_bfloat16", lambda: supported)
    ours, theirs = pair("LSTM", 4, 3, **form)
    x = torch.randn(5, 2, 4, requires_grad=True)
    torch.manual_seed(1)
    with torch.autocast("cpu"):
        found = results_and_gradients(ours, x)
        wanted = results_and_gradients(theirs, x) if supported else None
    if wanted is None:
        exact = results_and_gradients(theirs, x)
        wanted = [*(r.bfloat16() for r in exact[:3]), *exact[3:]]
    for a, e in zip(found, wanted, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a.float(), e.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", FORMS, ids=str)
@everything
def test_second_derivatives(name, form):
    """Also of the float32 LSTM, of which torch.nn has none."""
    form = {} if name.endswith("Cell") else {**form, "dropout": 0.0}
    module, _ = pair(name, 4, 3, **form)
    with_grad = torch.randn(*(() if name.endswith("Cell") else (3,)), 3, 4).requires_grad_()
    D = () if name.endswith("Cell") else (module.num_layers * (1 + module.bidirectional),)
    hx = state(name, *D, 3, 3)
    for h in tree_leaves(hx):
        h.requires_grad_()
    wanted = [with_grad, *tree_leaves(hx), *module.parameters()]

    def both() -> list[torch.Tensor]:
        loss = sum(t.pow(3).sum() for t in tree_leaves(module(with_grad, hx)))
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)]

    found = both()
    with fastrnn.backend("reference"):
        for a, e in zip(found, both(), strict=True):
            assert_matches(a, e)


def test_second_derivative_with_dropout_between():
    """Layer by layer: the same elements are dropped."""
    lstm, x = fastrnn.LSTM(4, 3, 2, dropout=0.5), torch.randn(5, 2, 4, requires_grad=True)

    def second(backend: str) -> torch.Tensor:
        torch.manual_seed(3)
        with fastrnn.backend(backend):
            (grad,) = torch.autograd.grad(lstm(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    assert_matches(second("auto"), second("reference"))


def test_a_graph_is_freed():
    """What gives second derivatives keeps nothing alive."""
    import gc
    import weakref

    lstm, x = fastrnn.LSTM(4, 3, 2, bidirectional=True), torch.randn(5, 2, 4, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        output = lstm(x)[0]
        alive = weakref.ref(output.untyped_storage())
        output.sum().backward()
        del output
        assert alive() is None
    finally:
        gc.enable()


def test_what_torch_lacks_goes_through_the_reference():
    """Features give what their equivalents give, in a stack and in both directions."""
    lstm, x = fastrnn.LSTM(4, 3, 2, bidirectional=True), torch.randn(5, 2, 4)
    output, _, states = lstm(x, return_states=True)
    assert_matches(output, lstm(x)[0])
    assert_matches(states.h[1].flatten(-2), output)
    packed = pack_sequence([x[:5, 0], x[:2, 1]])
    ragged, _ = lstm(x, lengths=torch.tensor([5, 2]))
    assert_matches(ragged[:2, 1], torch.nn.utils.rnn.pad_packed_sequence(lstm(packed)[0])[0][:2, 1])
    gru, dones = fastrnn.GRU(4, 3), torch.tensor([[0, 0], [0, 0], [1, 1], [0, 0], [0, 0]]).bool()
    assert_matches(gru(x, reset=dones)[0][2:], gru(x[2:])[0])
    assert_matches(torch.vmap(lambda row: gru(row)[0])(x[None])[0], gru(x)[0])
    _, tangent = torch.func.jvp(lambda x: lstm(x)[0], (x,), (torch.ones_like(x),))
    assert tangent.abs().sum() > 0
    complex_gru = fastrnn.GRU(4, 3, dtype=torch.complex64)
    assert complex_gru(x.to(torch.complex64))[0].dtype == torch.complex64


@layers
def test_streamer(name):
    module, x = getattr(fastrnn, name)(4, 3, 2), torch.randn(5, 2, 4)
    stream = fastrnn.Streamer(module, 2)
    wanted, _ = module(x)
    for t in range(5):
        assert_matches(stream(x[t]), wanted[t])
        assert_same_results(stream.state, module(x[: t + 1])[1])
    stream.reset()
    assert_matches(stream.steps(x), wanted)
    assert_same_results(stream.state, module(x)[1])


def test_two_threads_at_one_stream():
    stream, x, raised = fastrnn.Streamer(fastrnn.GRU(4, 3)), torch.ones(1, 4), []

    def another():
        for call in (lambda: stream(x), stream.reset, stream.refresh):
            with pytest.raises(RuntimeError, match="another thread is using this stream"):
                call()
            raised.append(call)

    with stream._stack:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        y = stream(x).clone()
    stream.reset()
    assert len(raised) == 3 and torch.equal(stream(x), y)


def test_small_weights_need_kernels():
    module, x = fastrnn.GRU(4, 3), torch.randn(1, 4)
    with pytest.raises(RuntimeError, match="small weights need the compiled kernels: fastrnn._C"):
        fastrnn.Streamer(module, weights="int8")
    assert_matches(fastrnn.Streamer(module, weights={"*": None})(x), module(x[None])[0][0])


@layers
def test_compile_and_export(name):
    """A graph has PyTorch's own kernels as one op, an exported program the op of any machine."""
    module, x = getattr(fastrnn, name)(4, 3, 2), torch.randn(5, 2, 4, requires_grad=True)
    graphs = []

    def count(graph, _):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    compiled = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    for each in (x, torch.randn(7, 3, 4, requires_grad=True)):
        for a, e in zip(*(results_and_gradients(m, each) for m in (compiled, module)), strict=True):
            assert_matches(a, e)
    assert [t for t in graphs[0] if "fastrnn" in t] == ["fastrnn.torch_layer.default"] * 2
    featured = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    lengths = torch.tensor([5, 2])
    assert_matches(featured(x, lengths=lengths)[0], module(x, lengths=lengths)[0])
    assert "fastrnn.layer_forward.default" in graphs[-1]
    frozen = copy.deepcopy(module).requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(frozen, (x.detach(),))
        ops = [str(n.target) for n in program.graph.nodes if "fastrnn" in str(n.target)]
        assert ops == ["fastrnn.layer_inference.default"] * 2
        assert_same_results(program.module()(x.detach()), frozen(x.detach()))


@everything
def test_errors_stay(name):
    module, x = getattr(fastrnn, name)(4, 3), example(name)
    for wrong in (x[..., :3], x.double(), x[None, None]):
        with pytest.raises((RuntimeError, ValueError)):
            module(wrong)
    assert module(x) is not None


def test_report():
    (_, text), _ = diagnosis.served()
    assert text.startswith("PyTorch's own kernels; what torch.nn lacks: reference; not cpu: ")
