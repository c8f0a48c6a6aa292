"""Weights that autocast casts for cuDNN: where they lie. cuDNN itself is for tests/test_gpu.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import test_cudnn
import torch
from test_cudnn import FORMS, assert_same, run
from torch import Tensor

import fastrnn
from fastrnn import stack
from fastrnn.call import Call, Stack
from fastrnn.dispatch import cudnn
from fastrnn.dispatch.cudnn.weights import are_cast_flat
from fastrnn.table import weight_names

everywhere = test_cudnn.everywhere  # a fixture


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "LSTM proj", "GRU"])
def test_weights_that_autocast_casts_lie_as_cudnn_reads_them(name, form, monkeypatch):
    """In one piece from its beginning on: matrices, then biases, or zeros in their place."""
    more = {"proj_size": 2} if name == "LSTM proj" else {}
    module = getattr(fastrnn, name.split()[0])(4, 3, **form, **more)
    x = torch.randn(5, 2, 4, requires_grad=True)
    seen = []
    run_stack = cudnn.run_stack

    def look(stack):
        seen.append(stack.call.weights)
        return run_stack(stack)

    monkeypatch.setattr(cudnn, "run_stack", look)
    monkeypatch.setattr(stack, "_by_cudnn", lambda *_: None)  # as of bfloat16 on CUDA

    def results(flat: bool) -> list[Tensor]:
        monkeypatch.setattr(stack, "are_cast_flat", lambda *_: flat)
        with torch.autocast("cpu", torch.bfloat16):
            return run(module, x)

    assert_same(results(True), results(False))
    cast, apart = seen
    assert len({w.untyped_storage().data_ptr() for w in apart}) == len(apart)
    (buffer,) = {w.untyped_storage().data_ptr() for w in cast}
    ordered = [w for w in cast if w.dim() == 2] + [w for w in cast if w.dim() == 1]
    at = 0
    for weight in ordered:
        assert weight.data_ptr() == buffer + 2 * at and weight.is_contiguous()
        at += weight.numel()
    matrices = sum(w.numel() for w in ordered if w.dim() == 2)
    rows = sum(p.size(0) for name, p in module.named_parameters() if name.startswith("weight_ih"))
    assert cast[0].untyped_storage().nbytes() == 2 * (matrices + 2 * rows)
    if not module.bias:
        rest = torch.empty(0, dtype=cast[0].dtype).set_(cast[0].untyped_storage())[at:]
        assert not rest.any()


def test_which_weights_are_cast_so(monkeypatch):
    """Those of a whole stack on an NVIDIA GPU, in float32."""
    module, x = fastrnn.LSTM(4, 3, num_layers=2), torch.randn(5, 2, 4)
    h0 = torch.zeros(2, 2, 3)
    input = SimpleNamespace(is_cuda=True, is_meta=False, is_mps=False)
    call = Call(input, None, h0, h0, module._flat_weights, "lstm", weight_names(True, False))
    asked = Stack(call, 2, 1, 0.0, False)
    assert are_cast_flat(asked, torch.bfloat16)
    assert not are_cast_flat(asked, torch.float32)
    assert not are_cast_flat(asked._replace(states=True), torch.bfloat16)
    assert not are_cast_flat(asked._replace(call=call._replace(input=x)), torch.bfloat16)
    halves = call._replace(weights=[w.bfloat16() for w in call.weights])
    assert not are_cast_flat(asked._replace(call=halves), torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert not are_cast_flat(asked, torch.bfloat16)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert not are_cast_flat(asked, torch.bfloat16)
