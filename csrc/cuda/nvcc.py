"""Compiles csrc/cuda with nvcc alone: the kernels include nothing of torch, so neither its tools
nor its version of CUDA have a part in it, and torch may be a build for CPUs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = ["-std=c++20", "-O3", f"-I{SOURCES.parent}", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# The static runtime serves beside every torch.
LIBRARIES = ["cudart_static", "rt", "dl", "pthread"]
# Ampere and Hopper, and code that the driver compiles for what came after. It is that of Hopper, in
# which launches may overlap: code for 8.0 cannot, and code for 9.0a runs nowhere else.
ARCHITECTURES = "8.0;9.0+PTX"
LEAST = 80
PROBE = "#include <cuda_runtime.h>\n#include <concepts>\nstatic_assert(std::integral<int>);\n"


def find() -> str | None:
    """The compiler: that of CUDA_HOME, or the one on PATH, or where CUDA is by default."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which(os.path.join(home, "bin", "nvcc"))
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def targets() -> list[str]:
    """The flags for the GPUs of TORCH_CUDA_ARCH_LIST, numbers as in "8.0;9.0a+PTX", separated by
    ; or spaces. Those that are too old are left out; ValueError if none is left."""
    flags = []
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    for item in listed.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if match is None:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST: {item!r} is not like 8.0, 8.0+PTX or 9.0a")
        number = match[1] + match[2]
        if int(number) < LEAST:
            continue
        number += match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not flags:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST={listed}: the kernels need {LEAST / 10} or more")
    return flags


def targets_of(source: Path) -> list[str]:
    """Those of a source. What needs clusters is not compiled for GPUs that have none, unless these
    are all."""
    flags = targets()
    if not source.stem.startswith("persistent"):
        return flags
    return [flag for flag in flags if int(re.search(r"compute_(\d+)", flag)[1]) >= 90] or flags


def obstacle() -> str | None:
    """Why the CUDA kernels cannot be compiled here, or None if they can."""
    compiler = find()
    if compiler is None:
        return "there is no nvcc in CUDA_HOME or on PATH"
    try:
        flags = targets()
    except ValueError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        command = [compiler, *FLAGS, *flags, "-c", source, "-o", source.with_suffix(".o")]
        run = subprocess.run(command, capture_output=True, text=True)
    return f"{compiler} does not compile:\n{run.stderr.strip()}" if run.returncode else None


def objects(folder: Path) -> list[str]:
    """Compiles csrc/cuda with nvcc alone, as it includes nothing of torch: what is out of date."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [find(), *FLAGS]
    depends = [*SOURCES.parent.glob("*.h"), *SOURCES.glob("*.h"), *SOURCES.glob("*.cuh")]
    newest = max(map(os.path.getmtime, depends))

    def compile(source: Path) -> str:
        target, made_by = (folder / f"{source.stem}.{end}" for end in ("o", "command"))
        full = [*command, *targets_of(source)]
        text = shlex.join(full)
        if (
            not target.exists()
            or target.stat().st_mtime < max(newest, os.path.getmtime(source))
            or made_by.read_text() != text
        ):
            made_by.write_text("")
            subprocess.run([*full, "-c", source, "-o", target], check=True)
            made_by.write_text(text)
        return str(target)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(compile, sorted(SOURCES.glob("*.cu"))))


def library_dirs() -> list[str]:
    """Where the CUDA runtime is, from the compiler: what is on PATH may be a script before it."""
    command = [find(), "--dryrun", "-x", "cu", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    return re.findall(r'"-L(.+?)"', text)
