"""`python -m fastrnn`: what was built, what can run here, and why the rest cannot."""

from __future__ import annotations

import importlib
import platform

import torch

import fastrnn
from fastrnn import diagnosis, dispatch, torch_private


def build() -> list[tuple[str, str]]:
    """Rows about the compiled extension, or one that says there is none."""
    try:
        extension = importlib.import_module("fastrnn._C")
    except ImportError:
        return [("build", "pure Python")]
    info = extension.build_info()
    cuda = "with CUDA" if info["cuda"] else "without CUDA"
    target = info["torch_target_version"]
    chosen = extension.isa()
    names = [f"{name} (chosen)" if name == chosen else name for name in extension.cpu_features()]
    return [
        ("build", f"{info['compiler']}, {info['cxx_standard']}, for torch >= {target}, {cuda}"),
        ("flags", info["flags"]),
        ("instructions", ", ".join(names)),
    ]


def report() -> str:
    """The text that the command prints."""
    rows = [
        ("fastrnn", fastrnn.__version__),
        ("torch", torch.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *build(),
        ("threads", str(torch.get_num_threads())),
    ]
    for label, facts in (("backends", dispatch.backends().items()), ("auto", diagnosis.served())):
        width = max(len(name) for name, _ in facts)
        for name, state in facts:
            rows.append((label, f"{name:{width}}  {state}"))
            label = ""
    if torch_private.missing:
        names = ", ".join(torch_private.missing)
        rows.append(("slower", f"this torch lacks {names}, so calls take a longer way"))
    return "\n".join(f"{label:<14}{text}" for label, text in rows)


if __name__ == "__main__":
    print(report())
