"""Calls of the CUDA kernels: what their results do not depend on, graphs, what cannot run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cuda_kernels import (
    DEVICE,
    HOW,
    ON_GPU,
    emulated,
    force,
    in_several_orders,
    layer_inference,
    on_device,
)
from op_cases import Case, arguments, assert_state_in_float32

from fastrnn.dispatch import cuda, gpu, selftest
from fastrnn.dispatch.cuda import launch
from fastrnn.table import CELLS


@pytest.fixture(autouse=True, scope="module")
def kernels():
    with emulated():
        yield


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_is_kept_in_float32(cell):
    assert_state_in_float32(cell, layer_inference, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_their_batch(dtype, monkeypatch):
    force(monkeypatch, "stepwise")
    input, _, h0, c0, *rest = on_device(arguments(Case(N=70, H=20, T=2, dtype=dtype)))
    input.zero_()  # torch's product of the inputs may depend on their number
    whole = layer_inference(input, None, h0, c0, *rest)
    for rows in ([0], [69, 3, 64], list(range(1, 18))):
        part = layer_inference(input[:, rows], None, h0[:, rows], c0[:, rows], *rest)
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[:, rows])


def test_any_order_of_threads():
    """What other blocks and threads do first changes no bit."""
    if ON_GPU:
        pytest.skip("a GPU chooses its own order")
    case = Case("lstm_proj", T=3, N=18, H=17, dtype=torch.bfloat16)
    first, *others = in_several_orders(arguments(case))
    assert all(torch.equal(a, b) for run in others for a, b in zip(run, first, strict=True))


def test_graphs_and_streams():
    """A loop that repeats is replayed; a user may capture the call in a graph of their own."""
    if not ON_GPU:
        pytest.skip("there is no GPU")
    args = on_device(arguments(Case("lstm", N=33, dtype=torch.bfloat16)))
    wanted = layer_inference(*args)
    for _ in range(3):
        for a, b in zip(layer_inference(*args), wanted, strict=True):
            assert torch.equal(a, b)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer_inference(*args)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        results = layer_inference(*args)
    for result in results:
        result.zero_()
    graph.replay()
    for a, b in zip(results, wanted, strict=True):
        assert torch.equal(a, b)


def test_wrong_calls_of_the_kernels_raise():
    make = launch.KERNELS.CudaForward
    for cell, how, values in (
        ("elman", "float32", {}),
        ("gru", "int8", {}),
        ("gru", "float32", {}),
    ):
        with pytest.raises(ValueError, match="fastrnn: no (cell|dtype|T)"):
            make(cell, how, False, values)


@pytest.mark.parametrize("how", HOW)
def test_the_self_test_passes(how, monkeypatch):
    """Of all cells at once, as "auto" asks for it on a GPU that nobody has tried."""
    force(monkeypatch, "stepwise", how)
    dtype = getattr(torch, "float32" if how == "tf32" else how)
    asked = selftest.subject(cuda, "gru", torch.device(DEVICE), dtype)
    assert asked.cell == ""
    asked = asked._replace(precision=how)
    monkeypatch.setattr(gpu, "precision", lambda _: how)  # by which the tolerance is chosen
    assert selftest._test(cuda, asked, None, lambda: 0.0) == selftest.Verdict(None)
    right = cuda.run_backward

    def run_backward(call, *rest):
        gradients = right(call, *rest)
        if call.cell == "rnn_relu" and call.h0.size(0) == 2:
            gradients.weights[5][-1, -1] += 100  # w_hh of the reverse direction
        return gradients

    monkeypatch.setattr(cuda, "run_backward", run_backward)
    reason = selftest._test(cuda, asked, None, lambda: 0.0).reason
    assert reason.startswith("rnn_relu: the gradient of weight 5 is off by")


def test_reasons(monkeypatch):
    if not ON_GPU:
        assert cuda.status() is not None
    monkeypatch.setattr(cuda, "_missing", None)
    if not torch.cuda.is_available():
        assert cuda.status() == "there is no GPU that torch can use"
    on_cpu = SimpleNamespace(input=torch.empty(0), kind=CELLS["lstm"])
    assert cuda.obstacle(on_cpu) == "tensors are on cpu; move them and the module to 'cuda'"
    gpu_tensor = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float32)
    call = SimpleNamespace(input=gpu_tensor, kind=CELLS["lstm"])
    capability = (7, 5)
    monkeypatch.setattr(gpu, "capability", lambda _: capability)
    assert "the GPU has compute capability (7, 5), the kernels need (8, 0)" in cuda.obstacle(call)
    capability = (9, 0)
    assert cuda.obstacle(call) is None
    gpu_tensor.dtype = torch.complex64
    assert cuda.obstacle(call).startswith("dtype is torch.complex64; convert to one of")
