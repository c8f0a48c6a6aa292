"""Other people's libraries with our modules in them: `python tests/thirdparty [NAME ...]`.

Sets up a virtual environment on top of this one in build/thirdparty, installs the versions below
there (it needs a network), and runs each program of `programs` in a process of its own. Prints the
table of docs/swap.md. Not a part of `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import programs
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "thirdparty"
VERSIONS = {
    "lightning": "2.6.6",
    "ncps": "1.0.1",
    "opacus": "1.6.0",
    "ptflops": "0.7.5",
    "pytorch-forecasting": "1.8.0",
    "sb3-contrib": "2.9.2",
    "thop": "0.1.1.post2209072238",
    "torchinfo": "1.8.0",
    "torchrecurrent": "0.2.5",
    "torchrl": "0.14.1",
    "transformers": "5.24.0",
}


def environment() -> Path:
    """The interpreter of the virtual environment, with everything installed."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        below = sysconfig.get_path("purelib")
        (path,) = FOLDER.glob("lib/python*/site-packages")
        (path / "below.pth").write_text(f"{below}\n")
    constraint = FOLDER / "constraint.txt"
    constraint.write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraint, *wanted]
    subprocess.run(install, check=True)
    return python


def main() -> int:
    names = sys.argv[1:] or list(programs.PROGRAMS)
    python, failed = environment(), False
    print("| library | version | what ran | result |\n| --- | --- | --- | --- |")
    for name in names:
        run = subprocess.run(
            [python, "-W", "ignore", programs.__file__, name],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        title = programs.PROGRAMS[name].__doc__.rstrip(".")
        lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
        result = lines[-1] if lines else f"ended with {run.returncode}"
        failed |= run.returncode != 0
        print(f"| {name} | {VERSIONS[name]} | {title} | {result} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
