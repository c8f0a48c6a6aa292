"""The loops over time, `gpu.layer.Loops`, in the schedule that `choose` names."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...call import Sizes
from ...table import Cell
from .. import choice, gpu
from ..gpu import graphs
from ..gpu.loops import Tensors
from . import INTERPRETED, NAME, PROGRAMS, printed
from .backward import backward as backward_kernel
from .cells import STEPS, Steps
from .choose import Device, Plan, choose, launches, of_rows
from .forward import forward as forward_kernel


def forward(cell: Cell, size: Sizes, tensors: Tensors) -> None:
    """As `gpu.layer.Loops` says."""
    memory = tensors.copy()
    h0 = memory.pop("h0")
    memory["h"] = torch.stack((h0, h0))
    D, N, H = size.D, size.N, size.H
    m = cell.second or tensors["w_hr"] is not None
    memory["m"] = h0.new_empty(D, N, H) if m else None
    memory["sums"] = _sums(cell, h0, D, N, cell.hidden_gates, H)
    launch(forward_kernel, cell, size, memory, {}, _kinds(memory, size))


def backward(
    cell: Cell, size: Sizes, tensors: Tensors, detach_every: int, grad_clip: float
) -> list[Tensor]:
    """As `gpu.layer.Loops` says."""
    none = dict.fromkeys(("hidden", "d_hidden", "d_units", "d_rows"))
    memory = none | tensors
    kinds = _kinds(memory, size)
    units, (D, N, H) = kinds.count("u"), (size.D, size.N, size.H)
    if units:
        shape = units, D, N, H
        memory["d_units"] = memory["y"].new_zeros(shape, dtype=torch.float32)
    if units < len(kinds):
        memory["d_rows"] = memory["y"].new_zeros(len(kinds) - units, D, size.rows, H)
    memory["sums"] = _sums(cell, memory["y"], D, N, 2, H)
    limits = {"detach_every": detach_every, "grad_clip": float(grad_clip), "CLIP": grad_clip > 0}
    launch(backward_kernel, cell, size, memory, limits, kinds)
    of_units, of_rows = (iter([] if (d := memory[n]) is None else d) for n in ("d_units", "d_rows"))
    found = []
    for kind in kinds:
        d = next(of_units).sum(1) if kind == "u" else next(of_rows)
        found.append(d.sum(-1, keepdim=True, dtype=torch.float32) if kind == "n" else d)
    return [d.to(memory["y"].dtype) for d in found]


def sums_units(cell: Cell) -> bool:
    """Whether the step of a cell sums over units."""
    return cell.name in PROGRAMS and PROGRAMS[cell.name].row_sums


def _sums(cell: Cell, like: Tensor, *shape: int) -> Tensor | None:
    """Room for sums that one launch of a step leaves to another, if there are such cells."""
    apart = cell.second or sums_units(cell)
    return like.new_empty(shape, dtype=torch.float32) if apart else None


def _kinds(memory: dict, size: Sizes) -> str:
    """The kind of each parameter, see `tiles.parameters`; they become one tensor, or None."""
    params = memory.pop("params", ())
    memory["step_params"] = torch.cat([param.flatten() for param in params]) if params else None
    return "".join(
        "u" if param.dim() == 2 else "n" if param.size(-1) < size.H else "w" for param in params
    )


def device_of(tensor: Tensor, functions: bool) -> Device:
    """What the choice reads of the device of a tensor, for a cell that may be a function.

    On a CPU, under the interpreter, programs run one after the other: they cannot meet.
    """
    if not tensor.is_cuda:
        return Device(processors=0, shared=227 << 10)
    may_meet = choice.may_meet(NAME, gpu.nvidia(tensor.device), functions)
    return _of_gpu(tensor.device)._replace(stepwise=not may_meet)


@functools.cache
def _of_gpu(device: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 64 << 10)
    tall = torch.version.hip is None and properties.major in (9, 10)
    return Device(properties.multi_processor_count, shared, properties.warp_size, tall)


def precision(tensor: Tensor) -> str:
    """How products are made, see `tiles.product`: in TF32 where torch's own products are."""
    if INTERPRETED and tensor.dtype == torch.bfloat16:
        return "widen"  # the interpreter would multiply the bits
    tf32 = torch.version.hip is None and gpu.precision(tensor.dtype) == "tf32"
    return "tf32" if tf32 else "ieee"


def plans_for(
    kernel, cell: Cell, size: Sizes, projected: bool, dtype: torch.dtype, how: str, device: Device
) -> list[tuple[int, Plan]]:
    """The launches of `kernel` for a step, or for all steps, as `launches` says; `how` is its
    `precision`."""
    depth = cell.hidden_gates * (size.H if kernel is backward_kernel else size.P)
    if projected:
        depth += size.P if kernel is backward_kernel else size.H
    ieee = how == "ieee" and dtype == torch.float32
    units, whole = max(size.H, size.P), sums_units(cell)
    plan = choose(units, depth, size.N, size.D, dtype.itemsize, ieee, device, whole)
    rows = of_rows(units, device) if whole else None
    return launches(plan, rows, cell.second > 0, projected, kernel is backward_kernel)


