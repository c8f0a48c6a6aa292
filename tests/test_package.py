"""What a user installs: the sdist, both wheels, and `python -m fastrnn` in an environment that
holds torch and nothing else.

The compiled wheel is built in the checkout, where the object files of the last build are reused;
the pure Python one from the unpacked sdist, which shows that the sdist is complete.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from project import PYPROJECT, ROOT

import fastrnn
from tools import older_glibc

VERSION = PYPROJECT["project"]["version"]

# Compares training and inference with torch.nn, then says which warnings of ours were raised.
SMOKE = """
import importlib.util, json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    import fastrnn
    for name in ("LSTM", "GRU", "RNN"):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(5, 7, num_layers=2, bidirectional=True)
        ours = getattr(fastrnn, name)(5, 7, num_layers=2, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (theirs, ours):
            x = torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5).requires_grad_()
            module(x)[0].square().sum().backward()
            with torch.inference_mode():
                y = module(x)[0]
            results.append([y, x.grad] + [p.grad for p in module.parameters()])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
print(json.dumps({
    "version": fastrnn.__version__,
    "compiled": importlib.util.find_spec("fastrnn._C") is not None,
    "numpy": importlib.util.find_spec("numpy") is not None,
    "warnings": [str(w.message) for w in caught if "fastrnn" in str(w.message)],
}))
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """Standard output of a command that must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja is
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path, **env}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build_wheel(source: Path, out: Path, mode: str) -> Path:
    command = "-m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir".split()
    run(sys.executable, *command, out, source, FASTRNN_BUILD=mode)
    (wheel,) = out.glob("*.whl")
    return wheel


def torch_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that holds torch and what torch requires.

    The packages are links to the ones of this environment.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pending, seen = ["torch"], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        package = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in package.files if file.parts[0] != ".."}:
            link = site / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(package.locate_file(top))
        for line in package.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return folder / "bin" / "python"


def install(wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment with the wheel; pip finds its requirements fulfilled."""
    python = torch_environment(folder)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    run(*pip, "install", "--no-index", wheel)
    return python


def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked. Made from a copy, without what builds leave behind."""
    folder = tmp_path_factory.mktemp("sdist")
    generated = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, folder / "copy", ignore=generated)
    command = "setup.py --quiet sdist --dist-dir".split()
    run(sys.executable, *command, folder, cwd=folder / "copy", FASTRNN_BUILD="none")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"fastrnn-{VERSION}"


@pytest.fixture(scope="module")
def pure_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("pure"), "none")


@pytest.fixture(scope="module")
def compiled_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("needs a C++ compiler; without one only the pure package can be tested")
    for stale in (ROOT / "build").glob("lib*"):
        shutil.rmtree(stale)
    return build_wheel(ROOT, tmp_path_factory.mktemp("compiled"), "cpu")


@pytest.fixture(scope="module")
def pure_python(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(pure_wheel, tmp_path_factory.mktemp("pure") / "env")


@pytest.fixture(scope="module")
def compiled_python(compiled_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(compiled_wheel, tmp_path_factory.mktemp("compiled") / "env")


def test_version_stands_once():
    assert fastrnn.__version__ == importlib.metadata.version("fastrnn") == VERSION
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    for path in [ROOT / "setup.py", *ROOT.glob("fastrnn/**/*.py"), *ROOT.glob("csrc/**/*.*")]:
        assert not re.search(rf"\b{re.escape(VERSION)}\b", path.read_text()), path


def test_sdist_holds_the_sources(sdist: Path):
    for folder in ("csrc", "fastrnn", "tests"):
        for path in (ROOT / folder).glob("**/*.*"):
            if path.suffix in (".h", ".cpp", ".py"):
                assert (sdist / path.relative_to(ROOT)).is_file(), path
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "CITATION.cff",
    ):
        assert (sdist / name).is_file(), name


def test_wheels_hold_the_package_only(pure_wheel: Path, compiled_wheel: Path):
    assert pure_wheel.name == f"fastrnn-{VERSION}-py3-none-any.whl"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert compiled_wheel.name.startswith(f"fastrnn-{VERSION}-{tag}-{tag}-")
    (library,) = set(names(compiled_wheel)) - set(names(pure_wheel))
    assert "fastrnn/no_kernels.txt" not in names(compiled_wheel)
    assert re.fullmatch(r"fastrnn/_C\..*\.(so|pyd)", library)
    python = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("fastrnn/**/*.py")}
    expected = python | {"fastrnn/py.typed", "fastrnn/no_kernels.txt"}
    assert {name for name in names(pure_wheel) if ".dist-info/" not in name} == expected
    assert f"fastrnn-{VERSION}.dist-info/licenses/LICENSE" in names(pure_wheel)


def libstdcxx() -> int | None:
    """The release of GCC that the compiler's libstdc++ is of."""
    compiler = os.environ.get("CXX", "c++").split()
    macros = run(*compiler, "-E", "-dM", "-x", "c++", "-include", "cstddef", os.devnull)
    found = re.search(r"define _GLIBCXX_RELEASE (\d+)", macros)
    return int(found[1]) if found else None


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is of Linux")
def test_compiled_wheel_is_of_manylinux_2_28(compiled_wheel: Path, tmp_path: Path):
    """auditwheel looks at the version of each symbol that the extension takes from glibc and
    libstdc++; csrc/older_systems.cpp has those that would be too new."""
    if (release := libstdcxx()) is None or release > 14:
        pytest.skip(f"older_systems.cpp knows libstdc++ up to GCC 14, this is of {release}")
    plat = f"manylinux_2_28_{os.uname().machine}"
    command = ["-m", "auditwheel", "repair", "--plat", plat, "--wheel-dir", str(tmp_path)]
    run(sys.executable, *command, "--exclude", "libtorch*", "--exclude", "libc10*", compiled_wheel)
    (repaired,) = tmp_path.glob("*.whl")
    assert plat in repaired.name
    assert not [name for name in names(repaired) if ".libs/" in name]  # nothing was copied into it


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="versions are those of x86-64")
def test_what_is_linked_against_stubs_asks_for_old_versions(tmp_path: Path):
    older_glibc.build(tmp_path)
    source, library = tmp_path / "user.c", tmp_path / "user.so"
    names = "pthread_create", "sem_wait", "dlsym", "dlmopen", "shm_open"
    calls = "".join(f"void {name}(void); void use_{name}(void) {{ {name}(); }}\n" for name in names)
    source.write_text(calls)
    command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", source, "-o", library]
    run(*command, f"-L{tmp_path}", "-lpthread", "-ldl", "-lrt")
    symbols = run("objdump", "-T", library)
    for name in names:
        version = "2.3.4" if name == "dlmopen" else "2.2.5"
        assert re.search(rf"\*UND\*.*GLIBC_{re.escape(version)}\)? +{name}$", symbols, re.M), name


