"""Memory of the CPU kernels: how much of it waits, giving it back, and a call that finds none."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import KERNELS
from kept_bytes import bytes_kept, needs_glibc
from op_cases import Case, arguments
from torch_pairs import layers

import fastrnn

compiled = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


def train(module: torch.nn.Module, *shape: int) -> torch.Tensor:
    output = module(torch.ones(shape))[0]
    output.sum().backward()
    return output


@compiled
def test_what_waits_is_given_back():
    module = fastrnn.LSTM(64, 512)
    first = train(module, 20, 4, 64)
    assert fastrnn.release_memory() > 2**20
    assert fastrnn.release_memory() == 0
    assert torch.equal(train(module, 20, 4, 64), first)


@compiled
def test_threads_share_one_bound():
    modules = [fastrnn.LSTM(64, 512 + 16 * i) for i in range(16)]
    callers = [threading.Thread(target=train, args=(m, 20, 4, 64)) for m in modules]
    fastrnn.release_memory()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert 2**20 < fastrnn.release_memory() <= 64 * 2**20


@compiled
@needs_glibc
@pytest.mark.parametrize("cell", ["lstm_proj", "gru"])
def test_no_op_keeps_memory(cell):
    """Not even of the names that it is given, which torch 2.13 leaks: 128 bytes a call."""
    given = arguments(Case(cell, T=2, N=2, H=3))
    ops = torch.ops.fastrnn
    output, *saved = ops.layer_forward.default(*given)
    saved = output, *saved[2:]
    came = output, None, None, None, None
    assert bytes_kept(lambda: ops.layer_inference.default(*given)) < 16
    assert bytes_kept(lambda: ops.layer_forward.default(*given)) < 16
    assert bytes_kept(lambda: ops.layer_backward.default(*came, *saved, *[True] * 3, *given)) < 16
    wrong = given[0][..., :-1], *given[1:]
    assert bytes_kept(lambda: refused(ops.layer_inference.default, *wrong)) < 16


def refused(function, *arguments) -> None:
    with pytest.raises(RuntimeError):
        function(*arguments)


@compiled
@needs_glibc
@pytest.mark.parametrize("features", [False, True])
@layers
def test_no_module_keeps_memory(name, features):
    module, x = getattr(fastrnn, name)(3, 4, bidirectional=not features), torch.randn(3, 2, 3)
    asked = {"reset": torch.zeros(3, 2, dtype=torch.bool), "return_states": True}

    def call():
        return module(x, **asked if features else {})[0]

    assert bytes_kept(torch.no_grad()(call)) < 16
    assert bytes_kept(lambda: call().sum().backward()) < 16


@needs_glibc
def test_no_class_keeps_memory():
    """Of a step with a second product, which autograd ties to what recorded it, and of a user's."""

    def step(g, s, p):
        r = torch.sigmoid(g.x_r)
        return (1 - r) * torch.tanh(g.x_n + g.w_n(r * s.h)) + r * s.h

    class Own(torch.nn.LSTM):
        pass

    def convert():
        return fastrnn.convert(torch.nn.Sequential(type("Own", (Own,), {})(2, 3)))

    cell = fastrnn.Cell(step, gates="x:r x:n w:n", states="h")
    assert bytes_kept(lambda: cell.program(8), 20) < 1000  # 49 KB
    assert bytes_kept(convert, 20) < 1000  # 12 KB


@compiled
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("freed", ["weights", "input"])
def test_a_storage_that_was_freed(name, freed):
    """As FSDP frees one. The kernels would read from address 0, or take the weight for absent. Some
    calls meet an operation of torch's first, which says so in its own words."""
    module = getattr(fastrnn, name)(3, 4)
    x = torch.randn(2, 3) if name.endswith("Cell") else torch.randn(5, 2, 3)
    for each in module.parameters() if freed == "weights" else [x]:
        each.untyped_storage().resize_(0)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="stora|alloc"):
            module(x)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_stream_whose_weights_were_freed(weights):
    module = fastrnn.GRU(3, 4)
    stream = fastrnn.Streamer(module, weights=weights)
    before = stream.step(torch.ones(1, 3)).clone()
    module.weight_hh_l0.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="a weight must be a tensor with memory"):
        stream.refresh()
    stream.reset()
    assert torch.equal(stream.step(torch.ones(1, 3)), before)  # those that it took before


def test_without_kernels_nothing_waits(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastrnn._C", None)
    assert fastrnn.release_memory() == 0


LIMITED = """
import resource, sys, torch
from torch import nn
import fastrnn

name, job, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)

def run(module, x):
    if job == "training":
        output = module(x)[0]
        output.sum().backward()
        return output
    with torch.no_grad():
        return module(x)[0]

def pages():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

module, torchs = fastrnn.{0}(40, 400, 2), nn.{0}(40, 400, 2)
x = torch.randn(30, 16, 40)
wanted = run(module, x).detach()
said, spare = set(), 0
while True:
    fastrnn.release_memory()
    resource.setrlimit(resource.RLIMIT_AS, (pages() + spare * 2**20, -1))
    try:
        output = run(module, x)
    except Exception as error:
        said.add((type(error).__name__, "DefaultCPUAllocator: can't allocate memory" in str(error)))
        output = None
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    if output is not None:
        break
    spare += 2
print(sorted(said), spare > 0, torch.equal(output.detach(), wanted))
"""


@compiled
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("job", ["training", "inference"])
@layers
def test_a_call_that_finds_no_memory(name, job, threads):
    """With less memory than it needs, in steps of 2 MiB: wherever it ends, the error is torch's,
    and the process goes on to a good call."""
    program = LIMITED.replace("{0}", name)
    run = subprocess.run(
        [sys.executable, "-c", program, name, job, str(threads)], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[('RuntimeError', True)] True True", run.stdout + run.stderr
