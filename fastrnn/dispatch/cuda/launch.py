"""The loops over time, `gpu.layer.Loops`: memory between the steps, schedule, launches.

In the stepwise schedule one launch does a step, two where the layer has a projection. In the
library schedule torch makes the products, and a launch after each does the rest. In the persistent
schedule one launch does all steps: no GPU has run its kernels yet, so only `PERSISTENT` chooses it.
Everything is on torch's current stream, and a chain of launches that repeats is replayed as a
graph.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _C
from ...call import Sizes
from ...table import Cell
from .. import gpu
from ..gpu import graphs, precision
from ..gpu.layer import Tensors

PERSISTENT = os.environ.get("FASTRNN_PERSISTENT") == "1"
CLUSTERS = (9, 0)  # the least compute capability of a GPU that has them
KERNELS = _C  # has CudaForward and CudaBackward; in tests without a GPU, an emulation


def pitch(columns: int, itemsize: int) -> int:
    """Elements from row to row of what a product reads: a multiple of 16 bytes."""
    pack = 16 // itemsize
    return -(-columns // pack) * pack


@functools.lru_cache(1024)
def choose(
    products: tuple[tuple[int, int, int], ...], N: int, D: int, how: str, device: torch.device
) -> bool:
    """Whether the library makes these products of the steps, each (planes, units, depth), or else
    our kernels do."""
    processors, major = 132, 9  # without a GPU
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        processors, major = properties.multi_processor_count, properties.major
    return _C.cuda_choose(list(products), N, D, how, processors, major)


class Groups(NamedTuple):
    """How the persistent schedule divides a loop, see csrc/cuda/choose.h."""

    units: int  # of a block
    rows: int  # of the batch, of a group
    ring: int  # numbers in memory that blocks hand to each other

    def numbers(self) -> dict[str, int]:
        return {"group_units": self.units, "group_rows": self.rows}


@functools.lru_cache(1024)
def groups(
    cell: Cell, how: str, H: int, N: int, D: int, backward: bool, device: torch.device
) -> Groups | None:
    """The groups of a loop without projection; None where the schedule cannot run it."""
    if device.type == "cuda" and gpu.capability(device) < CLUSTERS:
        return None
    with gpu.current(device):
        found = Groups(*KERNELS.cuda_groups(cell.name, cell.gates, how, H, N, D, backward))
    return found if found.units else None


def _rows(*shape: int, like: Tensor) -> Tensor:
    """Zeros of that shape, but with rows that are `pitch` long."""
    return like.new_zeros((*shape[:-1], pitch(shape[-1], like.itemsize)))


def _padded(matrix: Tensor) -> Tensor:
    """The matrices dense, with rows that are `pitch` long, the ends zero; they themselves if they
    are."""
    if matrix.size(-1) == pitch(matrix.size(-1), matrix.itemsize):
        return matrix.contiguous()
    rows = _rows(*matrix.shape, like=matrix)
    rows[..., : matrix.size(-1)] = matrix
    return rows


def _sums(like: Tensor, *counts: int) -> Tensor:
    """Room for the sums of each product in turn, in the dtype of the arithmetic."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(max(counts), dtype=dtype)


def _multiply(a: Tensor, b: Tensor, sums: Tensor) -> None:
    """a b (D, N, columns), into the first elements of `sums`."""
    out = sums[: a.size(0) * a.size(1) * b.size(2)].view(*a.shape[:2], b.size(2))
    if out.dtype == a.dtype:
        torch.bmm(a, b, out=out)
    elif a.is_cuda:
        torch.bmm(a, b, out.dtype, out=out)
    else:
        torch.bmm(a.to(out.dtype), b.to(out.dtype), out=out)


