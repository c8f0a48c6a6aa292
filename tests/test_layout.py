"""The structure of the code: files are short, and imports go one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_files_are_short():
    """As CONTRIBUTING.md has it: one that is longer usually holds two ideas."""
    most = {".py": 300, ".h": 400, ".cpp": 400, ".cu": 400, ".cuh": 400}
    folders = [ROOT / name for name in ("fastrnn", "bench", "tools", "csrc", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in most]
    long = [path for path in files if len(path.read_text().splitlines()) > most[path.suffix]]
    assert len(files) > 300 and not long


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in (ROOT / "fastrnn").rglob("*.py")}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything but what is only there for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements(node)


def imported(name: str) -> Iterator[str]:
    """The modules of the package that one imports, also within its functions."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for each in node.names:
                whole = f"{origin}.{each.name}"
                yield whole if whole in MODULES else origin


def test_no_import_runs_back():
    arrows = {name: set(imported(name)) - {name} for name in MODULES}
    order = list(TopologicalSorter(arrows).static_order())  # CycleError names a cycle
    assert order.index("fastrnn.call") < order.index("fastrnn.modules") < order.index("fastrnn")
    assert "fastrnn.dispatch.cudnn.stream" in arrows["fastrnn.dispatch.cpu"]  # in a function


def test_what_a_feature_touches():
    """As the table "to add, change" of CONTRIBUTING.md says."""
    files = [p for name in ("fastrnn", "csrc") for p in (ROOT / name).rglob("*.*")]
    texts = {p: p.read_text() for p in files if p.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")}
    touched = [p for p, text in texts.items() if re.search(r"\bgrad_clip\b", text)]
    assert f"`grad_clip` stands in {len(touched)} files" in (ROOT / "CONTRIBUTING.md").read_text()
