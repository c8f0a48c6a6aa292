"""What the host takes for a call on the CUDA kernels, without a GPU: `python -m bench.host`.

The ops are those of the extension, compiled for CPU tensors with loops that do nothing. What a GPU
adds is not in the figures: its launches, streams, and graphs. What is: checks, memory, the products
before and after the loop, of tensors so small that they take no time, and everything of PyTorch's.
"""

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pybind11
import torch
from torch.utils import cpp_extension

from fastrnn import ops
from fastrnn.call import Call
from fastrnn.dispatch import cuda
from fastrnn.results import Cotangents, Needs, Saved
from fastrnn.table import weight_names

ROOT = Path(__file__).parent.parent
SOURCES = ["bench/nothing.cpp", "csrc/cells.cpp", "csrc/cpu/programs.cpp"]
SOURCES += ["csrc/cuda/layer.cpp", "csrc/cuda/schedule.cpp"]
T, N, I, H = 4, 2, 4, 4
TURNS, CALLS = 1500, 4


def load(folder: Path) -> None:
    """Compiles the ops and loads them into this process."""
    target = folder / "nothing.so"
    system = [sysconfig.get_path("include"), pybind11.get_include(), *cpp_extension.include_paths()]
    flags = shlex.split(
        "-std=c++20 -O3 -DFASTRNN_EMULATED -fPIC -shared -fvisibility=hidden -Icsrc"
    )
    paths = [arg for path in system for arg in ("-isystem", path)]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [
        "c++",
        *flags,
        *paths,
        *SOURCES,
        *libraries,
        "-ltorch_cpu",
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    spec = importlib.util.spec_from_file_location("nothing", target)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def least(function: Callable[[], object]) -> float:
    """Microseconds of a call: the least of many turns of a few."""
    for _ in range(300):
        function()
    best = float("inf")
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(CALLS):
            function()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


class Nothing(torch.autograd.Function):
    """What PyTorch takes for a function of as many tensors as a layer: it saves and returns as
    many, and computes none."""

    @staticmethod
    def forward(ctx, results, saved, gradients, *tensors):
        ctx.save_for_backward(*tensors, *saved)
        ctx.gradients = gradients
        return tuple(each.detach() for each in results)

    @staticmethod
    def backward(ctx, *_):
        assert ctx.saved_tensors
        return None, None, None, *ctx.gradients


def contenders() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    lstm = torch.nn.LSTM(I, H)
    states = torch.randn(T, N, I), None, torch.randn(1, N, H), torch.randn(1, N, H)
    weights = [weight.detach() for weight in lstm.parameters()]
    plain = Call(*states, weights, "lstm", weight_names(True, False))
    leaves = plain.with_tensors([t.clone().requires_grad_() for t in plain.tensors()])
    output, h_n, c_n, *rest = cuda.run(plain, True)
    results, saved = (output, h_n, c_n), Saved(output, *rest)
    ones = [torch.ones_like(each) for each in results]
    given = saved, Needs(True, True, True)
    found = cuda.run_backward(plain, Cotangents(*ones, None), *given)
    found = (*found[:3], *found.weights)
    kept = [each for each in saved if each is not None]

    def training():
        made = ops.layer(leaves, cuda)[:3]
        torch.autograd.grad(made, leaves.tensors(), ones)

    def loss():
        ops.layer(leaves, cuda).output.backward(ones[0])

    def nothing():
        made = Nothing.apply(results, kept, found, *leaves.tensors())
        torch.autograd.grad(made, leaves.tensors(), ones)

    def forward():
        return cuda.run(plain, True)

    def backward():
        return cuda.run_backward(plain, Cotangents(*ones, None), *given)

    return {
        "inference, ops.layer": lambda: ops.layer(plain, cuda),
        "forward that saves, without autograd": forward,
        "backward, without autograd": backward,
        "both, one after the other": lambda: (forward(), backward()),
        "training, torch.autograd.grad of all results": training,
        "training, backward() of the output": loss,
        "an autograd.Function that does nothing, by torch.autograd.grad": nothing,
    }


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load(Path(folder))
    from fastrnn.dispatch.cuda import launch

    launch.schedule = "stepwise"
    for name, function in contenders().items():
        print(f"{name:64}{least(function):7.1f} us", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
