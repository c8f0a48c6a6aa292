"""PyTorch's own kernels behind the modules. They run on CPU tensors as well, so here these stand
for a GPU's: what is passed and when is the same, cuDNN itself is for tests/test_gpu.py."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import assert_matches
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import cells, everything, layers, pair, state

import fastrnn
from fastrnn import diagnosis, dispatch, functional, ops
from fastrnn.dispatch import cpu, cudnn, gpu


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """All tensors count as those of a GPU, in "auto" too, and every call is noted."""
    calls = []
    run_stack = cudnn.run_stack

    def noted(stack):
        calls.append((stack.call.cell, stack.layers))
        return run_stack(stack)

    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: not tensor.is_meta)
    monkeypatch.setattr(cudnn, "status", lambda: None)
    monkeypatch.setattr(cudnn, "run_stack", noted)
    return calls


def tensors(results) -> list[Tensor]:
    return [t for t in tree_leaves(results) if torch.is_tensor(t) and t.is_floating_point()]


def run(module, *arguments, **options) -> list[Tensor]:
    """Results and all gradients of a call, from the same state of the generator."""
    torch.manual_seed(1)
    results = module(*arguments, **options)
    leaves = tensors(results)
    wanted = [t for t in (*tree_leaves(arguments), *module.parameters()) if t.requires_grad]
    grads = torch.autograd.grad(sum(t.square().sum() for t in leaves), wanted)
    return [*leaves, *grads]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """The very same numbers: the same function was called."""
    assert len(ours) == len(theirs)
    for a, e in zip(ours, theirs, strict=True):
        assert torch.equal(a, e)


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Nearly so: without a graph torch has another kernel."""
    for a, e in zip(ours, theirs, strict=True):
        assert_matches(a, e.double())


FORMS = [
    {},
    {"num_layers": 3, "dropout": 0.4},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "bidirectional": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "LSTM proj", "GRU", "RNN", "RNN relu"])
def test_is_torch_nn(name, form, everywhere):
    more = {"LSTM proj": {"proj_size": 2}, "RNN relu": {"nonlinearity": "relu"}}.get(name, {})
    kind = name.split()[0]
    ours, theirs = pair(kind, 4, 3, **form, **more)
    x = torch.randn(5, 2, 4, requires_grad=True)
    D = ours.num_layers * (1 + bool(form.get("bidirectional")))
    batch = 5 if form.get("batch_first") else 2
    hx = state(kind, D, batch, 2 if "proj" in name else 3, c_width=3)
    for arguments in ((x,), (x, hx)):
        everywhere.clear()
        assert_same(run(ours, *arguments), run(theirs, *arguments))
        cell = f"{kind}_{ours.nonlinearity}" if kind == "RNN" else kind
        assert everywhere == [(cell.lower(), ours.num_layers)]  # the whole stack in one call
    assert_same(run(ours.eval(), x), run(theirs.eval(), x))
    with torch.no_grad():
        assert_same(tree_leaves(ours(x)), tree_leaves(theirs(x)))


@layers
def test_packed_and_unbatched(name, everywhere):
    ours, theirs = pair(name, 4, 3, num_layers=2, bidirectional=True)
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 5, 3)], enforce_sorted=False)
    assert_same(run(ours, packed), run(theirs, packed))
    assert_same(run(ours, packed.data[:4]), run(theirs, packed.data[:4]))
    assert [layers for _, layers in everywhere] == [2, 2]
    wrong = packed._replace(batch_sizes=packed.batch_sizes.flip(0))
    with pytest.raises(RuntimeError):
        ours(wrong)


@pytest.mark.parametrize("dtype", cudnn.DTYPES, ids=str)
@layers
def test_dtypes(name, dtype, everywhere):
    ours, theirs = pair(name, 4, 3, dtype=dtype)
    x = torch.randn(5, 2, 4, dtype=dtype, requires_grad=True)
    assert_same(run(ours, x), run(theirs, x))
    assert everywhere


