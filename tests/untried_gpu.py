"""A GPU that nobody has tried and kernels for it, as far as the choice of kernels can see."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from direct_ways import long_way
from program_cells import CELLS as FUNCTIONS

from fastrnn import Recurrent, dispatch
from fastrnn.call import Call
from fastrnn.dispatch import cuda, cudnn, gpu, kept, reference, selftest, triton
from fastrnn.dispatch.selftest import Verdict
from fastrnn.table import weight_names


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU of compute capability 8 and kernels whose test ends as `ends` says."""
    state = SimpleNamespace(ran=0, name="A100", ends=lambda: Verdict(None))

    def test(*arguments):
        state.ran += 1
        return state.ends()

    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(selftest, "_test", test)
    monkeypatch.setattr(selftest, "_verdicts", {})
    monkeypatch.setattr(selftest, "FILE", kept.File("selftest.json"))
    monkeypatch.setattr(kept, "machine", lambda device: state.name)
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return state


def another_process() -> None:
    selftest._verdicts.clear()


def gru(dtype: torch.dtype = torch.float32) -> Call:
    x, h0 = torch.empty(2, 3, 4, dtype=dtype), torch.empty(1, 3, 5, dtype=dtype)
    weights = [torch.empty(15, 4, dtype=dtype), torch.empty(15, 5, dtype=dtype)]
    return Call(x, None, h0, None, weights, "gru", weight_names(False, False), detach_every=2)


def refused(dtype: torch.dtype = torch.float32) -> tuple[str | None, list[str]]:
    """(the reason, warnings)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = selftest.refused(triton, gru(dtype))
    return reason, [str(warning.message) for warning in caught]


def call_of(name: str, H: int = 7, dtype: torch.dtype = torch.float32, **options) -> Call:
    """A call of a cell that is a function, as the test is given one."""
    seen = []
    module = Recurrent(FUNCTIONS[name], 3, H, dtype=dtype, **options)
    shapes = ((5, 2, 1), (5, 2, H))
    inputs = {
        k: torch.rand(shapes[i % 2], dtype=dtype) for i, k in enumerate(FUNCTIONS[name].inputs)
    }
    with pytest.MonkeyPatch.context() as patch, long_way():
        choose = dispatch.choose

        def spy(call, *rest, **options):
            seen.append(call)
            return choose(call, *rest, **options)

        patch.setattr(dispatch, "choose", spy)
        module(torch.rand(5, 2, 3, dtype=dtype), inputs=inputs or None)
    return seen[0]


@pytest.fixture
def a100(machine, monkeypatch):
    """CPU tensors are taken for those of a GPU that nobody has tried, with the Triton kernels."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda, "_missing", "not compiled")
    monkeypatch.setattr(cudnn, "status", lambda: None)
    monkeypatch.setattr(reference, "_warned", set())
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    return machine
