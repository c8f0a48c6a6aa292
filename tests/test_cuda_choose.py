"""What the CUDA backend decides without a GPU: the schedule, and its tiles (csrc/cuda/choose.h)."""

from __future__ import annotations

import importlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import KERNELS
from several_gpus import entered

from fastrnn.call import Call
from fastrnn.dispatch.gpu import graphs

if KERNELS is None:
    pytest.skip("no compiled kernels, which hold choose.h", allow_module_level=True)

A100, A10, H100 = (108, 8), (72, 8), (132, 9)
SHARED = {A100: 163 << 10, A10: 99 << 10, H100: 227 << 10}  # bytes that a block can have
HOW = ["float32", "tf32", "float16", "bfloat16", "float64"]


def products(gates: int, H: int, P: int, backward: bool) -> list[tuple[int, int, int]]:
    """The products of a step as (planes, units, depth); P is H where there is no projection."""
    first = (1, P, gates * H) if backward else (gates, H, P)
    second = (1, H, P) if backward else (1, P, H)
    return [first] + [second] * (P != H)


def choose(H, N, how="bfloat16", device=H100, gates=4, P=None, D=1, backward=False):
    return KERNELS.cuda_choose(products(gates, H, P or H, backward), N, D, how, *device)


@pytest.mark.parametrize("device", SHARED, ids=["A100", "A10", "H100"])
def test_every_choice_can_run(device):
    sizes = itertools.product(
        [1, 15, 64, 100, 129, 512, 768, 1024, 4096, 20000], [0, 1, 16, 17, 64, 65, 1000, 10**6]
    )
    schedules = set()
    for (H, N), how in itertools.product(sizes, HOW):
        for gates, projected, D, backward in itertools.product(
            [1, 3, 4], [False, True], [1, 2], [False, True]
        ):
            steps = products(gates, H, H // 2 + 1 if projected else H, backward)
            library = KERNELS.cuda_choose(steps, N, D, how, *device)
            schedules.add((how, library))
            if library:
                continue
            for step in steps:
                facts = KERNELS.cuda_tiles(step, N, D, how == "float64")
                assert facts["shared"] <= SHARED[device]
                # On Hopper the next launch comes in while this one ends, beside it.
                assert device != H100 or 2 * facts["shared"] <= SHARED[device]
                assert facts["blocks"] < 2**31 and facts["threads"] <= 1024
                rows, units = facts["rows"], facts["units"]
                assert facts["unit_tiles"] * units >= step[1] > (facts["unit_tiles"] - 1) * units
                assert facts["blocks"] == D * facts["unit_tiles"] * -(-N // rows)
    assert schedules == set(itertools.product(HOW, (False, True)))


def test_schedules():
    stepwise, library = False, True
    # many blocks, so that all processors stream the weights
    assert choose(1024, 1) == choose(1024, 16) == choose(256, 32) == choose(512, 64) == stepwise
    assert choose(512, 64, backward=True) == choose(256, 256, backward=True) == stepwise
    # sizes at which the library's larger tiles win
    assert choose(1024, 64) == choose(1024, 64, "tf32") == choose(512, 256) == library
    assert choose(512, 64, "tf32", backward=True) == library
    assert choose(4096, 256) == choose(1024, 512) == choose(2048, 512, backward=True) == library
    assert choose(1024, 64, "float32") == choose(1024, 64, "float64") == library
    assert choose(128, 8, "float32") == choose(128, 8, "float64") == stepwise


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


def test_unknown_dtypes_raise():
    with pytest.raises(ValueError, match="no CUDA kernels for dtype 'int8'"):
        choose(1, 1, "int8")
