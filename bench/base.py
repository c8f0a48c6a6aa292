"""fastrnn of another commit, as a contender: `--base REF`."""

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from bench.cases import Spec
from bench.contenders import Contender
from bench.facts import ROOT
from bench.jobs import JOBS

FOLDER = ROOT / "build" / "bench"


def checkout(ref: str, root: Path = ROOT, folder: Path = FOLDER) -> Path:
    """The files of commit `ref` with the extension compiled, in a folder that is kept for the next
    time. Raises CalledProcessError where git or the compiler fails."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run(
        [*git, "rev-parse", "--verify", f"{ref}^{{commit}}"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    target = folder / commit[:10]
    if not (target / "built").exists():
        archive = subprocess.run([*git, "archive", commit], check=True, capture_output=True)
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(target, filter="data")
        build(target)
        (target / "built").touch()
    return target


def build(target: Path) -> None:
    """Compile the extension in place. Ninja may be installed beside this Python only."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    env = os.environ | {"PATH": path}
    subprocess.run(command, cwd=target, check=True, env=env, capture_output=True, text=True)


def rivals(spec: Spec, ref: str, folder: Path) -> list[Contender]:
    """Ours from here and from there; the latter is the baseline."""
    ours = JOBS[spec.case.job][0]
    return [ours, replace(ours, name=f"{ours.name}@{ref}", checkout=folder)]
