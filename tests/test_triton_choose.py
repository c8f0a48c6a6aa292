"""What the Triton backend decides without a GPU: plan, device, reasons why it cannot run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from several_gpus import entered

from fastrnn.call import Sizes
from fastrnn.dispatch import triton
from fastrnn.dispatch.gpu import graphs
from fastrnn.dispatch.triton.choose import (
    ALL,
    CELL_STAGE,
    FIRST_STAGE,
    PROJECTION,
    RESERVED,
    SECOND_PRODUCT,
    STATE_PRODUCT,
    SUMMED,
    Device,
    Plan,
    choose,
    launches,
    of_rows,
    power_of_two,
)
from fastrnn.table import CELLS

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


@pytest.mark.parametrize("device", [A100, H100, MI300, INTERPRETER], ids=str)
def test_sums_over_units(device):
    """One program of a persistent plan has all units of its rows, and few rows. Others leave what
    sums to programs that have a row, or some, and as many threads as a processor takes."""
    sizes = itertools.product([1, 40, 64, 65, 128, 129, 513, 1024, 1025, SUMMED], [1, 2000], [2, 4])
    for units, N, itemsize in sizes:
        for ieee in {False, itemsize == 4}:
            plan = choose(units, 4 * units, N, 1, itemsize, ieee, device, whole=True)
            if plan.persistent:
                assert (plan.unit_tiles(units), plan.block_n) == (1, 16)
            assert plan.persistent or plan == choose(
                max(units, 129), 4 * units, N, 1, itemsize, ieee, device._replace(stepwise=True)
            )
        rows = of_rows(units, device)
        assert rows.unit_tiles(units) == 1 and not rows.persistent
        threads, elements = rows.num_warps * device.lanes, rows.block_n * rows.block_u
        assert 128 <= threads <= 512 and rows.num_warps == power_of_two(rows.num_warps * 16) // 16
        assert elements <= threads * (2 if units <= 512 else 4 if units <= 2048 else 8)
    assert of_rows(40, device).block_n == 4 and of_rows(300, device).block_n == 1


PLAN, ROWS = Plan(False, 16, 16, 16, 4, 2), Plan(False, 1, 64, 16, 4, 1)


def test_launches():
    """Each stage is done once, in order. One that sums over units is not with a product."""
    assert launches(PLAN._replace(persistent=True), ROWS, True, False, False)[0][0] == ALL
    assert launches(PLAN, None, False, False, True) == [(ALL, PLAN)]
    u, first, w, cell, p = STATE_PRODUCT, FIRST_STAGE, SECOND_PRODUCT, CELL_STAGE, PROJECTION
    for backward in (False, True):
        assert launches(PLAN, None, True, False, backward) == [(u + first, PLAN), (w + cell, PLAN)]
        assert launches(PLAN, ROWS, False, False, backward) == [(u, PLAN), (cell, ROWS)]
        found = launches(PLAN, ROWS, True, False, backward)
        assert found == [(u, PLAN), (first, ROWS), (w, PLAN), (cell, ROWS)]
    assert launches(PLAN, None, False, True, False) == [(u + cell, PLAN), (p, PLAN)]
    assert launches(PLAN, None, False, True, True) == [(u, PLAN), (p + cell, PLAN)]
    assert launches(PLAN, ROWS, False, True, False) == [(u, PLAN), (cell, ROWS), (p, PLAN)]
    assert launches(PLAN, ROWS, False, True, True) == [(u, PLAN), (p, PLAN), (cell, ROWS)]


@pytest.mark.parametrize("persistent", [False, True])
def test_launches_are_made_on_the_device_of_the_tensors(persistent, monkeypatch):
    """Triton takes the current device and stream, whatever the arguments lie on."""
    launch = pytest.importorskip("fastrnn.dispatch.triton.launch", reason="there is no Triton")
    current, launched, chains = entered(monkeypatch), [], []

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: launched.append(current[-1])

    w = SimpleNamespace(
        is_cuda=True, device=torch.device("cuda", 1), dtype=torch.float32, data_ptr=lambda: 16
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(launch, "device_of", lambda *_: H100)
    monkeypatch.setattr(launch, "precision", lambda tensor: "tf32")
    monkeypatch.setattr(launch, "plans_for", lambda *_: [(ALL, Plan(persistent, 16, 16, 16, 4, 2))])
    monkeypatch.setattr(launch, "constants", lambda *_: {})
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.empty(1))

    def repeat(key, run, launches):
        assert launches == 3
        chains.append(key)
        run()

    monkeypatch.setattr(graphs, "repeat", repeat)
    size = Sizes(T=3, N=1, I=16, H=16, P=16, D=1, rows=3)
    launch.launch(Kernel(), CELLS["lstm"], size, {"w_hh": w, "w_hr": None}, {})
    assert launched == [1] * (1 if persistent else 3) and current == [0]
    assert persistent or 11 in chains[0][0]


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
