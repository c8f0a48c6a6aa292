"""The Triton kernels compiled for GPUs that are not there."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest


def run(*arguments: str, cache) -> str:
    """What Python prints, outside of the interpreter and with an empty cache of kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1200,
    )
    assert not result.stderr, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> list[dict[str, str]]:
    text = run("-m", "tools.aot", cache=tmp_path_factory.mktemp("kernels"))
    return list(csv.DictReader(text.splitlines()))


def test_every_kernel_fits_and_no_register_is_spilled(table):
    bad = [row for row in table if row["fits"] != "True"]
    bad += [row for row in table if row["target"].startswith("sm") and row["local"] != "0"]
    assert not bad


def test_the_set_is_representative(table):
    def values(*columns: str) -> set:
        return {tuple(row[column].split()[0] for column in columns) for row in table}

    assert len(values("target", "kernel", "schedule")) == 4 * 2 * 2
    assert len(values("cell", "kernel")) == 3 * 2
    assert values("target") == {("sm_80",), ("sm_90",), ("sm_100",), ("gfx942",)}
    assert values("dtype", "how") == {
        ("bf16", "ieee"), ("fp16", "ieee"), ("fp32", "tf32"), ("fp32", "ieee")
    }  # fmt: skip
    assert any(row["P"] != row["H"] for row in table)


# What Triton looks compiled kernels up by must not know T, N or where tensors lie.
KEYS = """
import torch
from triton.runtime.jit import create_function_from_signature
from triton.compiler import make_backend
from tools import aot

for kernel in (aot.forward, aot.backward):
    backend = make_backend(aot.TARGETS["sm_90"][0])
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keys = set()
    for T, N in ((1, 1), (1, 16), (16, 1), (17, 48), (10**4, 2**17)):
        numbers = dict(T=T, N=N, rows=T * N, first=T - 1, last=T, detach_every=T, grad_clip=0.5)
        values = {name: torch.empty(16) for name in kernel.arg_names}
        for name, value in numbers.items():
            if name in values:
                values[name] = value
        fixed = {p.name: 1 for p in kernel.params if p.is_constexpr}
        keys.add(str(bind(**values | fixed)[1]))
    print(kernel.__name__, len(keys))
"""


def test_nothing_is_compiled_again_for_another_length_or_batch(tmp_path):
    assert run("-c", KEYS, cache=tmp_path) == "forward 1\nbackward 1\n"


# What the interpreter cannot show of programs that meet: the launch is cooperative, arrivals are
# released and waited for with acquire at the scope of the GPU, and nothing is copied ahead of time
# in a loop that loads what the step before stored.
MEETING = """
import torch
from tools import aot

for kernel in ("forward", "backward"):
    case = aot.Case(kernel, "lstm", 192, 16, torch.bfloat16, "ieee", "sm_90")
    compiled = aot.build(case)[0]
    text = compiled.asm["ptx"]
    print(
        compiled.metadata.launch_cooperative_grid,
        any(f"{add}.global.gpu.release" in text for add in ("red", "atom")),
        "ld.global.gpu.acquire" in text,
        "cp.async" in text,
    )
"""


def test_programs_meet_in_memory(tmp_path):
    assert run("-c", MEETING, cache=tmp_path) == "True True True False\n" * 2


# Cells that are functions: their steps are printed, and compiled with the loops.
PRINTED = """
import itertools
import sys
import torch
sys.path.insert(0, "tests")
from program_cells import CELLS
from fastrnn import zoo
from fastrnn.made import register
from tools import aot

for target in ("sm_90", "gfx942"):
    for name, kinds, H, N, parts in (
        ("by hand", "", 40, 16, (0,)),
        ("lstm", "", 40, 16, (0,)),
        ("peephole", "uuu", 40, 512, (0,)),
        ("decaying_lstm", "un", 40, 16, (0,)),
        ("original_gru", "", 40, 16, (0,)),  # in one launch, and two for each step
        ("multiplicative_lstm", "u", 1000, 64, (0, 1)),
        # the second launch sums over units
        ("LayerNormLSTM", "u" * 14, 1024, 64, (0, 1)),
    ):
        made = CELLS.get(name) or getattr(zoo, name, None)
        cell = "lstm" if name == "by hand" else register(made, H, False)
        for kernel, part in itertools.product(("forward", "backward"), parts):
            case = aot.Case(kernel, cell, H, N, torch.bfloat16, "ieee", target, kinds=kinds)
            found = aot.report(case, part)
            launch = f"{kernel} {part} {found.schedule.split()[0]}"
            print(target, name, launch, found.registers, found.local, found.fits, sep=",")
"""


def test_printed_cells(tmp_path):
    """None spills or is too large, and an LSTM takes the registers of the one by hand."""
    lines = run("-c", PRINTED, cache=tmp_path).splitlines()
    found = {tuple(cells[:3]): cells[3:] for cells in (line.split(",") for line in lines)}
    assert len(found) == 2 * (5 + 2 + 2) * 2
    for of_two in ("multiplicative_lstm", "LayerNormLSTM"):
        launches = {launch for _, name, launch in found if name == of_two}
        assert launches == {f"{k} {part} step" for k in ("forward", "backward") for part in (0, 1)}
    for (target, name, launch), (registers, local, fits) in found.items():
        assert fits == "True" and (local == "0" or target == "gfx942"), (target, name, launch)
        if name == "lstm":
            assert int(registers) <= 1.1 * int(found[target, "by hand", launch][0])
