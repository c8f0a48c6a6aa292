"""What autocast makes of a call: in which dtype it is computed, and in which the results come."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call
from .dispatch import cpu
from .torch_private import is_any_autocast_enabled

CAST = (torch.float16, torch.bfloat16, torch.float32)  # the dtypes that it changes

# A call of so few rows, or of fewer products, gains less by bfloat16 than its casts cost: see
# bench/NOTES.md.
_FEW_ROWS = 32
_FEW_PRODUCTS = 4_000_000


def is_on(input: Tensor) -> bool:
    """Whether it is on for tensors such as this one."""
    return (
        is_any_autocast_enabled()
        and not input.is_meta
        and torch.is_autocast_enabled(input.device.type)
    )


def cast(call: Call, dtype: torch.dtype) -> Call:
    """The call in the dtype, where its tensors are of one that autocast changes."""
    given = call.tensors()
    if all(t.dtype is dtype or t.dtype not in CAST for t in given):
        return call
    return call.with_tensors([t.to(dtype) if t.dtype in CAST else t for t in given])


def computed_on_cpu(call: Call, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a CPU computes a call under autocast to `dtype`.

    float32 but for bfloat16, where the CPU multiplies that and the call is large enough.
    """
    if dtype is not torch.bfloat16 or not cpu.MULTIPLIES_BFLOAT16:
        return torch.float32
    if torch.compiler.is_compiling():  # for calls of any size
        return dtype
    rows = call.input.numel() // max(1, call.input.size(-1))
    products = rows * sum(weight.numel() for weight in call.weights)
    return torch.float32 if rows <= _FEW_ROWS or products < _FEW_PRODUCTS else dtype


def returned_of_few_rows(call: Call, step: bool) -> tuple[torch.dtype, torch.dtype] | None:
    """`returned_on_cpu` for a call of few rows in float32, which computes in float32, or None.

    Reads no weights.
    """
    input = call.input
    if input.dtype is not torch.float32 or input.numel() > _FEW_ROWS * input.size(-1):
        return None
    return returned_on_cpu(call, torch.get_autocast_dtype("cpu"), step)


def returned_on_cpu(call: Call, dtype: torch.dtype, step: bool) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of h and c that `torch.nn` returns on a CPU. step: from a cell."""
    kind = call.kind
    if not kind.keeps:
        return dtype, dtype
    # The state that a unit keeps has the wider of two dtypes: its own, and that of the gates.
    kept = torch.promote_types((call.c0 if kind.has_c else call.h0).dtype, dtype)
    if call.projected:
        return dtype, kept
    # oneDNN, which computes an LSTM layer of padded input, returns one dtype.
    padded = kind.has_c and call.batch_sizes is None and not step
    by_onednn = padded and call.input.dtype in (torch.float32, torch.bfloat16)
    return (dtype, dtype) if by_onednn else (kept, kept)
