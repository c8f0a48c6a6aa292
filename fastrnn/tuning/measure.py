"""Times of our kernels and of PyTorch's own, in the same call."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from .. import modules, stack
from ..call import Call, Stack
from ..dispatch import choice, cudnn, gpu, selftest
from ..dispatch.tuned import MODES, Point
from ..table import cell_named, weight_names
from .shapes import Kind

Run = Callable[[], object]
Pair = tuple[float, float]  # ms of ours and of PyTorch's own

TURN = 4e-3  # seconds for which one of the two is called before the other
ROUNDS = 7
WARM = 3  # calls that compile, load and record

MODULES = {
    "lstm": (modules.LSTM, {}),
    "gru": (modules.GRU, {}),
    "rnn_tanh": (modules.RNN, {}),
    "rnn_relu": (modules.RNN, {"nonlinearity": "relu"}),
}


class Machine(Protocol):
    """Where calls are measured."""

    device: torch.device
    major: int  # of its compute capability

    def obstacle(self, kernels: ModuleType, kind: Kind) -> str | None:
        """Why our kernels are not to be taken for such calls at all, or None."""

    def measure(self, kernels: ModuleType, kind: Kind, point: Point) -> dict[str, Pair] | None:
        """The times by mode, or None where the call does not fit in memory."""


def layers_of(kind: Kind, point: Point, device: torch.device) -> Stack:
    """The call, with parameters as a module has them, which is how cuDNN wants them."""
    T, N, H = point
    module, options = MODULES[kind.cell]
    made = module(
        kind.inputs or H,
        H,
        num_layers=kind.layers,
        bidirectional=kind.directions == 2,
        device=device,
        dtype=kind.dtype,
        **options,
    )
    width = T
    if kind.packed:  # lengths from half of the mean to one and a half
        end = 0.5 if N > 1 else 0.0
        around = torch.linspace(end, -end, N, device="cpu")
        lengths = (T * (1 + around)).round().long().clamp(min=1)
        width = int(lengths.max())
    x = torch.randn(width, N, kind.inputs or H, device=device, dtype=kind.dtype)
    sizes = None
    if kind.packed:
        x, sizes, *_ = pack_padded_sequence(x, lengths)
    h0 = x.new_zeros(kind.layers * kind.directions, N, H)
    c0 = h0.clone() if cell_named(kind.cell).has_c else None
    names = weight_names(True, False)
    call = Call(x.requires_grad_(), sizes, h0, c0, made._flat_weights, kind.cell, names)
    return Stack(call, kind.layers, kind.directions, 0.0, False)


def inference(backend: ModuleType, what: Stack) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in stack.run_on(backend, what) if t is not None and t.numel()]


def training(backend: ModuleType, what: Stack) -> list[Tensor]:
    """Forward, and backward of all that a layer in a model passes on."""
    output = stack.run_on(backend, what)[0]
    leaves = [what.call.input, *what.call.weights]
    return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def alternate(pair: tuple[Run, Run], clock: Callable[[], float], synchronize: Run) -> Pair:
    """Milliseconds of each: the medians of turns that they take."""

    def turn(run: Run, count: int) -> float:
        began = clock()
        for _ in range(count):
            run()
        synchronize()
        return (clock() - began) / count

    counts = []
    for run in pair:
        turn(run, WARM)
        counts.append(max(1, math.ceil(TURN / max(turn(run, 1), 1e-9))))
    found: tuple[list[float], list[float]] = [], []
    for k in range(ROUNDS):
        for which in (0, 1) if k % 2 else (1, 0):
            found[which].append(turn(pair[which], counts[which]))
    ours, theirs = (1000 * statistics.median(each) for each in found)
    return ours, theirs


class Gpu:
    """An NVIDIA GPU."""

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.major, self._clock = device, gpu.nvidia(device), clock

    def obstacle(self, kernels: ModuleType, kind: Kind) -> str | None:
        call = layers_of(kind, (1, 1, 8), self.device).call
        if reason := kernels.obstacle(call) or cudnn.obstacle(call):
            return reason
        tried = choice.tried(kernels.NAME, self.major, False)
        return None if tried else selftest.refused(kernels, call)

    def measure(self, kernels: ModuleType, kind: Kind, point: Point) -> dict[str, Pair] | None:
        try:
            return {
                name: alternate(pair, self._clock, self.synchronize)
                for name, pair in self.contenders(kernels, kind, point)
            }
        except torch.OutOfMemoryError:
            return None

    def contenders(
        self, kernels: ModuleType, kind: Kind, point: Point
    ) -> Iterator[tuple[str, tuple[Run, Run]]]:
        """By the name of a mode what calls ours, and PyTorch's own."""
        what = layers_of(kind, point, self.device)
        for mode, call in zip(MODES, (inference, training), strict=True):

            def ours(call: Callable = call) -> object:
                return call(kernels, what)

            def theirs(call: Callable = call) -> object:
                return call(cudnn, what)

            yield mode, (ours, theirs)
            if not kind.packed:  # of which cuDNN copies the lengths in each call
                yield f"{mode} graph", (self.replayed(ours), self.replayed(theirs))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def replayed(self, run: Run) -> Run:
        """What replays a CUDA graph of `run`."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            run()
        return graph.replay
