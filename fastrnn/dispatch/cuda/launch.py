"""The loops over time, `gpu.layer.Loops`: memory between the steps, schedule, launches.

In the stepwise schedule one launch does a step, two where the layer has a projection. In the
library schedule torch makes the products, and a launch after each does the rest. Everything is on
torch's current stream, and a chain of launches that repeats is replayed as a graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ... import _C
from ...call import Sizes
from ...table import Cell
from ..gpu import graphs, precision
from ..gpu.layer import Tensors

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


def _rows(*shape: int, like: Tensor) -> Tensor:
    """Zeros of that shape, but with rows that are `pitch` long."""
    return like.new_zeros(*shape[:-1], pitch(shape[-1], like.itemsize))


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
    products = ((G, H, P),) + ((1, P, H),) * (w_hr is not None)
    how = precision(x.dtype)
    library = choose(products, N, D, how, x.device)
    h, m = _padded(tensors["h_n"].expand(2, D, N, P)), None
    if w_hr is not None:
        m = _rows(D, N, H, like=x)
    memory = tensors | {"h": h, "m": m}
    if library:
        memory["sums"] = sums = _sums(x, D * N * G * H, D * N * P)
    else:
        memory["w_hh"], memory["w_hr"] = _padded(w_hh), None if w_hr is None else _padded(w_hr)
    loop = _Loop("CudaForward", cell, size, library, how, memory, {})

    def with_library(stream: int) -> None:
        for i in range(size.T):
            _multiply(h[i % 2, ..., :P], w_hh.mT, sums)
            loop.kernels.step(i, False, stream)
            if w_hr is not None:
                _multiply(m[..., :H], w_hr.mT, sums)
                loop.kernels.step(i, True, stream)

    loop.run(with_library)


def backward(
    cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
) -> None:
    """As `gpu.layer.Loops` says."""
    du, w_hh, w_hr = tensors["du"], tensors["w_hh"], tensors["w_hr"]
    D, N, H, P, K = size.D, size.N, size.H, size.P, cell.gates * size.H
    products = ((1, P, K),) + ((1, H, P),) * (w_hr is not None)
    how = precision(du.dtype)
    library = choose(products, N, D, how, du.device)
    sent, sent_state = _rows(2, D, N, K, like=du), None
    if w_hr is not None:
        sent_state = _rows(D, N, P, like=du)
    memory = tensors | {"sent": sent, "sent_state": sent_state}
    if library:
        memory["sums"] = sums = _sums(du, D * N * P, D * N * H)
    else:
        memory["w_hh"], memory["w_hr"] = (
            _padded(w_hh.mT),
            None if w_hr is None else _padded(w_hr.mT),
        )
    numbers = {"detach_every": detach_every}
    loop = _Loop("CudaBackward", cell, size, library, how, memory, numbers, float(grad_clip))

    def with_library(stream: int) -> None:
        for i in reversed(range(size.T)):
            if i + 1 < size.T:  # nothing comes from after the last step
                _multiply(sent[1 - i % 2, ..., :K], w_hh, sums)
            if w_hr is not None:
                loop.kernels.step(i, True, stream)
                _multiply(sent_state[..., :P], w_hr, sums)
            loop.kernels.step(i, False, stream)

    loop.run(with_library)


class _Loop:
    """The kernels of a loop, which know its memory by address."""

    def __init__(
        self,
        kind: str,
        cell: Cell,
        size: Sizes,
        library: bool,
        how: str,
        memory: Tensors,
        numbers: dict[str, int],
        *more: float,
    ):
        values = {name: t.data_ptr() for name, t in memory.items() if t is not None}
        values["T"], values["N"], values["rows"], values["D"] = size.T, size.N, size.rows, size.D
        values["H"], values["P"], values["G"] = size.H, size.P, cell.gates
        values |= numbers
        self.memory, self.device, self.library = memory, memory["y"].device, library
        self.kind, self.arguments = kind, (cell.name, how, library, values, *more)
        self.chain = (kind, cell.name, how, library, *values.items(), *more, self.device)

    @functools.cached_property
    def kernels(self):
        """Not needed where a graph of theirs is replayed."""
        return getattr(KERNELS, self.kind)(*self.arguments)

    def run(self, with_library: Callable[[int], None]) -> None:
        """Runs all steps; `with_library` does in the library schedule."""
        on_gpu = self.device.type == "cuda"

        def current() -> int:
            return torch.cuda.current_stream(self.device).cuda_stream if on_gpu else 0

        def chain() -> None:
            stream = current()  # another one while the chain is recorded
            with_library(stream) if self.library else self.kernels.run(stream)

        with torch.cuda.device(self.device) if on_gpu else contextlib.nullcontext():
            if on_gpu and not torch.cuda.is_current_stream_capturing():
                graphs.repeat((*self.chain, current()), chain)
            else:
                chain()
