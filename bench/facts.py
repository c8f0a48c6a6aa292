"""The code and the machine that rows were measured on."""

import hashlib
import importlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

from bench import cuda
from bench.ceilings import Ceilings, matrix_rate

ROOT = Path(__file__).parent.parent
PEERS = (
    "onnxruntime", "openvino", "torchrl", "haste-pytorch", "flashrnn", "torchrecurrent", "ncps",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """The first ones stand in every file; the others came later and may be missing in an old one.
    On a GPU fma_gflops is the rate of torch.mm in float32 and the bandwidths that of a copy."""

    version: str  # of fastrnn
    commit: str
    source: str  # digest of the code that was timed: two commits that differ in prose share it
    torch: str
    python: str
    cpu: str
    cores: int
    isa: str  # the instruction set fastrnn chose
    mm_gflops: float  # torch.mm in float32 on one thread
    date: str
    fma_gflops: float | None = None  # ceilings of one thread in float32, see bench.ceilings
    cache_gbs: float | None = None  # reading 256 KiB over and over
    memory_gbs: float | None = None  # reading 128 MiB
    clock_mhz: float | None = None  # at the start
    os: str = ""
    gpu: str = ""
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    peers: str = ""  # other libraries that were installed

    def machine(self) -> str:
        """A name for the file of results."""
        name = self.gpu or f"{self.cpu} {self.isa} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def same_version(self, other: "Facts") -> bool:
        """Whether results of both may stand in one table."""
        mine = (self.version, self.source, self.torch, self.machine())
        return mine == (other.version, other.source, other.torch, other.machine())


def gather(ceilings: Ceilings | None = None, device: str = "cpu") -> Facts:
    gpu = {}
    if device == "cuda":
        gpu = {
            "gpu": torch.cuda.get_device_name(),
            "driver": cuda.query("driver_version"),
            "cuda": torch.version.cuda or "",
            "cudnn": str(torch.backends.cudnn.version()),
        }
    if ceilings:
        gpu |= {
            "fma_gflops": round(ceilings.flops / 1e9, 1),
            "cache_gbs": round(ceilings.bandwidth(1 << 18) / 1e9, 1),
            "memory_gbs": round(ceilings.bandwidth(1 << 27) / 1e9, 1),
        }
    return Facts(
        version=getattr(_fastrnn(), "__version__", "not installed"),
        commit=_commit(),
        source=_source_digest(),
        torch=torch.__version__,
        python=platform.python_version(),
        cpu=_cpu_model(),
        cores=cores(),
        isa=_isa(),
        mm_gflops=round(matrix_rate() / 1e9, 1),
        date=date.today().isoformat(),
        clock_mhz=_clock(device),
        os=f"{platform.system()} {platform.release()}",
        peers="; ".join(_peers()),
        **gpu,
    )


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _peers() -> list[str]:
    found = []
    for name in PEERS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _fastrnn():
    try:
        return importlib.import_module("fastrnn")
    except ImportError:
        return None


def _isa() -> str:
    try:
        return importlib.import_module("fastrnn._C").isa()
    except ImportError:
        return "reference"


def no_kernels() -> str | None:
    """Why calls on the CPU would run on the reference path, or None: that is not what we time."""
    reason = importlib.import_module("fastrnn").backends()["cpu"]
    return None if reason == "usable" else reason


def _commit() -> str:
    """Short hash, "+" behind it if the checkout differs; "none" outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("fastrnn/**/*.py"), *ROOT.glob("csrc/**/*"), ROOT / "setup.py"]):
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:10]


def _cpu_info(field: str) -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return re.findall(rf"^{field}\s*:\s*(.+)$", text, re.M)


def _cpu_model() -> str:
    return next(iter(_cpu_info("model name")), platform.processor() or platform.machine())


def _clock(device: str) -> float | None:
    found = [cuda.query("clocks.sm")] if device == "cuda" else _cpu_info("cpu MHz")
    numbers = [float(text) for text in found if text]
    return round(max(numbers)) if numbers else None
