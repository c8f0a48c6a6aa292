"""The backend "cpu": the compiled kernels, for tensors on the CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ...call import Call
from ...programs.program import Program
from ...results import Cotangents, Gradients, Needs, Results, Saved, room
from ...torch_private import constant_in_graphs, precision_of_onednn
from . import op

NAME = "cpu"
# Those of the kernels, and float16, which `ops.layer` widens to float32.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> tuple[ModuleType | None, str | None]:
    """The kernels, which register themselves, or why they cannot be loaded."""
    try:
        return importlib.import_module("fastrnn._C"), None
    except ImportError as error:
        return None, _why_not_built(error)


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


def _open() -> object | None:
    """`fastrnn._C.Direct` of torch's classes, or None without kernels or without DLPack."""
    try:
        return _kernels and _kernels.Direct(torch.Tensor, torch.nn.Parameter)
    except (AttributeError, ValueError):  # a torch without DLPack 1
        return None


_kernels, not_built = _load()
# The kernels past the dispatcher, which costs more than a layer of one small step.
direct = _open()
# The instruction sets with instructions for products of bfloat16.
OF_BFLOAT16 = ("amx", "avx512bf16", "neonbf16")
# Whether the CPU has such instructions, which the kernels use.
MULTIPLIES_BFLOAT16 = bool(_kernels) and _kernels.isa() in OF_BFLOAT16

# Whether products of float32 may be made of bfloat16: each large call is then asked how many parts
# are `allowed`.
asks = False
# Of the three bfloat16 that a float32 is the sum of, those that torch's settings leave.
_PARTS = {"tf32": 2, "bf16": 1}
# Steps times batch times P times P of a call that is worth a question, unless it is one step of few
# rows, which is multiplied in float32.
LARGE, FEW_ROWS = 2**16, 32


def set_in_parts(which: str) -> None:
    """Which layers of float32 are multiplied as bfloat16, if there are kernels for that: "never",
    "where faster" or "always"."""
    global asks
    _kernels.set_in_parts(which)
    asks = which != "never" and _kernels.has_parts()


@constant_in_graphs
def allowed() -> int:
    """How many parts of a float32 its products use, by what torch is told of oneDNN.

    The first that is not "none" counts, of `torch.backends.mkldnn.rnn.fp32_precision` and
    `torch.backends.mkldnn.matmul.fp32_precision`. "tf32" leaves two, whose products err less than
    TF32, and "bf16" leaves one.
    """
    for products in ("rnn", "matmul"):
        precision = precision_of_onednn(products)
        if precision != "none":
            return _PARTS.get(precision, 3)
    return 3


def is_large(steps: int, batch: int, P: int) -> bool:
    """Whether a call with an output of that width is worth the question, with gradients or not."""
    return (steps > 1 or batch > FEW_ROWS) and steps * batch * P * P >= LARGE


def asked(call: Call) -> Call:
    """The call with as many parts as it has and are allowed now."""
    if not torch.compiler.is_compiling():  # a graph is for all sizes
        batch, P = call.h0.shape[-2:]
        in_time = call.input if call.batch_sizes is None else call.batch_sizes
        if not is_large(1 if call.is_step else in_time.size(0), batch, P):
            return call
    parts = min(call.parts, allowed())
    return call if parts == call.parts else call._replace(parts=parts)


def _default() -> str:
    """No CPU with AMX has run its kernels, so they wait for the user's word. Those that round wait
    for torch's setting alone."""
    told = os.environ.get("FASTRNN_AMX_FLOAT32") == "1"
    return "where faster" if told or _kernels.isa() != "amx" else "never"


if _kernels:
    set_in_parts(_default())


def register(program: Program) -> None:
    """Has the kernels know a cell made of a function, under the program's name."""
    if _kernels:
        _kernels.register_program(**program._asdict())


def stream_class() -> type:
    """What runs the layers of a `Streamer`: the kernels, or PyTorch's own where none are built."""
    if _kernels:
        return _kernels.Stream
    from ..cudnn.stream import Stream

    return Stream


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


def _dense(call: Call) -> Call:
    """The call with what the user gives it contiguous."""
    input, h0, c0 = call.input, call.h0, call.c0
    if input.is_contiguous() and h0.is_contiguous() and (c0 is None or c0.is_contiguous()):
        return call
    c0 = None if c0 is None else c0.contiguous()
    return call._replace(input=input.contiguous(), h0=h0.contiguous(), c0=c0)


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend` says. What the kernels do not take as it lies, goes through the op."""
    rank = 3 if call.c0 is None else call.c0.dim()
    if direct is not None and call.h0.dim() == rank == 3 and call.input.dim() > 1:
        dense = _dense(call)
        results = room(dense, save)
        output, h_n, c_n, *saved = results
        saved = tuple(saved) if save else ()
        if direct.run(dense, call.h0.size(0), None, (output,), h_n, c_n, saved):
            return results
    return op.run(call, save)


def run_step(call: Call) -> Results | None:
    """`run` of a cell's call as it is, without views that have a time, and what backward needs;
    None if the kernels do not take that as it lies."""
    if direct is None:
        return None
    dense = _dense(call)
    results = room(dense, True)
    output, h, c, *saved = results
    return results if direct.run(dense, 1, None, (output,), h, c, tuple(saved)) else None


def run_backward_of_step(
    call: Call, cotangents: Cotangents, saved: Saved, needs: Needs
) -> Gradients | None:
    """`run_backward` of such a call."""
    return _past_dispatcher(call, cotangents, saved, needs, torch.empty_like)


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend` says."""
    found = _past_dispatcher(call, cotangents, saved, needs, torch.empty_like)
    return op.run_backward(call, cotangents, saved, needs) if found is None else found


def run_backward_of_rows(
    call: Call, cotangents: Cotangents, saved: Saved, needs: Needs
) -> Gradients | None:
    """The same with the weights' gradients of each row of the batch, (N, ...); None where the
    kernels have none: in half precision, with lengths, or of packed input."""
    rows = call.h0.size(1)
    return _past_dispatcher(
        call, cotangents, saved, needs, lambda weight: weight.new_empty(rows, *weight.shape)
    )


def _past_dispatcher(
    call: Call,
    cotangents: Cotangents,
    saved: Saved,
    needs: Needs,
    room_for: Callable[[Tensor], Tensor],
) -> Gradients | None:
    """The gradients, of a weight where `room_for` it makes room. None if the kernels do not take
    that as it lies."""
    if direct is None:
        return None
    dense = _dense(call)
    came = tuple([None if g is None else g.contiguous() for g in cotangents])
    empty_like = torch.empty_like
    gradients = Gradients(
        empty_like(dense.input) if needs.input else None,
        empty_like(dense.h0) if needs.state else None,
        empty_like(dense.c0) if needs.state and call.c0 is not None else None,
        list(map(room_for, call.weights)) if needs.weights else [],
    )
    return gradients if direct.run_backward(dense, came, saved, gradients) else None
