"""Compile and link the CUDA sources without a GPU, and list what each kernel takes.

    python csrc/cuda/check.py [--build FOLDER] [--jobs N] [--sources FILE ...]

Architectures and flags are those of the build, see nvcc.py. A kernel that spills registers, a
source that does not compile and objects that do not link against the static CUDA runtime are
errors. Standard library and nvcc alone.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nvcc

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
FLAGS = [*nvcc.FLAGS, "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra"]


@dataclass
class Kernel:
    """A kernel on one architecture, as ptxas describes it; sizes in bytes."""

    name: str  # mangled
    arch: str  # sm_90a
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0


def parse(text: str) -> list[Kernel]:
    """The kernels that the output of `ptxas -v` describes, in its order.

    A function that kernels call, which has no registers of its own, is there only if it spills.
    """
    kernels: dict[tuple[str, str], Kernel] = {}
    arch, kernel = "", None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            arch = found[2]
            kernel = kernels.setdefault((found[1], arch), Kernel(found[1], arch))
        elif found := re.search(r"Function properties for (\S+)", line):
            kernel = kernels.setdefault((found[1], arch), Kernel(found[1], arch))
        elif kernel is None:
            continue
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            kernel.stack, kernel.spill_stores, kernel.spill_loads = map(int, found.groups())
        elif found := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernel.shared = int(shared[1]) if shared else 0
    return [kernel for kernel in kernels.values() if kernel.registers or kernel.spills]


def shorten(name: str) -> str:
    """A demangled name without what all have: return type, namespaces, parameters, casts."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\((?:\w+::)*\w+\)(?=-?\w)", "", name)  # (int)32, (fastrnn::cuda::Dtype)1
    name = re.sub(r"\b(?:\w+::)+", "", name)
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == "(":
            name = name[:at]
            break
        if depth == 0 and letter == " ":
            return shorten(name[at + 1 :])
    return re.sub(r"\s+(?=>)", "", name)


def short_names(names: list[str]) -> dict[str, str]:
    """Readable names by mangled ones; the mangled ones themselves where there is no c++filt."""
    if not names or not (tool := shutil.which("cu++filt") or shutil.which("c++filt")):
        return {name: name for name in names}
    text = "\n".join(names)
    run = subprocess.run([tool], input=text, capture_output=True, text=True, check=True)
    return {name: shorten(line) for name, line in zip(names, run.stdout.splitlines(), strict=True)}


def table(kernels: list[Kernel]) -> str:
    """A line for each kernel; those that spill are marked."""
    names = short_names([kernel.name for kernel in kernels])
    head = ("kernel", "arch", "registers", "shared", "stack", "spill stores", "spill loads")
    lines = [head]
    for kernel in sorted(kernels, key=lambda k: (names[k.name], k.arch)):
        numbers = (kernel.registers, kernel.shared, kernel.stack)
        numbers += (kernel.spill_stores, kernel.spill_loads)
        mark = "  SPILLS" if kernel.spills else ""
        lines.append((names[kernel.name], kernel.arch, *map(str, numbers), mark))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = []
    for line in lines:
        cells = [line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in range(7)]
        text.append("  ".join(cells) + "".join(line[7:]))
    return "\n".join(text)


def compile_one(tool: str, source: Path, build: Path) -> tuple[Path, str, float]:
    """The object of a source, what the compiler said and the seconds that it took."""
    start = time.monotonic()
    target = build / (source.stem + ".o")
    command = [
        tool,
        *FLAGS,
        *nvcc.targets_of(source),
        f"-I{ROOT / 'csrc'}",
        "-c",
        source,
        "-o",
        target,
    ]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{run.stdout}")
    return target, run.stdout, time.monotonic() - start


def link(tool: str, objects: list[Path], target: Path) -> None:
    """A shared object that needs no CUDA library at run time and leaves no name open."""
    command = [tool, "-shared", "-cudart=static", "-Xlinker=--no-undefined", *objects, "-o", target]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise RuntimeError(f"{target.name} does not link:\n{run.stdout}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda-check")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--sources", type=Path, nargs="*", default=sorted(FOLDER.glob("*.cu")))
    chosen = parser.parse_args(words)
    start = time.monotonic()
    try:
        tool = nvcc.find()
        if tool is None:
            raise FileNotFoundError("there is no nvcc in CUDA_HOME or on PATH")
        chosen.build.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool:
            results = list(
                pool.map(lambda file: compile_one(tool, file, chosen.build), chosen.sources)
            )
        link(tool, [target for target, _, _ in results], chosen.build / "fastrnn_cuda.so")
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    kernels = parse("\n".join(output for _, output, _ in results))
    print(table(kernels))
    times = zip(chosen.sources, results, strict=True)
    print(", ".join(f"{source.name} {result[2]:.0f} s" for source, result in times))
    spills = sum(kernel.spills for kernel in kernels)
    print(
        f"{len(kernels)} kernels, {spills} of them spill; "
        f"compiled and linked in {time.monotonic() - start:.0f} s"
    )
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
