"""`_C.Stream` where no kernels are built, over the same memory: PyTorch's own kernels, or of a cell
that a user made the definition."""

from __future__ import annotations

import ctypes
import math
import threading

import torch
from torch import Tensor

from ...call import Call
from ...table import cell_named, weight_shapes
from .. import reference


class Stream:
    """The layers of a `Streamer`. Addresses are of dense memory of the CPU. `formats` and `wide`
    are of small weights, which it has not.

    Weights are copied, but for the last `inputs` of each layer, (N, H), which are read at each
    call; the state is read and written in place.
    """

    def __init__(
        self,
        cell: str,
        double: bool,
        layers: int,
        batch: int,
        input_size: int,
        hidden: int,
        width: int,
        heads: int,
        names: str,
        inputs: int,
        weights: list[int],
        h: int,
        c: int,
        formats: list[tuple[int, int]],
        wide: bool,
    ) -> None:
        self._dtype = torch.float64 if double else torch.float32
        self._holder = threading.RLock()
        kind, each = cell_named(cell), names.split()
        self._sizes = batch, input_size, width
        self._h = self._at(h, layers, batch, width)
        self._c = self._at(c, layers, batch, kind.own * hidden) if c else None
        own, addresses = [], iter(weights)
        for k in range(layers):
            shapes = weight_shapes(kind, width if k else input_size, hidden, width)
            shapes["w_hh"] = kind.hidden_gates * hidden, width // heads
            for i, name in enumerate(each, inputs - len(each)):
                if i < 0:
                    shape = shapes.get(name, (hidden,))  # a param's, if it is of no product
                    own.append(self._at(next(addresses), *shape).clone())
                else:
                    own.append(self._at(next(addresses), batch, hidden))
        self._made = kind.step is not None
        if self._made:
            self._layers = [own[at : at + len(each)] for at in range(0, len(own), len(each))]
            self._names = cell, names
        else:
            self._options = own, "b_ih" in names, layers, 0.0, False, False, False
            self._function = getattr(torch, cell)

    def _at(self, address: int, *shape: int) -> Tensor:
        size = math.prod(shape) * self._dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=self._dtype, device="cpu")
        memory = (ctypes.c_byte * size).from_address(address)
        return torch.frombuffer(memory, dtype=self._dtype).view(shape)

    def __enter__(self) -> Stream:
        """No other thread may use it meanwhile; RuntimeError if one does now."""
        if not self._holder.acquire(blocking=False):
            raise RuntimeError("another thread is using this stream: give each thread its own")
        return self

    def __exit__(self, *_) -> None:
        self._holder.release()

    def step(self, x: int, y: int) -> None:
        """The next step, from the input at one address to the output at the other."""
        self.steps(x, y, 1)

    def steps(self, x: int, y: int, count: int) -> None:
        """So many steps: x (count, N, input_size) to y (count, N, state)."""
        batch, input_size, width = self._sizes
        given = self._at(x, count, batch, input_size)
        with self, torch.no_grad():
            output = self._as_defined(given) if self._made else self._by_torch(given)
            self._at(y, count, batch, width).copy_(output)

    def _by_torch(self, x: Tensor) -> Tensor:
        hx = self._h if self._c is None else (self._h, self._c)
        output, h_n, *c_n = self._function(x, hx, *self._options)
        self._h.copy_(h_n)
        if self._c is not None:
            self._c.copy_(c_n[0])
        return output

    def _as_defined(self, x: Tensor) -> Tensor:
        rows = torch.full((len(x),), x.size(1), device="cpu")
        packed = x.flatten(0, 1)
        for k, weights in enumerate(self._layers):
            h, c = self._h[k : k + 1], None if self._c is None else self._c[k : k + 1]
            results = reference.run(Call(packed, rows, h, c, weights, *self._names), save=False)
            h.copy_(results.h_n)
            if c is not None:
                c.copy_(results.c_n)
            packed = results.output
        return packed.view(len(x), x.size(1), -1)