@cells
def test_cells_take_one_step(name, everywhere):
    for bias in (True, False):
        ours, theirs = pair(name, 4, 3, bias=bias)
        x, hx = torch.randn(2, 4, requires_grad=True), state(name, 2, 3)
        assert_same(run(ours, x, hx), run(theirs, x, hx))
        assert_same(run(ours, x[0]), run(theirs, x[0]))
    assert not everywhere
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        ours(x, tuple(h.double() for h in hx) if name == "LSTMCell" else hx.double())


@everything
def test_autocast(name, everywhere):
    """It passes through, and what cannot be torch.nn's returns the same dtypes."""
    # projected, because torch's kernel for others has no bfloat16 on older CPUs
    ours, theirs = pair(name, 4, 3, **({"proj_size": 2} if name == "LSTM" else {}))
    x = torch.randn(2, 4) if name.endswith("Cell") else torch.randn(5, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(tree_leaves(ours(x)), tree_leaves(theirs(x)))
        if not name.endswith("Cell"):
            results = ours(x, detach_every=2)
            assert {t.dtype for t in tree_leaves(results)} == {torch.bfloat16}
            assert_matches(results[0], theirs(x)[0])


def test_autocast_of_kernels(monkeypatch, everywhere):
    """Kernels for GPUs get the autocast dtype, the reference float32."""
    seen = []

    def layer(call, *arguments):
        seen.append(call.input.dtype)
        return real(call, *arguments)

    real = ops.layer
    monkeypatch.setattr(ops, "layer", layer)
    gru, x = fastrnn.GRU(4, 3), torch.randn(5, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        gru(x, detach_every=2)
        monkeypatch.setattr(dispatch, "choose", lambda *_, **__: cpu)
        with contextlib.suppress(RuntimeError):  # the kernels of the CPU do not take it
            gru(x, detach_every=2)
    assert seen == [torch.float32, torch.bfloat16]


def test_second_derivatives_are_torchs():
    ours, theirs = pair("GRU", 4, 3)
    x = torch.randn(5, 2, 4, requires_grad=True)
    results = []
    for module in (ours, theirs):
        (slope,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), x))
    assert_same(*results)


def test_what_torch_nn_lacks_goes_on(everywhere):
    lstm, x = fastrnn.LSTM(4, 3, num_layers=2), torch.randn(5, 2, 4)
    with fastrnn.backend("reference"):
        wanted = lstm(x, lengths=torch.tensor([5, 2]), return_states=True)
    results = lstm(x, lengths=torch.tensor([5, 2]), return_states=True)
    assert_same(tensors(results), tensors(wanted))
    torch.vmap(lstm)(x[None])
    torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))
    fastrnn.GRU(4, 3, dtype=torch.complex64)(x.to(torch.complex64))
    assert not everywhere
    lstm(x, return_states=False)
    fastrnn.GRU(4, 3)(x, return_states=True)  # which are the output: nothing has to be traced
    assert everywhere == [("lstm", 2), ("gru", 1)]


@layers
def test_forced(name, everywhere, monkeypatch):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(5, 2, 4)
    with fastrnn.backend("cudnn"):
        module(x)
        assert len(everywhere) == 1
        for options in ({"lengths": torch.tensor([1, 2])}, {"grad_clip": 1.0}):
            with pytest.raises(RuntimeError, match="'cudnn' cannot run: torch.nn has no reset, l"):
                module(x, **options)
        with pytest.raises(RuntimeError, match="'cudnn' cannot run: torch.func transforms"):
            torch.vmap(module)(x[None])
        monkeypatch.undo()
        monkeypatch.setattr(cpu, "not_built", None)
        with pytest.raises(RuntimeError, match="'cudnn' cannot run: tensors are on cpu; move the"):
            module(x)
    with (
        pytest.raises(RuntimeError, match="'cudnn' cannot run: there is no GPU"),
        fastrnn.backend("cudnn"),
    ):
        pass


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_reasons_without_a_gpu(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cpu, "not_built", None)
    states = fastrnn.backends()
    assert states["cudnn"] == "there is no GPU that torch can use"
    reasons = ("without CUDA", "no GPU", "no compiled kernels")
    assert any(reason in states["cuda"] for reason in reasons)
    for name in ("cuda", "cudnn"):
        with pytest.raises(RuntimeError, match=f"'{name}' cannot run"), fastrnn.backend(name):
            pass
    assert diagnosis.served()[1] == ("cuda tensors", "none: there is no GPU that torch can use")


