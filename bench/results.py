"""What was measured: tidy rows, one for each contender on each spec, kept in a CSV file."""

import csv
import hashlib
import importlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
OK = "ok"


@dataclass(frozen=True)
class Facts:
    """The code and the machine that a row was measured on."""

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

    def machine(self) -> str:
        """A name for the file of results."""
        name = f"{self.cpu} {self.isa} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def same_version(self, other: "Facts") -> bool:
        """Whether results of both may stand in one table."""
        mine = (self.version, self.source, self.torch, self.machine())
        return mine == (other.version, other.source, other.torch, other.machine())


@dataclass(frozen=True)
class Row:
    """One contender on one spec. Where status is not "ok" it says why there are no numbers."""

    case: str
    T: int
    N: int
    input_size: int
    hidden_size: int
    layers: int
    cell: str
    mode: str
    dtype: str
    threads: int
    contender: str
    status: str
    turns: int = 0
    ms: float | None = None  # median of a call, and its quartiles
    ms_low: float | None = None
    ms_high: float | None = None
    ratio: float | None = None  # times faster than torch.nn: median of the turns, and its quartiles
    ratio_low: float | None = None
    ratio_high: float | None = None
    gflops: float | None = None  # matrix products only

    def key(self) -> tuple:
        return (self.case, self.cell, self.mode, self.dtype, self.threads, self.contender)


Record = tuple[Row, Facts]


def gather(mm_gflops: float) -> Facts:
    return Facts(
        version=getattr(_fastrnn(), "__version__", "not installed"),
        commit=_commit(),
        source=_source_digest(),
        torch=torch.__version__,
        python=platform.python_version(),
        cpu=_cpu_model(),
        cores=cores(),
        isa=_isa(),
        mm_gflops=round(mm_gflops, 1),
        date=date.today().isoformat(),
    )


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def save(rows: Iterable[Row], facts: Facts, path: Path) -> None:
    """Write `rows` over those of the same key in `path`, and drop all rows of another version."""
    kept = load(path) if path.exists() else []
    records = {row.key(): (row, old) for row, old in kept if old.same_version(facts)}
    records |= {row.key(): (row, facts) for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        names = [field.name for field in (*fields(Row), *fields(Facts))]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row, its_facts in records.values():
            writer.writerow(_rounded(asdict(row)) | asdict(its_facts))


def load(path: Path) -> list[Record]:
    """The rows of a file that `save` wrote; none if its columns are those of another version."""
    names = {field.name for field in (*fields(Row), *fields(Facts))}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != names:
            return []
        return [(_read(Row, line), _read(Facts, line)) for line in reader]


def _rounded(values: dict) -> dict:
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def _read(kind: type, line: dict[str, str]):
    parsers = {int: int, float: float, str: str}
    return kind(
        **{
            field.name: parsers.get(field.type, lambda text: float(text) if text else None)(
                line[field.name]
            )
            for field in fields(kind)
        }
    )


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


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
