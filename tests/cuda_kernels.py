"""The CUDA kernels to be tested: those of a GPU if there is one, else emulated on CPU tensors.

The emulation (tests/cpp/emulate.h) runs the same source, thread by thread. It proves arithmetic,
addresses and what waits for what, not what real memory does besides, and not speed. Who imports
this is skipped where there is neither.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import pytest
from conftest import KERNELS
from layers import Ops
from op_cases import backward, cotangents, moved
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastrnn.dispatch import cuda

ON_GPU = cuda.status() is None
EMULATED = Path(__file__).parents[1] / "build/emulated.so"


def emulation_loads() -> bool:
    """Whether the emulation is there and, if it needs the address sanitizer, that is too."""
    name = "__asan_init"
    return EMULATED.exists() and (
        name.encode() not in EMULATED.read_bytes() or hasattr(ctypes.CDLL(None), name)
    )


if KERNELS is None or not (ON_GPU or emulation_loads()):
    pytest.skip("there is no GPU; `make emulated` runs the emulation", allow_module_level=True)

from fastrnn.dispatch.cuda import launch  # noqa: E402  (needs the compiled kernels)

DEVICE = "cuda" if ON_GPU else "cpu"
on_device = partial(moved, DEVICE)
HOW = ["float32", "tf32", "float16", "bfloat16", "float64"]


@cache
def emulation() -> ModuleType:
    """The emulated kernels, which are the ops' on a CPU from then on. What is launched has run when
    the call returns. A process loads the module once."""
    spec = importlib.util.spec_from_file_location("emulated", EMULATED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels() -> ModuleType:
    """The module that has what is bound of the kernels."""
    return KERNELS if ON_GPU else emulation()


if not ON_GPU:
    emulation()

_ops = Ops(launch.run, launch.run_backward)
layer_inference, layer_forward, layer_backward = (
    _ops.layer_inference, _ops.layer_forward, _ops.layer_backward
)  # fmt: skip


# Ways of the persistent schedule: units of a block, and batch rows of a group. A block has the
# whole layer, or blocks form a cluster, or they go through memory.
WAYS = {"whole": (None, 8), "cluster": (32, 3), "memory": (16, 4)}
# By schedule: batch rows and units. They cross the tiles of 16 rows and of 8 or 16 units, the rows
# of a group and the units of a block.
SIZES = {"stepwise": (18, 17), "library": (3, 5)}
SIZES |= {"whole": (11, 37), "cluster": (7, 70), "memory": (6, 66)}


def force(monkeypatch, schedule: str, how: str = "") -> None:
    """Makes every loop that can run by this schedule, or one of WAYS, and float32 products in TF32
    if `how` says so."""
    if schedule in WAYS:
        units, rows = WAYS[schedule]
        schedule = f"persistent {units or 256 // (4 if how == 'tf32' else 2)} {rows}"
    monkeypatch.setattr(launch, "schedule", schedule)
    if how == "tf32":
        monkeypatch.setattr(launch, "precision", lambda _: "tf32")


def in_several_orders(args: tuple) -> list[list[Tensor]]:
    """All results and gradients of a call, once for each of some orders of threads."""
    runs = []
    for seed in range(1 if ON_GPU else 4):
        if not ON_GPU:
            emulation().seed(seed)
        results = layer_forward(*args)
        grads = [g.to(args[0].dtype) for g in cotangents(results)]
        gradients = backward(layer_backward, args, results, grads)
        runs.append([*results, *gradients[:3], *gradients[3]])
    return runs


def as_precise(how: str, value):
    """TF32 rounds factors as float16 does, and is held to its tolerance."""
    narrow = tree_map_only(Tensor, lambda t: t.half() if how == "tf32" else t, value)
    return tree_map_only(Tensor, Tensor.cpu, narrow)