def test_compiled_wheel_works_with_torch_alone(compiled_python: Path, tmp_path: Path):
    facts = json.loads(run(compiled_python, "-c", SMOKE, cwd=tmp_path))
    assert facts == {"version": VERSION, "compiled": True, "numpy": False, "warnings": []}


def test_pure_wheel_works_and_warns_once(pure_python: Path, tmp_path: Path):
    facts = json.loads(run(pure_python, "-c", SMOKE, cwd=tmp_path))
    (warning,) = facts.pop("warnings")
    assert "was installed: FASTRNN_BUILD was none. Install" in warning
    assert "PyTorch's own kernels" in warning and "FASTRNN_BUILD=cpu" in warning
    assert facts == {"version": VERSION, "compiled": False, "numpy": False}


def test_a_source_folder_says_what_to_type(pure_python: Path, sdist: Path, tmp_path: Path):
    """Python started in a checkout imports the folder beside it, whatever pip has installed."""
    shutil.copytree(sdist, tmp_path / "checkout")
    record = tmp_path / "checkout" / "fastrnn" / "no_kernels.txt"
    record.unlink()  # of the wheel that was built in it
    facts = json.loads(run(pure_python, "-c", SMOKE, cwd=tmp_path / "checkout"))
    (warning,) = facts["warnings"]
    folder = tmp_path.resolve() / "checkout"
    assert f"was not compiled: {folder / 'fastrnn'} is the source folder." in warning
    assert f"`pip install --no-build-isolation -e {folder}`" in warning
    record.write_text("the compiler is broken\n")
    facts = json.loads(run(pure_python, "-c", SMOKE, cwd=folder))
    assert "was not compiled: the compiler is broken. Type `pip" in facts["warnings"][0]
    (folder / "fastrnn" / "_C.py").write_text("raise ImportError('undefined symbol')")
    facts = json.loads(run(pure_python, "-c", SMOKE, cwd=folder))
    assert facts["warnings"][0].startswith("fastrnn._C is there but does not load (undefined")


def test_command_reports_a_compiled_package(compiled_python: Path, tmp_path: Path):
    text = run(compiled_python, "-m", "fastrnn", cwd=tmp_path)
    assert re.search(rf"^fastrnn +{re.escape(VERSION)}$", text, re.M)
    assert re.search(r"^torch +\d", text, re.M)
    assert re.search(rf"^Python +{sys.version.split()[0]} ", text, re.M)
    assert re.search(r"^build +.*C\+\+20, for torch >= 2\.11, without CUDA$", text, re.M)
    assert re.search(r"^flags +.*-O3", text, re.M)
    assert re.search(r"^instructions +.*\(chosen\)", text, re.M)
    assert re.search(r"^threads +\d+$", text, re.M)
    assert re.search(r"^(backends)? +cpu +usable$", text, re.M)
    assert re.search(r"^(backends)? +reference +usable$", text, re.M)


def test_command_reports_a_pure_package(pure_python: Path, tmp_path: Path):
    text = run(pure_python, "-m", "fastrnn", cwd=tmp_path)
    assert re.search(r"^build +pure Python$", text, re.M)
    assert "FASTRNN_BUILD was none" in text
    assert "(chosen)" not in text
    assert re.search(r"^(backends)? +cpu +(?!usable).*fastrnn\._C", text, re.M)
    assert re.search(r"^(backends)? +reference +usable$", text, re.M)


def test_extension_needs_only_the_stable_abi(compiled_wheel: Path, tmp_path: Path):
    """The C++ interface of torch changes from version to version; its `extern "C"` one does not."""
    zipfile.ZipFile(compiled_wheel).extractall(tmp_path)
    (library,) = tmp_path.glob("fastrnn/_C*")
    symbols = run("nm", "--dynamic", "--undefined-only", library).split()
    assert "torch_library_impl" in symbols or "aoti_torch_library_impl" in symbols
    assert [s for s in symbols if re.match(r"_Z\w*?(2at|3c10|5torch)", s)] == []
    assert b"libtorch_python" not in library.read_bytes()
