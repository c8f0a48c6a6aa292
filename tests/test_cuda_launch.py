"""How the CUDA backend calls its ops: device, stream, and who keeps graphs."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from conftest import KERNELS
from several_gpus import entered

from fastrnn.call import Call
from fastrnn.dispatch.gpu import graphs

if KERNELS is None:
    pytest.skip("no compiled kernels, which the ops are registered beside", allow_module_level=True)


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("save", [False, True])
def test_launches_are_made_on_the_device_of_the_tensors(save, capturing, monkeypatch):
    """On its stream, whatever device is current. No graph is made inside one of the user's."""
    launch = importlib.import_module("fastrnn.dispatch.cuda.launch")
    current, launched = entered(monkeypatch), []

    def op(row_lengths, offsets, save, how, schedule, stream, repeats, *call):
        launched.append((current[-1], stream, repeats))
        return (None,) * 6

    monkeypatch.setattr(launch, "_forward", op)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    for index in (1, 0):
        input = SimpleNamespace(
            device=torch.device("cuda", index), is_cuda=True, dtype=torch.bfloat16
        )
        launch.run(Call(input, None, None, None, [], "lstm", ""), save)
    assert launched == [(1, 11, not capturing), (0, 10, not capturing)] and current == [0]


def test_a_chain_is_one_of_its_stream(monkeypatch):
    launch = importlib.import_module("fastrnn.dispatch.cuda.launch")
    entered(monkeypatch)
    chains, streams = [], []

    def repeat(key, chain, launches):
        chains.append((*key, launches))
        chain()

    monkeypatch.setattr(graphs, "repeat", repeat)
    for stream in (10, 12, 10):
        launch._replay(b"key", stream, 7, streams.append)
    assert chains == [(b"key", 10, 7), (b"key", 12, 7), (b"key", 10, 7)]
    assert streams == [10] * 3  # the one that is current when the chain runs
