"""What was measured: tidy rows, one for each contender on each spec, kept in a CSV file."""

import csv
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from bench.facts import Facts

FOLDER = Path(__file__).parent / "results"
OK = "ok"


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
    directions: int = 1
    device: str = "cpu"
    suite: str = "cpu"  # the table it belongs to
    baseline: str = "torch.nn"  # what the ratio is to
    ms_p99: float | None = None  # of single calls, where these were timed
    ms_p999: float | None = None
    floor_ms: float | None = None  # the least that the machine allows, see ceilings.floor
    peak_mib: float | None = None
    kernels: str = ""  # on a GPU: what ran in a call
    proj_size: int = 0
    filled: float | None = None  # where rows end early: the share of T * N that is no padding
    error: float | None = None  # of the results, rms relative to that of those in float64
    host_ms: float | None = None  # on a GPU: until the call returns, which waits for nothing there

    def key(self) -> tuple:
        place = self.case, self.cell, self.mode, self.dtype, self.threads, self.device
        return (*place, self.contender)

    @property
    def percent(self) -> float | None:
        """Of the floor: 100 would be a contender that does nothing but what it cannot avoid."""
        return 100 * self.floor_ms / self.ms if self.ms and self.floor_ms else None

    @property
    def step_us(self) -> float | None:
        """Microseconds of a time step."""
        return self.ms and 1e3 * self.ms / self.T


Record = tuple[Row, Facts]


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
    """The rows of a file that `save` wrote; none if its columns are those of another version.
    Columns that came later may be missing."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        there = set(reader.fieldnames or ())
        known = {field.name: field.default is MISSING for field in (*fields(Row), *fields(Facts))}
        if not there <= known.keys() or not {n for n, due in known.items() if due} <= there:
            return []
        return [(_read(Row, line), _read(Facts, line)) for line in reader]


def kept(folder: Path) -> tuple[list[list[Record]], list[list[Record]]]:
    """The records of each file of the suites, and of each that `bench.plans` wrote."""
    files = {path: load(path) for path in sorted(folder.glob("*.csv"))}

    def those(schedules: bool) -> list[list[Record]]:
        return [
            records
            for path, records in files.items()
            if records and path.stem.endswith("-plans") == schedules
        ]

    return those(False), those(True)


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
            if field.name in line
        }
    )
