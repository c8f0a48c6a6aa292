"""Builds the extension `fastrnn._C`; the metadata stands in pyproject.toml.

The environment variable FASTRNN_BUILD says what to compile:

    auto  what this machine can; with no working C++20 compiler, a pure Python package (default)
    none  nothing: a pure Python package, which runs on the reference path
    cpu   the CPU kernels, or fail
    cuda  the CPU and the CUDA kernels, or fail
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

# The stable ABI of this version of torch: one build serves every later one.
TORCH_TARGET = ("TORCH_TARGET_VERSION", "0x020b000000000000")

# No -march: each csrc/cpu/isa_*.cpp selects its own instruction set by a pragma.
FLAGS = "-std=c++20 -O3 -g0 -ffp-contract=fast -fno-math-errno -fno-trapping-math".split()
FLAGS += "-fvisibility=hidden -Wall -Wextra".split()

PROBE = "#include <Python.h>\n#include <concepts>\nstatic_assert(std::integral<int>);\n"
CUDA_SOURCES = sorted(glob("csrc/cuda/*.cu"))


def obstacle() -> str | None:
    """Why the extension cannot be compiled here, or None if it can."""
    missing = [name for name in ("torch", "pybind11") if find_spec(name) is None]
    if missing:
        return f"the build needs {' and '.join(missing)} installed"
    compiler = shlex.split(os.environ.get("CXX", "c++"))  # the one that torch will call
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        options = [*FLAGS, "-I" + sysconfig.get_path("include"), "-fPIC", "-shared"]
        command = [*compiler, *options, source, "-o", source.with_suffix(".so")]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"the C++ compiler does not run: {error}"
    if run.returncode:
        return f"{compiler[0]} does not compile C++20 with Python's headers:\n{run.stderr.strip()}"
    return None


def extension() -> dict:
    """The arguments of `setup` that build `fastrnn._C`."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    cuda = CUDA_SOURCES if torch.version.cuda and cpp_extension.CUDA_HOME else []
    # As system headers, torch's do not drown our own warnings.
    system = [pybind11.get_include(), *cpp_extension.include_paths()]
    module = Extension(
        "fastrnn._C",
        sources=["csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp")), *cuda],
        depends=["setup.py", *glob("csrc/**/*.h", recursive=True)],
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=[
            TORCH_TARGET,
            ("FASTRNN_FLAGS", f'"{shlex.join(FLAGS)}"'),
            ("FASTRNN_CUDA", str(int(bool(cuda)))),
        ],
        extra_compile_args={
            "cxx": FLAGS + [arg for path in system for arg in ("-isystem", path)],
            "nvcc": ["-std=c++20", "-O3"],
        },
        library_dirs=cpp_extension.library_paths(),
        # The stable ABI lives here. Not CppExtension, which adds libtorch_python, the unstable one.
        libraries=["torch_cpu"],
        language="c++",
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": cpp_extension.BuildExtension}}


mode = os.environ.get("FASTRNN_BUILD", "auto")
if mode not in ("auto", "none", "cpu", "cuda"):
    sys.exit(f"FASTRNN_BUILD must be auto, none, cpu or cuda, got {mode!r}")
if mode == "cuda" and not CUDA_SOURCES:
    sys.exit("FASTRNN_BUILD=cuda: there are no CUDA sources in this version of fastrnn")

reason = None if mode == "none" else obstacle()
if reason and mode != "auto":
    sys.exit(f"FASTRNN_BUILD={mode}: {reason}")
if reason:
    print(f"fastrnn: pure Python package, no kernels: {reason}", file=sys.stderr)
setup(**({} if mode == "none" or reason else extension()))
