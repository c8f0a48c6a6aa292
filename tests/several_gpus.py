"""Several GPUs, as far as `torch.cuda` can say which one is the current one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The GPUs that are entered, the current one last; 0 at first. The current stream of GPU k is
    10 + k."""
    current = [0]

    class On:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    def stream(device=None):
        index = current[-1] if device is None else device.index
        return SimpleNamespace(cuda_stream=10 + index)

    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    return current
