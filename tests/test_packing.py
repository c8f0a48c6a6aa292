"""What kernels for GPUs are told of packed input, and when it may be used again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastrnn import features
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
    monkeypatch.setattr(packing, "_captured", {})
    monkeypatch.setattr(packing, "_sources", {})
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


def test_what_a_graph_reads_is_kept_once(gpu):
    first = packing.packing([2, 1], gpu.device)
    gpu.stream, gpu.capturing = "capture", True
    new = packing.packing([3], gpu.device)
    for _ in range(3):
        assert packing.packing([2, 1], gpu.device) is first
        packing.packing([3], gpu.device)
    assert list(packing._captured.values()) == [first] and len(packing._sources) == 1
    gpu.capturing = False
    for n in range(packing.LIMIT):  # forgotten
        packing.packing([4, n], gpu.device)
    assert first not in [found for _, found in packing._known.values()]
    gpu.capturing = True
    assert packing.packing([2, 1], gpu.device) is first
    # it lies in the graph's own memory
    gpu.capturing = False
    assert packing.packing([3], gpu.device) is not new


class Lengths:
    """A tensor of lengths that notes what it becomes."""

    device, is_cpu = torch.device("cpu"), True

    def __init__(self, how=()):
        self.how = how

    def to(self, *arguments, **options):
        return Lengths((*self.how, (arguments, options)))


@pytest.mark.parametrize("capturing", [False, True])
def test_lengths_are_copied_before_they_leave(monkeypatch, capturing):
    """What is pinned is read later, maybe when the caller has written to it again."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    device = torch.device("cuda")
    x = SimpleNamespace(device=device, is_cpu=False, is_cuda=True)
    first, second = features._on_device_of(x, Lengths(), 3).how
    assert first == ((torch.int64,), {"copy": not capturing})
    assert second == ((device,), {"non_blocking": True})
