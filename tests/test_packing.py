"""What kernels for GPUs are told of packed input, and when it may be used again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastrnn.dispatch.gpu import packing
from fastrnn.dispatch.gpu.packing import Packing


def test_rows_by_length():
    lengths, offsets, earlier = packing.packing([3, 2, 2, 1], torch.device("cpu"))
    assert lengths.tolist() == [4, 3, 1] and offsets.tolist() == [0, 3, 5, 7]
    assert earlier.tolist() == [0, 1, 3, 4, 5]


class Stub:
    """A tensor that goes to a GPU which is not there."""

    def pin_memory(self):
        return Stub()

    def to(self, device, non_blocking):
        assert non_blocking
        return Stub()


@pytest.fixture
def gpu(monkeypatch):
    state = SimpleNamespace(type="cuda", stream="one", capturing=False)
    monkeypatch.setattr(packing, "_make", lambda steps: Packing(Stub(), Stub(), Stub()))
    monkeypatch.setattr(packing, "_known", packing.OrderedDict())
    monkeypatch.setattr(packing, "_captured", [])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    # a device is a part of keys
    state.device = type("Device", (), {"type": "cuda"})()
    return state


def test_it_is_used_again_on_the_stream_that_made_it(gpu):
    first = packing.packing([2, 1], gpu.device)
    assert packing.packing([2, 1], gpu.device) is first
    assert packing.packing([2, 2], gpu.device) is not first
    gpu.stream = "other"
    assert packing.packing([2, 1], gpu.device) is not first
    for n in range(packing.LIMIT + 1):
        packing.packing([n], gpu.device)
    assert len(packing._known) == packing.LIMIT


def test_what_a_graph_reads_is_kept(gpu):
    first = packing.packing([2, 1], gpu.device)
    gpu.stream, gpu.capturing = "capture", True
    assert packing.packing([2, 1], gpu.device) is first
    new = packing.packing([3], gpu.device)
    assert packing._captured[0] is first and len(packing._captured) == 2
    # it lies in the graph's own memory
    gpu.capturing = False
    assert packing.packing([3], gpu.device) is not new
