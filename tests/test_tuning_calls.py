"""The calls that `fastrnn.tune` measures, on the CPU."""

from __future__ import annotations

import pytest
import torch
import tuned_gpu
from conftest import assert_matches
from tuned_gpu import GPU, KERNELS, KIND, MODES

from fastrnn.dispatch import cudnn, gpu, reference, triton, tuned
from fastrnn.tuning import measure

machine = tuned_gpu.machine  # fixtures


@pytest.mark.parametrize(
    "kind",
    [
        KIND._replace(dtype=torch.float32, inputs=5),
        KIND._replace(dtype=torch.float32, cell="lstm", layers=2, directions=2),
        KIND._replace(dtype=torch.float32, cell="rnn_relu", packed=True),
    ],
)
def test_both_make_the_same_call(kind, monkeypatch):
    monkeypatch.setattr(cudnn, "takes_whole", lambda what: True)
    what = measure.layers_of(kind, (4, 3, 8), torch.device("cpu"))
    assert what.call.mean_steps() == 4 and what.call.h0.shape[1:] == (3, 8)
    for call in (measure.inference, measure.training):
        found = call(triton if triton.INTERPRETED else reference, what)
        wanted = call(cudnn, what)
        assert len(found) == len(wanted) >= 2
        assert len(found) == (
            2 + len(what.call.weights) if call is measure.training else len(found)
        )
        for a, b in zip(found, wanted, strict=True):
            assert_matches(a, b.detach().double())
    assert not measure.inference(reference, what)[0].requires_grad
    alone = measure.layers_of(kind, (4, 1, 8), torch.device("cpu"))
    assert alone.call.mean_steps() == 4


@pytest.mark.parametrize("packed", [False, True])
def test_calls_by_themselves_and_from_a_graph(packed, monkeypatch):
    """Of packed input, which cuDNN cannot have in a graph, by themselves alone."""
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    machine = measure.Gpu(torch.device("cpu"))
    ran, recorded = [], []
    for mode in tuned.MODES:
        monkeypatch.setattr(measure, mode, lambda backend, what, m=mode: ran.append((m, backend)))

    def replayed(run):
        recorded.append(run)
        return lambda: (ran.append("graph"), run())

    monkeypatch.setattr(machine, "replayed", replayed)
    kind = KIND._replace(dtype=torch.float32, packed=packed)
    for _, pair in (found := list(machine.contenders(KERNELS, kind, (4, 3, 8)))):
        for run in pair:
            run()
    names = tuned.MODES if packed else MODES
    assert [name for name, _ in found] == list(names)
    wanted = []
    for name in names:
        for backend in (KERNELS, cudnn):
            wanted += ["graph"] * name.endswith(" graph") + [(name.split()[0], backend)]
    assert ran == wanted and len(recorded) == (0 if packed else 4)


def test_a_graph_is_recorded_on_a_stream_of_its_own(monkeypatch):
    """Which waits for what the call needs, and for which the replays wait."""
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            events.append(f"on {self.name}")

        def __exit__(self, *_):
            events.append(f"off {self.name}")

    class Graph:
        def replay(self):
            events.append("replay")

    def graph(_, stream):
        return Stream(f"graph of {stream.name}")

    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"own of {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    replay = measure.Gpu(GPU).replayed(lambda: events.append("run"))
    replay()
    own = "own of cuda:0"
    assert events == [
        f"{own} waits for current", f"on {own}", *["run"] * measure.WARM, f"off {own}",
        f"current waits for {own}", f"on graph of {own}", "run", f"off graph of {own}", "replay",
    ]  # fmt: skip
