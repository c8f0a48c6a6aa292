"""A layer on the CUDA kernels: forward and backward are one op each, see csrc/cuda/layer.cpp.

In the stepwise schedule one launch does a step, two where the layer has a projection. In the
library schedule torch makes the products, and a launch after each does the rest. In the persistent
schedule one launch does all steps: no GPU has run its kernels yet, so only the environment chooses
it. Everything is on torch's current stream, and launches that repeat are replayed as a graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ... import _C
from ...call import SCHEMA, Call
from ...checks import check_lengths
from ...results import Cotangents, Gradients, Needs, Results, Saved
from .. import choice, gpu
from ..gpu import graphs, precision
from ..gpu.gradients import of_h0
from ..gpu.layer import checked
from ..gpu.packing import packing
from . import NAME

# What csrc/cuda/run.h knows. Where nobody has tried the kernels, "auto" makes no persistent launch.
schedule = "auto persistent" if os.environ.get("FASTRNN_PERSISTENT") == "1" else "auto"

_HOW = "str precision, str schedule, int stream, bool repeats"
_library = torch.library.Library("fastrnn", "FRAGMENT")
_library.define(
    f"cuda_forward(Tensor? row_lengths, Tensor? offsets, bool save, {_HOW}, {SCHEMA}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "cuda_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, "
    "Tensor output, Tensor? gates, Tensor? cells, Tensor? hidden, "
    "bool need_input, bool need_state, bool need_weights, "
    "Tensor? row_lengths, Tensor? offsets, Tensor? earlier, Tensor? last, "
    f"{_HOW}, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor[])"
)
_forward = torch.ops.fastrnn.cuda_forward.default
_backward = torch.ops.fastrnn.cuda_backward.default


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend` says."""
    lengths, offsets, _ = _packed(call)
    output, h_n, c_n, gates, cells, hidden = _run(_forward, call, lengths, offsets, save)
    if call.c0 is None:
        c_n = cells = None
    if not save:
        return Results(output, h_n, c_n)
    return Results(output, h_n, c_n, gates, cells, hidden if call.projected else None)


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend` says."""
    lengths, offsets, earlier = _packed(call)
    last = None
    if call.h0.size(0) == 2 and (call.lengths is not None or lengths is not None):
        last = _last_rows(call, lengths, offsets)
    given = (*cotangents[:4], *saved, *needs, lengths, offsets, earlier, last)
    input, h0, c0, weights = _run(_backward, call, *given)
    if needs.state and call.has_features:
        if call.reset is not None:
            h0.masked_fill_(call.reset[0][:, None], 0)
        h0 = of_h0(h0, cotangents.h_n, call.lengths, call.grad_clip)
    return Gradients(input, h0, c0, weights)


def _schedule(device: torch.device) -> str:
    """The schedule of a call that this thread makes."""
    if tested := choice.tested():
        return tested
    if schedule == "auto persistent" and not choice.may_meet(NAME, gpu.nvidia(device), False):
        return "auto"
    return schedule


def _run(op: Callable, call: Call, *given) -> tuple:
    """The op on the device of the input. Where it raises, the words are those of every backend."""
    input = call.input
    try:
        how = precision(input.dtype), _schedule(input.device)
        if call.lengths is not None and call.lengths.is_cpu:
            check_lengths(call.lengths, input.size(0))
        if not input.is_cuda:
            return op(*given, *how, 0, False, *call)
        with gpu.current(input.device):
            stream = torch.cuda.current_stream().cuda_stream
            repeats = not torch.cuda.is_current_stream_capturing()
            return op(*given, *how, stream, repeats, *call)
    except RuntimeError as error:
        checked(call)
        if text := _out_of_memory(str(error), input.device):
            raise torch.OutOfMemoryError(f"{text}. {_described(call)}") from error
        raise


_LOST = "API call failed at"  # in place of all words of torch, before 2.13
_known: dict[torch.device, int] = {}  # how often memory had run out


def _out_of_memory(text: str, device: torch.device) -> str | None:
    """The words of an error if it is that memory ran out, or None: torch's stable ABI leaves the
    words, and before 2.13 not even these. The allocator then counted it."""
    if "out of memory" in text:
        return text.rstrip(". \n")
    if _LOST not in text:
        return None
    count = torch.cuda.memory_stats(device).get("num_ooms", 0)
    before, _known[device] = _known.get(device, 0), count
    if count <= before:
        return None
    free, total = torch.cuda.mem_get_info(device)
    return f"CUDA out of memory on {device}, where {free} of {total} bytes are free: {text}"


def _described(call: Call) -> str:
    """What asked for memory."""
    shapes = tuple(call.input.shape), tuple(call.h0.shape)
    return f"It was a layer {call.cell} with an input of {shapes[0]} and a state of {shapes[1]}."


def _replay(key: bytes, stream: int, launches: int, run: Callable[[int], None]) -> None:
    def chain() -> None:
        run(torch.cuda.current_stream().cuda_stream)

    graphs.repeat((key, stream), chain, launches=launches)


if hasattr(_C, "cuda_replay_by"):
    _C.cuda_replay_by(_replay)


def _packed(call: Call) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Lengths, offsets and earlier rows of packed input."""
    if call.batch_sizes is None:
        return None, None, None
    return packing(call.steps(call.sizes()), call.input.device)


def _last_rows(call: Call, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """The row of the last step of each batch row, with which the reverse direction begins."""
    N = call.h0.size(1)
    if offsets is None:
        step = (call.lengths - 1).clamp(0, call.input.size(0) - 1)
        offset = step * N
    else:
        offset = offsets[lengths - 1]
    return offset + torch.arange(N, device=offset.device)
