"""What the Triton backend decides without a GPU: plan, graphs, reasons why it cannot run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import OrderedDict

import pytest

from fastrnn.dispatch import triton
from fastrnn.dispatch.gpu import graphs
from fastrnn.dispatch.triton.choose import RESERVED, Device, choose, power_of_two

A100, H100 = Device(108, 163 << 10), Device(132, 227 << 10, tall=True)
MI300 = Device(304, 64 << 10, lanes=64)
INTERPRETER = Device(0, 227 << 10)


def lstm(H: int, N: int, device: Device = H100, D: int = 1, itemsize: int = 2, ieee: bool = False):
    return choose(H, 4 * H, N, D, itemsize, ieee, device)


@pytest.mark.parametrize("device", [A100, H100, MI300, INTERPRETER], ids=str)
def test_every_plan_can_run(device):
    sizes = itertools.product(
        [1, 15, 64, 100, 128, 129, 320, 512, 768, 1024, 4096], [1, 16, 17, 64, 1000], [1, 2], [2, 4]
    )
    for units, N, D, itemsize in sizes:
        for gates, ieee in itertools.product([1, 3, 4], [False, True]):
            plan = choose(units, gates * units, N, D, itemsize, ieee and itemsize == 4, device)
            for tile in (plan.block_n, plan.block_u, plan.block_k):
                assert tile == power_of_two(tile)
            assert plan.num_warps in (1, 2, 4, 8)
            assert plan.unit_tiles(units) * plan.block_u >= units
            assert plan.row_blocks(N) * plan.block_n >= N
            if plan.persistent:
                held = gates * units * plan.block_u * itemsize
                assert held + RESERVED <= device.shared
                programs = plan.unit_tiles(units) * plan.row_blocks(N) * D
                assert plan.unit_tiles(units) == 1 or programs <= device.processors


def test_schedules():
    # one program owns all units, alone
    assert lstm(100, 64)[:3] == (True, 16, 128)
    assert lstm(128, 1).unit_tiles(128) == 1
    # programs that share rows, as many as there are processors
    assert lstm(512, 64)[:3] == (True, 16, 32) and lstm(512, 64).unit_tiles(512) == 16
    assert lstm(512, 64, D=2).persistent and not lstm(512, 512).persistent
    # the weights of a program do not fit, or compiling them would take too long
    assert not lstm(2048, 16).persistent and not lstm(1024, 1).persistent
    # full float32 has no room for weights, the interpreter no way to meet
    assert not lstm(64, 1, itemsize=4, ieee=True).persistent
    assert lstm(64, 1, INTERPRETER).persistent and not lstm(512, 1, INTERPRETER).persistent


def test_graphs_replay_what_repeats(monkeypatch):
    monkeypatch.setattr(graphs, "_chains", OrderedDict())
    done = []

    def record(run):
        done.append("record")
        return lambda: done.append("replay")

    for _ in range(3):
        graphs.repeat("a", lambda: done.append("run"), record)
    assert done == ["run", "record", "replay", "replay"]
    for k in range(graphs.LIMIT - 1):
        graphs.repeat(k, lambda: None, record)
    graphs.repeat("a", lambda: done.append("run"), record)
    assert done[4:] == ["replay"]  # used since, so not the oldest
    for k in range(graphs.LIMIT):
        graphs.repeat(("other", k), lambda: None, record)
    graphs.repeat("a", lambda: done.append("run"), record)
    assert done[5:] == ["run"] and len(graphs._chains) == graphs.LIMIT


def test_reasons():
    assert triton.missing("3.6.0") is None and triton.missing("3.10.1") is None
    remedy = "on Linux, pip install 'triton>=3.6'"
    assert triton.missing("3.2.0") == f"Triton 3.2.0 is too old; {remedy}"
    assert triton.missing(None) == f"there is no Triton; {remedy}"


def test_without_gpu_or_interpreter():
    script = """
import sys, torch, fastrnn
assert "triton" not in sys.modules
assert fastrnn.backends()["triton"] == "there is no GPU that torch can use"
try:
    with fastrnn.backend("triton"):
        pass
except RuntimeError as error:
    print(error)
fastrnn.LSTM(2, 2)(torch.randn(1, 2))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    run = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=120)
    assert result.stdout == "backend 'triton' cannot run: there is no GPU that torch can use\n"
