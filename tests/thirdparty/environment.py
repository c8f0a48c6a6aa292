"""A virtual environment in build/thirdparty on top of this one, with other people's libraries."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "thirdparty"
VERSIONS = {
    "accelerate": "1.15.0",
    "calflops": "0.3.2",
    "captum": "0.9.0",
    "darts": "0.48.1",
    "gluonts": "0.17.0",
    "lightning": "2.6.6",
    "ncps": "1.0.1",
    "opacus": "1.6.0",
    "peft": "0.21.2",
    "ptflops": "0.7.5",
    "pyro-ppl": "1.9.2",
    "pytorch-forecasting": "1.8.0",
    "sb3-contrib": "2.9.2",
    "thop": "0.1.1.post2209072238",
    "torch-pruning": "1.6.1",
    "torchinfo": "1.8.0",
    "torchrecurrent": "0.2.5",
    "torchrl": "0.14.1",
    "transformers": "5.24.0",
}
TORCH_TESTS = {"expecttest": "0.3.0", "hypothesis": "6.170.17", "scipy": "1.17.1"}


def environment(versions: dict[str, str]) -> Path:
    """The interpreter of the virtual environment, with these installed. It needs a network."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        below = sysconfig.get_path("purelib")
        (path,) = FOLDER.glob("lib/python*/site-packages")
        (path / "below.pth").write_text(f"{below}\n")
    constraint = FOLDER / "constraint.txt"
    constraint.write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraint, *wanted]
    subprocess.run(install, check=True)
    return python
