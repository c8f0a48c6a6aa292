"""A GPU on which `fastrnn.tune` measures, its clock, and what was measured, all faked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastrnn.call import Call
from fastrnn.dispatch import cuda, gpu, kept, selftest, triton, tuned
from fastrnn.dispatch.choice import Question
from fastrnn.dispatch.tuned import Lattice
from fastrnn.table import weight_names
from fastrnn.tuning import measure
from fastrnn.tuning.shapes import Kind

GPU = torch.device("cuda", 0)
KERNELS = SimpleNamespace(NAME="triton")
MODES = ("inference", "inference graph", "training", "training graph")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """An own file of a GPU without a name."""
    state = SimpleNamespace(name="A100")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "machine", lambda device: state.name)
    another_process(monkeypatch)
    return state


def another_process(monkeypatch) -> None:
    monkeypatch.setattr(tuned, "FILE", kept.File("tuned.json"))
    monkeypatch.setattr(tuned, "_tables", {})


def lattice(ours: dict, packed: bool = False, inputs: int = 0, captured=None) -> Lattice:
    """Of a GRU in float16, with the points and whether ours are faster there."""
    axes = [tuple(sorted({point[k] for point in ours})) for k in range(3)]
    times = {}
    for point, wins in ours.items():
        times[point] = dict.fromkeys(tuned.MODES, (1.0, 2.0 if wins else 0.5))
        graphs = wins if captured is None else captured
        times[point] |= {f"{m} graph": (1.0, 2.0 if graphs else 0.5) for m in tuned.MODES}
    return Lattice("triton", "gru", "float16", packed, 1, 1, inputs, *axes, times)


def asked(T: int, N: int, H: int, **fields) -> Question:
    plain = Question("triton", 8, "gru", "float16", False, 1, T, N, H, False, 1, H)
    return plain._replace(**fields)


@pytest.fixture
def a100(monkeypatch):
    """CPU tensors are taken for those of a GPU that nobody has tried, with the Triton kernels."""
    state = SimpleNamespace(reason=None, tests=0)

    def refused(*_):
        state.tests += 1
        return state.reason

    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(cuda, "_missing", "not compiled")
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    monkeypatch.setattr(selftest, "refused", refused)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return state


def call_of(T: int = 10, N: int = 1, H: int = 128, layers: int = 1, **fields) -> Call:
    x, h0 = (torch.empty(size, dtype=torch.float16) for size in ((T, N, H), (layers, N, H)))
    return Call(x, None, h0, None, [], "gru", weight_names(True, False), **fields)


class Clock:
    """Time as the calls of a fake take it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeGpu(measure.Gpu):
    """A GPU on which calls take the seconds that a function gives."""

    major = 8

    def __init__(self, seconds):
        self.device, self._clock, self._seconds = GPU, Clock(), seconds
        self.points, self.waiting, self.why = [], 0.0, None

    def obstacle(self, kernels, kind):
        return self.why

    def contenders(self, kernels, kind, point):
        self.points.append(point)
        for mode in MODES:
            pair = self._seconds(kind, point, mode)

            def run(seconds):
                self.waiting += seconds

            yield mode, tuple((lambda s=s: run(s)) for s in pair)

    def synchronize(self):  # only then is the work done
        self._clock.now += self.waiting
        self.waiting = 0.0


KIND = Kind("gru", torch.float16, "float16", False, 1, 1, 0, (10, 20), (1, 8), (128,))


def of_small_batches(kind, point, mode) -> tuple[float, float]:
    return (1e-3, 2e-3) if point[1] == 1 else (2e-3, 1e-3)
