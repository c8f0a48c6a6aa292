"""setup.py: what it compiles, and what it says and keeps where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from project import PYPROJECT, ROOT

# setup.py with a source that does not compile, another torch, or none.
BUILD = """
import importlib.metadata, sys
real, torch = importlib.metadata.version, {torch!r}

def version(name):
    if name != "torch":
        return real(name)
    if torch is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return torch

importlib.metadata.version = version
sys.argv = ["setup.py", "--quiet", *{command!r}]
sys.path.insert(0, "")
exec(compile(open("setup.py").read(), "setup.py", "exec"))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup.py needs, whose only C++ source is quick to compile, and broken."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fastrnn", "csrc/cuda"):
        to = tmp_path / "copy" / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, to)
    (tmp_path / "copy" / "csrc" / "module.cpp").write_text('#error "no such thing"\n')
    return tmp_path / "copy"


def built(checkout: Path, torch: str | None = "2.11.0+cpu", **env: str):
    """The status of `setup.py build`, what it printed, and the reasons left in the package."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code = BUILD.format(torch=torch, command=["build", "--build-base", "out"])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
    )
    reasons = [path.read_text() for path in checkout.glob("out/lib*/fastrnn/no_kernels.txt")]
    return run.returncode, run.stderr, reasons


def test_the_reason_is_kept_in_the_package(checkout: Path):
    wrong = checkout / "wrong"
    wrong.write_text("#!/bin/sh\necho 'probe.cpp:3:1: note: x' >&2\n"
                     "echo 'probe.cpp:3:1: error: no concepts' >&2\nexit 1\n")  # fmt: skip
    wrong.chmod(0o755)
    for compiler, torch, expected in (
        ("no-such-compiler", "2.11.0", "compiler does not run: .*no-such-compiler"),
        (str(wrong), "2.11.0", "does not compile .*: probe.cpp:3:1: error: no concepts"),
        ("c++", None, "the build needs torch installed"),
        ("c++", "2.13.1+cpu", "the compilation failed: .*module.cpp:1:2: error: .*no such thing"),
    ):
        if compiler == "c++" and not shutil.which(os.environ.get("CXX", compiler)):
            continue
        cxx = os.environ.get("CXX", compiler) if compiler == "c++" else compiler
        status, said, (reason,) = built(checkout, torch, FASTRNN_BUILD="auto", CXX=cxx)
        assert status == 0, said
        assert re.search(f"^fastrnn: .*no kernels: .*{expected}", said, re.M), said
        assert re.search(f"{expected}.*\n$", reason), reason
        shutil.rmtree(checkout / "out")
    if shutil.which(os.environ.get("CXX", "c++")):
        assert built(checkout, FASTRNN_BUILD="cpu")[0] == 1


def test_an_old_torch_is_one_line(checkout: Path):
    for torch in ("2.10.1", "2.4.0+cpu", "1.13"):
        for mode in ("auto", "cpu"):
            status, said, reasons = built(checkout, torch, FASTRNN_BUILD=mode)
            assert (status, reasons) == (1, [])
            assert said == f"fastrnn needs torch >= 2.11, got {torch}: install a newer one first\n"


def test_a_cpu_build_of_torch_fulfils_the_requirement():
    """pip replaces what does not."""
    needed = [*PYPROJECT["build-system"]["requires"], *PYPROJECT["project"]["dependencies"]]
    torchs = [r for r in map(Requirement, needed) if r.name == "torch"]
    assert len(torchs) == 2
    for requirement in torchs:
        for version in ("2.11.0+cpu", "2.13.0+cpu"):
            assert requirement.specifier.contains(version)


@pytest.mark.parametrize(
    ("mode", "compiler", "code", "message"),
    [
        ("auto", "false", 0, "pure Python package, no kernels: false does not compile C++20"),
        ("cpu", "no-such-compiler", 1, "FASTRNN_BUILD=cpu: the C++ compiler does not run"),
        ("cuda", "c++", 1, "FASTRNN_BUILD=cuda: there is no nvcc in CUDA_HOME or on PATH"),
        ("gpu", "c++", 1, "FASTRNN_BUILD must be auto, none, cpu or cuda, got 'gpu'"),
    ],
)
def test_build_says_what_it_cannot_do(mode: str, compiler: str, code: int, message: str):
    env = {**os.environ, "FASTRNN_BUILD": mode, "CXX": compiler, "CUDA_HOME": "/nowhere"}
    command = [sys.executable, "setup.py", "--name"]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == code
    assert message in result.stderr


def test_instruction_sets_share_no_function():
    """Of two functions of one name the linker keeps either, for every CPU."""
    objects = sorted(ROOT.glob("build/temp*/csrc/cpu/isa_*.o"))
    tool = shutil.which("nm")
    if tool is None or not objects:
        pytest.skip("no nm, or a package without the objects that its build left")
    found: dict[str, list[str]] = {}
    for path in objects:
        names = subprocess.run(
            [tool, "--demangle", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        for line in names.splitlines():
            _, kind, name = line.split(maxsplit=2)
            if kind == "W":
                found.setdefault(name, []).append(path.name)
    # What is defined before an instruction set is chosen is compiled for every CPU.
    shared = [k for k, v in found.items() if len(set(v)) > 1 and "cpu::run_tasks(" not in k]
    assert found and not shared
