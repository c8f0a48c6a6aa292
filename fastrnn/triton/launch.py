"""Runs a kernel over all steps of a layer, in the schedule that `choose` names."""

from __future__ import annotations

import torch
from torch import Tensor

from . import INTERPRETED, graphs
from .backward import backward
from .cells import Cell
from .choose import Device, choose


def device_of(tensor: Tensor) -> Device:
    """What the choice reads of the device of a tensor.

    On a CPU, under the interpreter, programs run one after the other: they cannot meet.
    """
    if not tensor.is_cuda:
        return Device(processors=0, shared=227 << 10)
    properties = torch.cuda.get_device_properties(tensor.device)
    shared = getattr(properties, "shared_memory_per_block_optin", 64 << 10)
    return Device(properties.multi_processor_count, shared)


def precision(tensor: Tensor) -> str:
    """How products of blocks are made, see `tiles.product`: TF32 where torch's own products use it."""
    if INTERPRETED and tensor.dtype == torch.bfloat16:
        return "widen"  # the interpreter would multiply the bits
    allowed = torch.version.hip is None and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tensor.dtype == torch.float32 and allowed else "ieee"


def launch(
    kernel,
    cell: Cell,
    size,
    tensors: dict[str, Tensor | None],
    numbers: dict[str, int | float],
    constants: dict[str, object],
) -> None:
    """Launches `kernel`, `forward` or `backward`.

    Args:
        cell: what the layer consists of.
        size: a `reference.Sizes`.
        tensors: its pointers by name, but for `meetings`.
        numbers: run-time numbers of its own.
        constants: compile-time constants of its own.
    """
    w_hh, w_hr = tensors["w_hh"], tensors["w_hr"]
    reverse = kernel is backward
    units = max(size.H, size.P)
    depth = cell.gates * (size.H if reverse else size.P)
    if w_hr is not None:
        depth += size.P if reverse else size.H
    how = precision(w_hh)
    ieee = how == "ieee" and w_hh.dtype == torch.float32
    plan = choose(units, depth, size.N, size.D, w_hh.element_size(), ieee, device_of(w_hh))

    tiles = plan.unit_tiles(units)
    groups = plan.row_blocks(size.N) * size.D
    meetings = torch.zeros(groups, dtype=torch.int32, device=w_hh.device)
    constants = constants | {
        "G": cell.gates,
        "S": cell.saved,
        "KEEPS": cell.keeps,
        "D": size.D,
        "H": size.H,
        "P": size.P,
        "UNIT_TILES": tiles,
        "BLOCK_N": plan.block_n,
        "BLOCK_U": plan.block_u,
        "BLOCK_K": plan.block_k,
        "PERSISTENT": plan.persistent,
        "PRECISION": how,
    }
    options = {
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
        "enable_fp_fusion": True,
    }
    if plan.persistent and tiles > 1:
        options["launch_cooperative_grid"] = True

    def run(first: int, last: int, part: int) -> None:
        kernel[(groups * tiles,)](
            **tensors,
            meetings=meetings,
            T=size.T,
            N=size.N,
            rows=size.rows,
            first=first,
            last=last,
            **numbers,
            PART=part,
            **constants,
            **options,
        )

    if plan.persistent:
        run(0, size.T, 0)
        return

    def chain() -> None:
        for i in range(size.T):
            step = size.T - 1 - i if reverse else i
            for part in (0,) if w_hr is None else (1, 2):
                run(step, step + 1, part)

    if w_hh.is_cuda and not torch.cuda.is_current_stream_capturing():
        addresses = tuple(None if t is None else t.data_ptr() for t in tensors.values())
        key = kernel, size, w_hh.dtype, w_hh.device, plan, how, addresses
        graphs.repeat((*key, *numbers.values(), *constants.values()), chain)
    else:
        chain()
