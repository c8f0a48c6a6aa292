"""What is said where something fails inside a layer of the CUDA kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_kernels import ON_GPU, kernels, launch, on_device
from op_cases import Case, arguments

from fastrnn.call import Call


def test_these_kernels_can_run_here():
    assert kernels().cuda_misfit() is None
    built, driver = kernels().cuda_versions()
    assert built >= 12_000 and driver // 1000 >= built // 1000


def test_memory_that_ran_out_has_an_error_of_its_own(monkeypatch):
    """Which callers look for, to try a smaller batch. The words are torch's."""

    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    call = Call(*on_device(arguments(Case("lstm", T=3, N=2, H=3, dtype=torch.float32))))
    monkeypatch.setattr(launch, "_forward", full)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        launch.run(call, True)
    assert str(raised.value) == (
        "CUDA out of memory. Tried to allocate 2.00 GiB. It was a layer lstm with an input of "
        f"{tuple(call.input.shape)} and a state of {tuple(call.h0.shape)}."
    )


def test_memory_that_ran_out_before_torch_says_so(monkeypatch):
    """Where the words of an error are lost, torch's counts tell what it was."""
    lost = "aoti_torch_empty_strided(...) API call failed at bind.h, line 120, for 4096 bytes"
    call = Call(*on_device(arguments(Case("gru", T=3, N=2, H=3, dtype=torch.float32))))
    stats: dict[str, int] = {}

    def fails(*_):
        raise RuntimeError(lost)

    monkeypatch.setattr(launch, "_forward", fails)
    monkeypatch.setattr(launch, "_known", {})
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1024, 2048))
    for count, runs_out in ((0, False), (2, True), (2, False), (3, True)):
        stats["num_ooms"] = count
        with pytest.raises(RuntimeError, match="for 4096 bytes") as raised:
            launch.run(call, True)
        assert isinstance(raised.value, torch.OutOfMemoryError) is runs_out
        assert ("1024 of 2048 bytes are free" in str(raised.value)) is runs_out
        assert ("a layer gru with an input of" in str(raised.value)) is runs_out


@pytest.mark.skipif(ON_GPU, reason="an operation of the CPU is replaced")
def test_errors_of_torch_inside_a_layer_keep_their_words():
    """From torch 2.13 on. What a process replaces it replaces for good, so another does."""
    program = """
import torch
from cuda_kernels import launch
from op_cases import Case, arguments
from fastrnn.call import Call
from fastrnn.results import Cotangents, Needs, Saved

call = Call(*arguments(Case("gru", T=3, N=2, H=3, dtype=torch.float32)))
results = launch.run(call, True)
library = torch.library.Library("aten", "IMPL")

def fails(*_, out):
    raise RuntimeError("words of mm")

library.impl("mm.out", fails, "CPU")
came, saved = Cotangents(*results[:3], None), Saved(results.output, *results[3:])
try:
    launch.run_backward(call, came, saved, Needs(*[True] * 3))
except RuntimeError as error:
    print("raised:", error)
"""
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{folder}:{folder.parent}"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "words of mm" in done.stdout.partition("raised:")[2], done.stderr