def forward(cell: Cell, size: Sizes, tensors: Tensors) -> None:
    """As `gpu.layer.Loops` says."""
    x, w_hh, w_hr = tensors["x"], tensors["w_hh"], tensors["w_hr"]
    D, N, H, P, G = size.D, size.N, size.H, size.P, cell.gates
    products = ((G, H, P),) if w_hr is None else ((G, H, P), (1, P, H))
    how = precision(x.dtype)
    persistent = PERSISTENT and w_hr is None
    grouped = groups(cell, how, H, N, D, False, x.device) if persistent else None
    library = not grouped and choose(products, N, D, how, x.device)
    memory = tensors.copy()
    h0 = memory.pop("h0")
    memory["h"] = h = _padded(h0 if grouped else torch.stack((h0, h0)))
    memory["m"] = m = None if w_hr is None else _rows(D, N, H, like=x)
    if grouped:
        memory["w_hh"] = _padded(w_hh)
        memory["ring"] = x.new_zeros(grouped.ring) if grouped.ring else None
    elif library:
        memory["sums"] = sums = _sums(x, D * N * G * H, D * N * P)
    else:
        memory["w_hh"], memory["w_hr"] = _padded(w_hh), None if w_hr is None else _padded(w_hr)

    def with_library(step: Callable[[int, bool, int], None], stream: int) -> None:
        for i in range(size.T):
            _multiply(h[i % 2, ..., :P], w_hh.view(D, -1, P).mT, sums)
            step(i, False, stream)
            if w_hr is not None:
                _multiply(m[..., :H], w_hr.view(D, P, H).mT, sums)
                step(i, True, stream)

    numbers = grouped.numbers() if grouped else {}
    _run("CudaForward", cell, size, library, how, memory, numbers, (), with_library)


def backward(
    cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
) -> None:
    """As `gpu.layer.Loops` says."""
    du, w_hh, w_hr = tensors["du"], tensors["w_hh"], tensors["w_hr"]
    D, N, H, P, K = size.D, size.N, size.H, size.P, cell.gates * size.H
    products = ((1, P, K),) if w_hr is None else ((1, P, K), (1, H, P))
    how = precision(du.dtype)
    persistent = PERSISTENT and w_hr is None
    grouped = groups(cell, how, H, N, D, True, du.device) if persistent else None
    library = not grouped and choose(products, N, D, how, du.device)
    w_hh = w_hh.view(D, K, P)
    w_hr = None if w_hr is None else w_hr.view(D, P, H)
    memory = tensors.copy()
    memory["sent"] = sent = None if grouped else _rows(2, D, N, K, like=du)
    memory["sent_state"] = sent_state = None if w_hr is None else _rows(D, N, P, like=du)
    if grouped:
        memory["w_hh"] = _padded(w_hh.view(D, -1, H, P).permute(0, 3, 1, 2))
        memory["ring"] = du.new_zeros(grouped.ring) if grouped.ring else None
    elif library:
        memory["sums"] = sums = _sums(du, D * N * P, D * N * H)
    else:
        memory["w_hh"] = _padded(w_hh.mT)
        memory["w_hr"] = None if w_hr is None else _padded(w_hr.mT)

    def with_library(step: Callable[[int, bool, int], None], stream: int) -> None:
        for i in reversed(range(size.T)):
            if i + 1 < size.T:  # nothing comes from after the last step
                _multiply(sent[1 - i % 2, ..., :K], w_hh, sums)
            if w_hr is not None:
                step(i, True, stream)
                _multiply(sent_state[..., :P], w_hr, sums)
            step(i, False, stream)

    numbers = {"detach_every": detach_every} | (grouped.numbers() if grouped else {})
    more = (float(grad_clip),)
    _run("CudaBackward", cell, size, library, how, memory, numbers, more, with_library)


def _run(
    kind: str,
    cell: Cell,
    size: Sizes,
    library: bool,
    how: str,
    memory: Tensors,
    numbers: dict[str, int],
    more: tuple[float, ...],
    with_library: Callable[[Callable[[int, bool, int], None], int], None],
) -> None:
    """Runs all steps with the kernels of a loop, which know its memory by address; `with_library`
    does in the library schedule."""
    device = memory["y"].device
    on_gpu = device.type == "cuda"
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in memory.values()]

    @functools.cache
    def kernels():
        """Not needed where a graph of theirs is replayed."""
        values = dict(zip(memory, addresses, strict=True)) | numbers
        values["T"], values["N"], values["rows"], values["D"] = size.T, size.N, size.rows, size.D
        values["H"], values["P"], values["G"] = size.H, size.P, cell.gates
        return getattr(KERNELS, kind)(cell.name, how, library, values, *more)

    def current() -> int:
        return torch.cuda.current_stream(device).cuda_stream if on_gpu else 0

    def chain() -> None:
        stream = current()  # another one while the chain is recorded
        with_library(kernels().step, stream) if library else kernels().run(stream)

    with gpu.current(device):
        many = "group_units" not in numbers  # one launch gains nothing by being replayed
        if on_gpu and many and not torch.cuda.is_current_stream_capturing():
            settings = (kind, cell.name, how, library, size, *numbers.values(), *more, device)
            graphs.repeat((settings, current(), *addresses), chain)
        else:
            chain()