@functools.cache
def steps(name: str) -> Steps:
    """The arithmetic of a cell."""
    return STEPS[name] if name in STEPS else printed.steps(PROGRAMS[name])


def constants(
    kernel, cell: Cell, size: Sizes, stages: int, plan: Plan, how: str, kinds: str = ""
) -> dict[str, object]:
    """The compile-time arguments of `kernel` that do not belong to one launch."""
    step, is_backward = steps(cell.name), kernel is backward_kernel
    return {
        "CELL": step[is_backward],
        "G": cell.gates,
        "U": cell.hidden_gates,
        "S": cell.saved,
        "FIRST": step.first_backward if is_backward else step.first_forward,
        "W": cell.second,
        "KEEPS_H": int("h" in cell.keeps),
        "OWN": cell.own,
        "OUTPUT": cell.output,
        "KINDS": kinds,
        **({"OLD": step.old, "NEW": step.new} if is_backward else {"V": step.saved_first}),
        "D": size.D,
        "H": size.H,
        "P": size.P,
        "UNIT_TILES": plan.unit_tiles(max(size.H, size.P)),
        "BLOCK_N": plan.block_n,
        "BLOCK_U": plan.block_u,
        "BLOCK_K": plan.block_k,
        "PERSISTENT": plan.persistent,
        "PRECISION": how,
        "STAGES": stages,
    }


def options(plan: Plan, units: int) -> dict[str, object]:
    """The compiler's and launcher's options of a plan."""
    return {
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
        "enable_fp_fusion": True,
        "launch_cooperative_grid": plan.persistent and plan.unit_tiles(units) > 1,
    }


# By device where programs of its launches say that they waited in vain: one number on the host,
# which they write and nobody has to fetch.
_lost: dict[torch.device, Tensor] = {}


def _watched(device: torch.device, meet: bool) -> Tensor | None:
    """That number, for a launch whose programs meet.

    Raises:
        RuntimeError: an earlier launch left word there.
    """
    lost = _lost.get(device)
    if lost is None:
        if not meet:
            return None
        pinned = device.type == "cuda"
        with torch.inference_mode(False):
            lost = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=pinned)
        lost = _lost.setdefault(device, lost)
    if lost[0]:
        lost.zero_()
        raise RuntimeError(
            f"programs of an earlier launch of the Triton kernels on {device} waited in vain for "
            "each other, and its results are wrong: take another backend, and please report this"
        )
    return lost if meet else None


def launch(
    kernel,
    cell: Cell,
    size: Sizes,
    tensors: Tensors,
    numbers: dict[str, int | float],
    kinds: str = "",
) -> None:
    """Launches `kernel`, one of the two.

    Args:
        tensors: its pointers by name, but for `meetings` and `lost`.
        numbers: its arguments besides, which differ between the two.
        kinds: of the cell's parameters, see `tiles.parameters`.
    """
    if size.N == 0:
        return  # else a graph of nothing
    w_hh, projected = tensors["w_hh"], tensors["w_hr"] is not None
    how = precision(w_hh)
    device = device_of(w_hh, cell.step is not None)
    plans = plans_for(kernel, cell, size, projected, w_hh.dtype, how, device)
    persistent, units = plans[0][1].persistent, max(size.H, size.P)
    lost = _watched(w_hh.device, persistent and plans[0][1].unit_tiles(units) > 1)
    groups = [plan.row_blocks(size.N) * size.D for _, plan in plans]
    meetings = torch.zeros(groups[0], dtype=torch.int32, device=w_hh.device)
    fixed = [
        constants(kernel, cell, size, stages, plan, how, kinds) | options(plan, units)
        for stages, plan in plans
    ]

    def run(first: int, last: int) -> None:
        for count, (_, plan), each in zip(groups, plans, fixed, strict=True):
            kernel[(count * plan.unit_tiles(units),)](
                **tensors,
                meetings=meetings,
                lost=lost,
                T=size.T,
                N=size.N,
                rows=size.rows,
                first=first,
                last=last,
                **numbers,
                **each,
            )

    def chain() -> None:
        if persistent:
            run(0, size.T)
            return
        for i in range(size.T):
            step = i if kernel is forward_kernel else size.T - 1 - i
            run(step, step + 1)

    # Triton launches on the current device, whichever holds the tensors.
    with gpu.current(w_hh.device):
        capturing = not w_hh.is_cuda or torch.cuda.is_current_stream_capturing()
        if persistent or capturing:
            chain()
            return
        addresses = tuple(None if t is None else t.data_ptr() for t in tensors.values())
        stream = torch.cuda.current_stream().cuda_stream
        compiled = tuple(value for each in fixed for value in each.values())
        key = (kernel, size, w_hh.dtype, w_hh.device, stream, *compiled, *numbers.values())
        graphs.repeat((key, addresses, meetings.data_ptr()), chain, launches=size.T * len(plans))
