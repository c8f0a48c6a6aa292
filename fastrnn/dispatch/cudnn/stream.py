"""`_C.Stream` where no kernels are built: PyTorch's own, over the same memory."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ...table import cell_named, weight_shapes


class Stream:
    """The layers of a `Streamer`, one step a call. Addresses are of dense memory of the CPU.
    `formats` and `wide` are of small weights, which it has not.

    Weights are copied; state and output are read and written in place.
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
        names: str,
        weights: list[int],
        h: int,
        c: int,
        y: int,
        formats: list[tuple[int, int]],
        wide: bool,
    ) -> None:
        self._dtype = torch.float64 if double else torch.float32
        self._input = (batch, input_size)
        self._h = self._at(h, layers, batch, width)
        self._c = self._at(c, layers, batch, hidden) if c else None
        self._y = self._at(y, batch, width)
        own, addresses, kind = [], iter(weights), cell_named(cell)
        for k in range(layers):
            shapes = weight_shapes(kind, width if k else input_size, hidden, width)
            own += [self._at(next(addresses), *shapes[name]).clone() for name in names.split()]
        self._options = own, "b_ih" in names, layers, 0.0, False, False, False
        self._function = getattr(torch, cell)

    def _at(self, address: int, *shape: int) -> Tensor:
        size = math.prod(shape) * self._dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=self._dtype)
        memory = (ctypes.c_byte * size).from_address(address)
        return torch.frombuffer(memory, dtype=self._dtype).view(shape)

    def step(self, address: int) -> None:
        """The next step, of the input at the address."""
        with torch.no_grad():
            x = self._at(address, 1, *self._input)
            hx = self._h if self._c is None else (self._h, self._c)
            output, h_n, *c_n = self._function(x, hx, *self._options)
            self._y.copy_(output[0])
            self._h.copy_(h_n)
            if self._c is not None:
                self._c.copy_(c_n[0])
