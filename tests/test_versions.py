"""The oldest Python, and a torch that is too old or missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from project import PYPROJECT, ROOT

LEAST = tuple(map(int, re.findall(r"\d+", PYPROJECT["project"]["requires-python"])))
SOURCES = [
    ROOT / "setup.py",
    *(p for name in ("fastrnn", "bench", "tests", "examples", "tools", "csrc")
      for p in (ROOT / name).rglob("*.py")),
]  # fmt: skip
# What the standard library has since 3.11, as names that are imported or read from a module.
NEWER = {
    "asyncio.TaskGroup", "asyncio.timeout", "contextlib.chdir", "datetime.UTC", "enum.StrEnum",
    "hashlib.file_digest", "inspect.getmembers_static", "itertools.batched", "math.cbrt",
    "math.exp2", "operator.call", "sys.exception", "sys.monitoring", "tomllib",
    "typing.LiteralString", "typing.Never", "typing.NotRequired", "typing.Required", "typing.Self",
    "typing.Unpack", "typing.assert_never", "typing.assert_type", "typing.override",
    "typing.reveal_type", "ExceptionGroup", "BaseExceptionGroup",
}  # fmt: skip


def names_in(tree: ast.AST):
    """Names and what is imported, as "module.name"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_of_the_oldest_python(path):
    tree = ast.parse(path.read_text(), feature_version=LEAST)
    stars = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Tuple)
        and any(isinstance(each, ast.Starred) for each in node.slice.elts)
    ]
    assert not stars, "x[*y] is of 3.11, and ast takes it for any version"
    newer = set(names_in(tree)) & NEWER
    assert not newer or (path.name == "project.py" and newer == {"tomllib"})


def test_the_oldest_python_stands_everywhere():
    version = ".".join(map(str, LEAST))
    assert LEAST == (3, 10)
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{version.replace('.', '')}"
    assert f"Programming Language :: Python :: {version}" in PYPROJECT["project"]["classifiers"]
    for name in ("README.md", "docs/install.md", "CONTRIBUTING.md"):
        assert f"Python {version} or newer" in (ROOT / name).read_text(), name
    for name in ("Makefile", ".ci/run"):
        assert f"Python >= {version}" in (ROOT / name).read_text(), name


@pytest.mark.parametrize("version", [None, "2.10.0", "2.4.1+cpu", "1.13.0a0+git123"])
def test_import_says_which_torch_it_needs(version: str | None, tmp_path: Path):
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
    if version is None:
        code += "sys.modules['torch'] = None\n"
    else:
        (tmp_path / "torch.py").write_text(f"__version__ = {version!r}")
    run = subprocess.run(
        [sys.executable, "-c", code + "import fastrnn"], capture_output=True, text=True
    )
    assert run.returncode == 1
    said = run.stderr.splitlines()[-1]
    got = "and none is installed here" if version is None else f"got {version}: install a newer one"
    assert said == f"ImportError: fastrnn needs torch >= 2.11, {got}"
