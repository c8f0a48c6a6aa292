"""Compiles kernels for GPUs that need not be there and reports what each takes.

`python -m tools.aot` prints a table of a representative set, with names of TARGETS one of
many more instances for these: registers of a thread, shared memory of a program, bytes of local
memory of a thread, which is where registers are spilled to, seconds to compile (0 from Triton's
cache), and whether it fits. Needs no GPU; TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastrnn.call import Sizes
from fastrnn.dispatch.triton.backward import backward
from fastrnn.dispatch.triton.choose import Device
from fastrnn.dispatch.triton.forward import forward
from fastrnn.dispatch.triton.launch import constants, options, plans_for, sums_units
from fastrnn.table import cell_named

# Processors and shared memory of A100, H100, B200 and MI300X.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 163 << 10)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 227 << 10, tall=True)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 227 << 10, tall=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 64 << 10, 64)),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FLOAT32 = ("kept", "d_kept", "d_units", "sums")
INT64 = ("lengths", "offsets")


class Case(NamedTuple):
    """One kernel instance; `how` as in `launch.precision`."""

    kernel: str
    cell: str
    H: int
    N: int
    dtype: torch.dtype
    how: str
    target: str
    projection: int = 0
    D: int = 1
    ragged: bool = False  # lengths and reset
    kinds: str = ""  # of the parameters of a cell that is a function, see `tiles.parameters`


class Report(NamedTuple):
    """What an instance takes. local: bytes of a thread, 0 unless registers were spilled."""

    schedule: str
    registers: int
    shared: int
    local: int
    seconds: float
    fits: bool


def _types(case: Case, names: list[str]) -> dict[str, str | None]:
    """The type of each argument that is not constant; None where it is not given."""
    kind = cell_named(case.cell)
    absent = {"reset", "offsets", "lengths"} - ({"reset", "lengths"} if case.ragged else set())
    if not case.projection:
        absent |= {"w_hr", "d_state"}
    if not (case.projection or kind.second):
        absent |= {"m"}
    if not (kind.second or sums_units(kind)):
        absent |= {"sums"}
    hands_back = case.kernel == "forward" or kind.step is not None
    if not (kind.keeps_hidden(case.projection > 0) and hands_back):
        absent |= {"hidden"}
    if not case.kinds:
        absent |= {"step_params"}
    if "u" not in case.kinds:
        absent |= {"d_units"}
    if not set(case.kinds) - {"u"}:
        absent |= {"d_rows"}
    if not kind.has_c:
        absent |= {"cells", "c0", "d_cells"}
    if not kind.keeps:
        absent |= {"kept", "d_kept"}
    if not kind.split:
        absent |= {"dx"}
    types: dict[str, str | None] = {}
    for name in names:
        if name in ("T", "N", "rows", "first", "last", "detach_every"):
            types[name] = "i32"
        elif name == "grad_clip":
            types[name] = "fp32"
        elif name in absent:
            types[name] = None
        elif name in ("meetings", "lost"):
            types[name] = "*i32"
        elif name == "reset":
            types[name] = "*i1"
        else:
            wide = "*fp32" if name in FLOAT32 else "*i64" if name in INT64 else None
            types[name] = wide or f"*{TYPES[case.dtype]}"
    return types


def _usage(compiled) -> tuple[int, int]:
    """(registers, bytes of local memory) of a thread."""
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers = re.search(r"\.vgpr_count:\s*(\d+)", text)
        local = re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)
        return int(registers[1]), int(local[1])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text).groups()
    return int(registers), int(stack) + int(local)


def build(case: Case, part: int = 0):
    """The compiled kernel, the plan and the device of a case. Of several launches for a step the
    first, unless `part` says which."""
    kernel = forward if case.kernel == "forward" else backward
    target, device = TARGETS[case.target]
    P = case.projection or case.H
    size = Sizes(T=1, N=case.N, I=case.H, H=case.H, P=P, D=case.D, rows=case.N)
    cell = cell_named(case.cell)
    plans = plans_for(kernel, cell, size, P != case.H, case.dtype, case.how, device)
    stages, plan = plans[part]
    fixed = constants(kernel, cell, size, stages, plan, case.how, case.kinds)
    if kernel is backward:
        fixed["CLIP"] = False
    names = [name for name in kernel.arg_names if name not in fixed]
    types = _types(case, names)
    fixed |= {name: None for name, kind in types.items() if kind is None}
    signature = {name: types.get(name) or "constexpr" for name in kernel.arg_names}
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (k,): aligned for k, name in enumerate(kernel.arg_names) if signature[name][0] == "*"
    }
    source = ASTSource(kernel, signature, fixed, attributes)
    compiled = triton.compile(source, target=target, options=options(plan, max(case.H, P)))
    return compiled, plan, device


def report(case: Case, part: int = 0) -> Report:
    """Compiles a case."""
    begin = time.perf_counter()
    compiled, plan, device = build(case, part)
    seconds = time.perf_counter() - begin
    registers, local = _usage(compiled)
    tiles = plan.unit_tiles(max(case.H, case.projection))
    schedule = f"{'persistent' if plan.persistent else 'step'} {plan.block_n}x{plan.block_u}"
    if plan.persistent:
        schedule += f" of {tiles}"
    shared = compiled.metadata.shared
    return Report(schedule, registers, shared, local, seconds, shared <= device.shared)


PRECISIONS = ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))


def representative() -> Iterator[Case]:
    """Each target, kernel and schedule, with cells and dtypes in turn."""
    cells = itertools.cycle(["lstm", "gru", "rnn_tanh"])
    for target, kernel, (H, N, dtype, how) in itertools.product(
        TARGETS,
        ("forward", "backward"),
        (
            (40, 64, torch.bfloat16, "ieee"),
            (256, 16, torch.float32, "tf32"),
            (1000, 64, torch.float32, "ieee"),
            (1024, 256, torch.float16, "ieee"),
        ),
    ):
        if target == "gfx942" and how == "tf32":
            dtype, how = torch.float16, "ieee"
        yield Case(kernel, next(cells), H, N, dtype, how, target)
    for kernel in ("forward", "backward"):
        yield Case(kernel, "lstm", 512, 64, torch.bfloat16, "ieee", "sm_90")
        yield Case(kernel, "lstm", 96, 64, torch.bfloat16, "ieee", "sm_90", 48, 2, True)
        yield Case(kernel, "lstm", 600, 64, torch.bfloat16, "ieee", "sm_90", 300, 2)


def everything(targets: list[str]) -> Iterator[Case]:
    """Hundreds for each of these targets, for those who change the tiles."""
    for target, cell, H, N, (dtype, how), kernel in itertools.product(
        targets,
        ("lstm", "gru", "rnn_tanh"),
        (16, 64, 100, 128, 256, 512, 768, 1024),
        (1, 256),
        PRECISIONS,
        ("forward", "backward"),
    ):
        if target != "gfx942" or how != "tf32":
            yield Case(kernel, cell, H, N, dtype, how, target)


def main(arguments: list[str]) -> int:
    """Prints the table; 1 if a kernel spills on an NVIDIA GPU or does not fit."""
    print("target,kernel,cell,dtype,how,H,P,N,D", *Report._fields, sep=",")
    bad = 0
    for case in everything(arguments) if arguments else representative():
        row = report(case)
        bad += not row.fits or (row.local > 0 and case.target.startswith("sm"))
        print(
            case.target, case.kernel, case.cell, TYPES[case.dtype], case.how, case.H,
            case.projection or case.H, case.N, case.D, row.schedule, row.registers, row.shared,
            row.local, f"{row.seconds:.2f}", row.fits, sep=",", flush=True,
        )  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
