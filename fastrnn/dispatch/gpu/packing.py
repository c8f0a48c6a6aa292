"""What kernels for GPUs must know of packed input, brought to the device without waiting for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 64  # packings remembered


class Packing(NamedTuple):
    """Packed rows as rows of given lengths, which are sorted by these and so counted by batch
    sizes. int64."""

    lengths: Tensor  # (N,)
    offsets: Tensor  # (T,): the first row of each step
    earlier: Tensor  # (rows - N,): for each row after the first step, the row one step before


_known: OrderedDict[tuple, tuple[object, Packing]] = OrderedDict()
# What graphs of the user's read, one for each packing: nobody says how long a graph lives.
_captured: dict[tuple, tuple[Tensor, ...]] = {}  # made before a capture, and read by it
_sources: dict[tuple, tuple[Tensor, ...]] = {}  # on the host, copied at each replay
_lock = threading.Lock()


def packing(steps: list[int], device: torch.device) -> Packing:
    """The packing of the batch sizes `steps`, which are checked."""
    if device.type != "cuda":
        return _make(steps)
    with _lock:
        return _on_gpu(steps, device)


def _on_gpu(steps: list[int], device: torch.device) -> Packing:
    stream, capturing = torch.cuda.current_stream(device), torch.cuda.is_current_stream_capturing()
    key = (*steps, device)
    made_on, found = _known.get(key, (None, None))
    # What was made on another stream may not be there yet; before a capture the device was waited
    # for.
    if capturing and (key in _captured or found is not None):
        return _captured.setdefault(key, found)
    if found is not None and made_on == stream:
        _known.move_to_end(key)
        return found
    on_host = _sources.get(key)
    if on_host is None:
        on_host = tuple(tensor.pin_memory() for tensor in _make(steps))
    found = Packing(*(tensor.to(device, non_blocking=True) for tensor in on_host))
    if capturing:
        _sources[key] = on_host
        return found
    _known[key] = (stream, found)
    if len(_known) > LIMIT:
        _known.popitem(last=False)
    return found


def _make(steps: list[int]) -> Packing:
    sizes, N, rows = torch.tensor(steps, device="cpu"), steps[0], sum(steps)
    lengths = (sizes > torch.arange(N, device="cpu")[:, None]).sum(1)
    earlier = torch.arange(N, rows, device="cpu") - sizes[:-1].repeat_interleave(sizes[1:])
    return Packing(lengths, sizes.cumsum(0) - sizes, earlier)
