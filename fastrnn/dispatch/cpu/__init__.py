"""The backend "cpu": the compiled kernels behind the ops, for tensors on the CPU.

A call without gradients may go past the ops, see `direct`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Results, Saved

NAME = "cpu"
# Those of the kernels, and float16, which `ops.layer` widens to float32.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> str | None:
    """Loads the kernels, which register themselves; returns why they cannot be, or None."""
    try:
        importlib.import_module("fastrnn._C")
    except ImportError as error:
        return _why_not_built(error)
    return None


def _why_not_built(error: ImportError) -> str:
    """What happened to the extension, and what to type."""
    folder = Path(__file__).resolve().parents[2]
    if not isinstance(error, ModuleNotFoundError):
        return (
            f"fastrnn._C is there but does not load ({error}). "
            "Build it again, with the torch that is installed now."
        )
    record = folder / "no_kernels.txt"  # what setup.py says
    reason = record.read_text().strip() if record.is_file() else None
    if (folder.parent / "setup.py").is_file():
        return (
            f"fastrnn._C was not compiled: {reason or f'{folder} is the source folder'}. "
            f"Type `pip install --no-build-isolation -e {folder.parent}`, or start Python in "
            "another folder to import an installed copy."
        )
    return (
        f"fastrnn._C was not compiled when fastrnn was installed: {reason or 'nobody knows why'}. "
        "Install fastrnn again from its sources with FASTRNN_BUILD=cpu, which compiles it or fails."
    )


not_built = _load()


def status() -> str | None:
    """Why the kernels cannot run here, or None."""
    return not_built


def obstacle(call: Call, traced: bool = False) -> str | None:
    """Why the kernels cannot take a call, or None."""
    if not (call.input.is_cpu or call.input.is_meta):
        return f"tensors are on {call.input.device}"
    if call.input.dtype not in DTYPES:
        return f"dtype is {call.input.dtype}, the kernels take float32, float64 and bfloat16"
    # A graph is compiled for wherever it will run.
    return None if torch.compiler.is_compiling() else not_built


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend` says."""
    name = "layer_forward" if save else "layer_inference"
    return Results(*getattr(torch.ops.fastrnn, name).default(*call))


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend` says."""
    return Gradients(*torch.ops.fastrnn.layer_backward.default(*cotangents, *saved, *needs, *call))
