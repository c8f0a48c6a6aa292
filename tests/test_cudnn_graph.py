"""PyTorch's own kernels as the op of a compiled graph."""

from __future__ import annotations

import pytest
import torch
from op_cases import Case, arguments
from test_cudnn import assert_close, everywhere, run  # noqa: F401  (a fixture)
from torch_pairs import layers

import fastrnn


@pytest.mark.parametrize("form", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@layers
def test_compile(name, form):
    """One op a layer, in one graph for any length."""
    torch._dynamo.reset()
    module = getattr(fastrnn, name)(4, 3, **form)
    graphs = []

    def count(graph, _):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    compiled = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    for T in (5, 7):
        x = torch.randn(T, 2, 4, requires_grad=True)
        assert_close(run(compiled, x), run(module, x))
    ops = [target for target in graphs[0] if "fastrnn" in target]
    assert ops == ["fastrnn.torch_layer.default"] * module.num_layers and len(graphs) == 1
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_close(run(compiled, x), run(module, x))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_opcheck(cell, packed):
    args = arguments(Case(cell, H=3, N=2, T=3, I=2, packed=packed))
    for tensor in (args[0], args[2], *args[4]):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.fastrnn.torch_layer, args)