def test_bad_calls_raise():
    h, w = torch.zeros(2, 2, 3), [torch.zeros(9, 4), torch.zeros(9, 3)]
    x, upper = torch.zeros(5, 2, 4), [torch.zeros(9, 3), torch.zeros(9, 3)]
    functional.gru(x, h, w + upper, False, 2)
    lstm = [torch.zeros(12, 4), torch.zeros(12, 3)]
    for call in (
        lambda: functional.gru(x, h, w + w, False, 2),  # the second layer has inputs of 3
        lambda: functional.gru(x, h[:1], w + upper, False, 2),
        lambda: functional.gru(x, h, (w + upper)[:3], False, 2),
        lambda: functional.gru(x, h[..., :2], w + upper, False, 2),
        lambda: functional.gru(x[..., :3], h, w + upper, False, 2),
        lambda: functional.gru(x.double(), h, w + upper, False, 2),
        lambda: functional.gru(x[:0], h, w + upper, False, 2),
        lambda: functional.lstm(x, (h[:1], h), lstm, False),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_states_need_not_be_dense():
    lstm, x = fastrnn.LSTM(4, 3, proj_size=2), torch.randn(5, 2, 4)
    h, c = torch.randn(1, 1, 2).expand(1, 2, 2), torch.randn(1, 2, 6)[..., ::2]
    with fastrnn.backend("reference"):
        wanted = lstm(x, (h, c))[0]
    torch.testing.assert_close(lstm(x, (h, c))[0], wanted)


@pytest.mark.parametrize("training", [True, False])
def test_backward_is_prepared_where_it_may_come(training, monkeypatch):
    """cuDNN has no backward of what ran in eval mode, and takes longer in training mode."""
    seen = []

    def rnn(input, hx, weights, bias, layers, dropout, train, *rest):
        seen.append((dropout, train))
        return real(input, hx, weights, bias, layers, dropout, train, *rest)

    real = torch.gru
    monkeypatch.setattr(torch, "gru", rnn)
    gru, x = fastrnn.GRU(4, 3, num_layers=2, dropout=0.5).train(training), torch.randn(5, 2, 4)
    gru(x)
    with torch.no_grad():
        gru(x)
    plain = fastrnn.GRU(4, 3).train(training).requires_grad_(False)
    plain(x)
    dropout = 0.5 if training else 0.0
    assert seen == [(dropout, True), (dropout, training), (0.0, False)]


@pytest.mark.parametrize("autocast", [False, True])
@layers
def test_dropout_on_mps_is_between_calls(name, autocast, everywhere, monkeypatch):
    """Where one call of all layers has wrong gradients: layer by layer, as in our own loop."""
    monkeypatch.setattr(cudnn, "_is_mps", lambda _: True)
    form = {"num_layers": 3, "dropout": 0.4, "batch_first": True}
    ours, x = getattr(fastrnn, name)(4, 3, **form), torch.randn(5, 2, 4, requires_grad=True)
    cell = "rnn_tanh" if name == "RNN" else name.lower()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = run(ours, x)
        assert everywhere == [(cell, 1)] * 3
        everywhere.clear()
        if not autocast:
            with fastrnn.backend("reference"):
                assert_close(found, run(ours, x))
        if autocast and name == "LSTM" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return  # on a CPU, where this test runs, torch's own LSTM then needs AVX-512
        ours.eval()(x)
        assert everywhere == [(cell, 3)]
