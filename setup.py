"""Builds the extension `fastrnn._C`; the metadata stands in pyproject.toml.

The environment variable FASTRNN_BUILD says what to compile:

    auto  what this machine can; with no working C++20 compiler, a pure Python package (default)
    none  nothing: a pure Python package, which runs on PyTorch's own kernels
    cpu   the CPU kernels, or fail
    cuda  the CPU and the CUDA kernels, or fail

CUDA kernels need nvcc, of CUDA_HOME or on PATH, but no GPU; "auto" compiles them where torch has
CUDA too. TORCH_CUDA_ARCH_LIST says for which GPUs, as in torch's own extensions.
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

sys.path.insert(0, str(Path("csrc", "cuda")))
import nvcc  # noqa: E402

# The stable ABI of this version of torch: one build serves every later one.
TORCH_TARGET = ("TORCH_TARGET_VERSION", "0x020b000000000000")

# No -march: each csrc/cpu/isa_*.cpp selects its own instruction set by a pragma.
FLAGS = "-std=c++20 -O3 -g0 -ffp-contract=fast -fno-math-errno -fno-trapping-math".split()
FLAGS += "-fvisibility=hidden -Wall -Wextra".split()

PROBE = "#include <Python.h>\n#include <concepts>\nstatic_assert(std::integral<int>);\n"


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


def extension(cuda: bool) -> dict:
    """The arguments of `setup` that build `fastrnn._C`."""
    import pybind11
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            if cuda:
                self.extensions[0].extra_objects = nvcc.objects(Path(self.build_temp, "cuda"))
            super().build_extensions()

    # As system headers, torch's do not drown our own warnings.
    system = [pybind11.get_include(), *cpp_extension.include_paths()]
    sources = ["csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp"))]
    module = Extension(
        "fastrnn._C",
        sources=sources + sorted(glob("csrc/cuda/*.cpp")) * cuda,
        depends=["setup.py", *glob("csrc/**/*.h", recursive=True), *glob("csrc/cuda/*.cu*")],
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=[
            TORCH_TARGET,
            ("FASTRNN_FLAGS", f'"{shlex.join(FLAGS)}"'),
            ("FASTRNN_CUDA", str(int(cuda))),
        ],
        extra_compile_args=FLAGS + [arg for path in system for arg in ("-isystem", path)],
        library_dirs=cpp_extension.library_paths() + (nvcc.library_dirs() if cuda else []),
        # The stable ABI lives here. Not CppExtension, which adds libtorch_python, the unstable one.
        libraries=["torch_cpu", *(nvcc.LIBRARIES if cuda else [])],
        # torch may bring the CUDA runtime as a shared library: each keeps to its own.
        extra_link_args=["-Wl,--exclude-libs,libcudart_static.a"] * cuda,
        language="c++",
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


mode = os.environ.get("FASTRNN_BUILD", "auto")
if mode not in ("auto", "none", "cpu", "cuda"):
    sys.exit(f"FASTRNN_BUILD must be auto, none, cpu or cuda, got {mode!r}")

reason = None if mode == "none" else obstacle()
if reason and mode != "auto":
    sys.exit(f"FASTRNN_BUILD={mode}: {reason}")
if reason:
    print(f"fastrnn: pure Python package, no kernels: {reason}", file=sys.stderr)
if mode == "none" or reason:
    setup()
else:
    import torch

    cuda = mode == "cuda" or (mode == "auto" and torch.version.cuda is not None)
    reason = nvcc.obstacle() if cuda else None
    if reason and mode == "cuda":
        sys.exit(f"FASTRNN_BUILD=cuda: {reason}")
    if reason:
        print(f"fastrnn: no CUDA kernels: {reason}", file=sys.stderr)
    setup(**extension(cuda and not reason))
