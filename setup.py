"""Builds the extension `fastrnn._C`; the metadata stands in pyproject.toml.

The environment variable FASTRNN_BUILD says what to compile:

    auto  what this machine can (default): a pure Python package where the kernels do not compile,
          with the reason in fastrnn/no_kernels.txt, which the package says to its users
    none  nothing: a pure Python package, which runs on PyTorch's own kernels
    cpu   the CPU kernels, or fail
    cuda  the CPU and the CUDA kernels, or fail

CUDA kernels need nvcc, of CUDA_HOME or on PATH, but no GPU; "auto" compiles them where torch has
CUDA too. TORCH_CUDA_ARCH_LIST says for which GPUs, as in torch's own extensions.

FASTRNN_FLAGS adds options for the C++ compiler.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from glob import glob
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path("csrc", "cuda")))
import nvcc  # noqa: E402

# The stable ABI of this version of torch: one build serves every later one.
LEAST_TORCH = 2, 11
TORCH_TARGET = ("TORCH_TARGET_VERSION", "0x020b000000000000")

# No -march: each csrc/cpu/isa_*.cpp selects its own instruction set by a pragma.
FLAGS = "-std=c++20 -O3 -g0 -ffp-contract=off -fno-math-errno -fno-trapping-math".split()
FLAGS += "-fvisibility=hidden -Wall -Wextra".split()
FLAGS += shlex.split(os.environ.get("FASTRNN_FLAGS", ""))  # they win over those before

# What the sources need of the machine, in a second: no header that takes long.
PROBE = """
#include <Python.h>
#include <concepts>
#include <pthread.h>
#if !__has_include(<pybind11/pybind11.h>) || !__has_include(<torch/csrc/stable/library.h>)
#error "the headers of pybind11 or torch are missing"
#endif
extern "C" int torch_library_impl();
template <std::integral... T>
auto sum(T... t) { return [&]<int... I>() __attribute__((always_inline)) { return (t + ...); }; }
int probe() { return sum(1, 2).operator()<1, 2>() + sizeof(&torch_library_impl); }
"""

if sys.platform == "darwin":  # aligned_alloc is of 10.15; torch needs this one
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "11.0")

MODE = os.environ.get("FASTRNN_BUILD", "auto")
RECORD = Path("fastrnn", "no_kernels.txt")  # why there are none


def record(reason: str | None, folder: Path = Path()) -> None:
    """Keeps the reason in the package, for `python -m fastrnn`."""
    if reason:
        (folder / RECORD).write_text(reason + "\n")
    else:
        (folder / RECORD).unlink(missing_ok=True)


def first_error(text: str) -> str:
    """The first line of a compiler's that speaks of an error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), [*lines, ""][-1])


@contextlib.contextmanager
def output_to(file: int) -> Iterator[None]:
    """Sends what this process and its children print to a file."""
    sys.stdout.flush()
    before = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        yield
    finally:
        sys.stdout.flush()
        for stream, old in zip((1, 2), before, strict=True):
            os.dup2(old, stream)
            os.close(old)


def check_torch() -> str | None:
    """Why the installed torch cannot be built against, or None. Exits where it is too old."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "the build needs torch installed"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        sys.exit(f"fastrnn needs torch >= {least}, got {version}: install a newer one first")
    return None


def obstacle() -> str | None:
    """Why the extension cannot be compiled here, or None if it can."""
    if reason := check_torch():
        return reason
    if find_spec("pybind11") is None:
        return "the build needs pybind11 installed"
    import pybind11
    from torch.utils import cpp_extension

    compiler = shlex.split(os.environ.get("CXX", "c++"))  # the one that torch will call
    headers = [
        sysconfig.get_path("include"),
        pybind11.get_include(),
        *cpp_extension.include_paths(),
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        options = [*FLAGS, *(f"-I{path}" for path in headers), "-fPIC", "-shared"]
        libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu"]
        if sys.platform == "darwin":
            libraries += ["-undefined", "dynamic_lookup"]
        command = [*compiler, *options, source, "-o", source.with_suffix(".so"), *libraries]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"the C++ compiler does not run: {error}"
    if run.returncode:
        if MODE != "auto":
            print(run.stderr, file=sys.stderr)
        said = first_error(run.stderr) or f"exit status {run.returncode}"
        return f"{compiler[0]} does not compile C++20 with the headers of Python and torch: {said}"
    return None


def kernels(cuda: bool) -> dict:
    """The arguments of `setup` that build `fastrnn._C`."""
    import pybind11
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            if MODE != "auto":
                self.compile()
                return
            with tempfile.TemporaryFile("w+") as log:
                try:
                    with output_to(log.fileno()):
                        self.compile()
                except Exception as error:
                    log.seek(0)
                    text = log.read()
                    print(text, file=sys.stderr)
                    self.leave_out(f"the compilation failed: {first_error(text) or error}")

        def compile(self) -> None:
            if cuda:
                self.extensions[0].extra_objects = nvcc.objects(Path(self.build_temp, "cuda"))
            super().build_extensions()

        def leave_out(self, reason: str) -> None:
            print(f"fastrnn: no kernels: {reason}", file=sys.stderr)
            self.extensions = []
            record(reason)
            if Path(self.build_lib, RECORD.parent).is_dir():
                record(reason, Path(self.build_lib))

    # As system headers, torch's do not drown our own warnings.
    system = [pybind11.get_include(), *cpp_extension.include_paths()]
    sources = [*sorted(glob("csrc/*.cpp")), *sorted(glob("csrc/cpu/*.cpp"))]
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
    return {"ext_modules": [module], "cmdclass": commands(None, build_ext=Build)}


def commands(reason: str | None, build_ext: type = build_ext) -> dict[str, type]:
    """The commands that build, which first keep the reason why there will be no kernels, if so."""

    def recording(command: type) -> type:
        class Recording(command):
            def run(self) -> None:
                record(reason)
                super().run()

        return Recording

    return {"build_py": recording(build_py), "build_ext": recording(build_ext)}


if MODE not in ("auto", "none", "cpu", "cuda"):
    sys.exit(f"FASTRNN_BUILD must be auto, none, cpu or cuda, got {MODE!r}")

reason = "FASTRNN_BUILD was none" if MODE == "none" else obstacle()
if reason and MODE in ("cpu", "cuda"):
    sys.exit(f"FASTRNN_BUILD={MODE}: {reason}")
if reason:
    if MODE == "auto":
        print(f"fastrnn: pure Python package, no kernels: {reason}", file=sys.stderr)
    setup(cmdclass=commands(reason))
else:
    import torch

    cuda = MODE == "cuda" or (MODE == "auto" and torch.version.cuda is not None)
    reason = nvcc.obstacle() if cuda else None
    if reason and MODE == "cuda":
        sys.exit(f"FASTRNN_BUILD=cuda: {reason}")
    if reason:
        print(f"fastrnn: no CUDA kernels: {reason}", file=sys.stderr)
    setup(**kernels(cuda and not reason))
