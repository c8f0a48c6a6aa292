"""The modules on CUDA tensors in streams, graphs and compiled code."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from gpu_modules import (
    BACKENDS,
    DEVICE,
    FORMS,
    OURS,
    I,
    assert_all_match,
    example,
    module_of,
    needs_gpu,
    on_cpu,
    run,
    tensors,
)
from torch import Tensor

import fastrnn

pytestmark = needs_gpu


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_stream(backend, form):
    """What a call needs is ordered by its stream alone: the default one is kept busy."""
    module, x = module_of("LSTM", **FORMS[form]), example(form, torch.float32)
    stream = torch.cuda.Stream()
    with fastrnn.backend(backend):
        wanted = run(module, x)
        torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        with torch.cuda.stream(stream):
            for _ in range(3):
                actual = run(module, x)
            finished = torch.cuda.Event()
            finished.record()
            finished.synchronize()
            assert_all_match(actual, on_cpu(wanted))
        torch.cuda.synchronize()


@pytest.mark.parametrize("kind", ["LSTM", "LSTM-proj", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS, "cudnn"])
def test_nothing_waits_for_the_device(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    options = [{}]
    if backend in OURS:
        lengths = torch.tensor([6, 0, 3, 1], device=DEVICE)
        options.append({"lengths": lengths, "reset": lengths > torch.arange(6)[:, None].cuda()})
    with fastrnn.backend(backend):
        for each in options:
            run(module, x, **each)  # compiles, loads, asks the device what it is
            for _ in range(3):
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    data = x.detach().requires_grad_()
                    output = tensors(module(data, **each))[0]
                    torch.autograd.grad(output, [data, *module.parameters()], output)
                finally:
                    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_cuda_graph(backend, kind, form):
    """A training step of the user's, captured and replayed on other numbers."""
    if (backend, form) == ("auto", "packed"):
        pytest.skip("cuDNN is given the lengths of packed input anew in each call")
    module, x = module_of(kind, **FORMS[form]), example(form, torch.float32)
    inputs = [example(form, torch.float32) for _ in range(2)]
    with fastrnn.backend(backend):
        # Without their graphs, whose nodes for the parameters belong to this stream.
        wanted = [[t.detach() for t in run(module, each)] for each in inputs]
        data = (x.data if form == "packed" else x).requires_grad_()

        def step() -> list[Tensor]:
            results = tensors(module(x._replace(data=data) if form == "packed" else data))
            grads = torch.autograd.grad(results, [data, *module.parameters()], seeds(results))
            return [*results, *grads]

        def seeds(results):
            return [seed.to(r) for seed, r in zip(given, results, strict=True)]

        generator = torch.Generator().manual_seed(2)
        shapes = [r.shape for r in tensors(module(x))]
        given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        given = [g.float().to(DEVICE) for g in given]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for _ in range(20):  # what the capture left to the allocator is used again by others
            run(module, inputs[0])
        for each, results in zip(inputs, wanted, strict=True):
            with torch.no_grad():
                data.copy_(each.data if form == "packed" else each)
            graph.replay()
            assert_all_match(captured, on_cpu(results))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_make_graphed_callables(backend, kind):
    module, x = module_of(kind), torch.randn(6, 4, I, device=DEVICE, requires_grad=True)
    other = torch.randn_like(x).requires_grad_()
    with fastrnn.backend(backend):
        wanted = torch.autograd.grad(tensors(module(other))[0].square().sum(), other)[0]
        output = module(other)[0].detach()
        graphed = torch.cuda.make_graphed_callables(module, (x,))
        result = graphed(other)[0]
        assert_matches(result.cpu(), output.cpu().double())
        (actual,) = torch.autograd.grad(result.square().sum(), other)
        assert_matches(actual.cpu(), wanted.cpu().double())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", *OURS])
def test_compile(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    with fastrnn.backend(backend):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_all_match(run(compiled, x), on_cpu(run(module, x)))
