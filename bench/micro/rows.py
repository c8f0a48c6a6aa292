"""Rows that the programs print and the scripts exchange; CSV in and out."""

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A figure: the median of `samples` samples, in `unit`, and the distance of their quartiles."""

    program: str
    parameters: str  # "name=value name=value ..."
    metric: str
    value: float
    unit: str
    spread: float
    samples: int
    run: int = 0  # which of the runs of the program

    def get(self, name: str) -> str:
        """The value of a parameter; KeyError if the row has none of that name."""
        return dict(pair.split("=", 1) for pair in self.parameters.split())[name]


def parse(program: str, text: str, run: int = 0) -> list[Row]:
    """The rows that `program` printed. ValueError at a line that is none, a figure that is not
    finite, or a row of another program."""
    rows = []
    for line in text.splitlines():
        cells = line.split(",")
        if len(cells) != 7:
            raise ValueError(f"{program}: not a row: {line!r}")
        name, parameters, metric, value, unit, spread, samples = cells
        row = Row(
            name, parameters, metric, float(value), unit, float(spread), int(samples), run=run
        )
        if name != program:
            raise ValueError(f"{program}: a row of {name}")
        if not (math.isfinite(row.value) and math.isfinite(row.spread)):
            raise ValueError(f"{program}: not finite: {line!r}")
        rows.append(row)
    return rows


def save(rows: Iterable[Row], facts: dict[str, str], path: Path) -> None:
    """Write `rows`, each followed by the columns of `facts`: machine, versions, commit."""
    names = [field.name for field in fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *facts], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | facts)


def load(path: Path) -> list[Row]:
    """The rows of a file that `save` wrote. Lines that begin with # are comments."""
    with path.open(newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [
        Row(
            record["program"],
            record["parameters"],
            record["metric"],
            float(record["value"]),
            record["unit"],
            float(record["spread"]),
            int(record["samples"]),
            int(record["run"]),
        )
        for record in csv.DictReader(lines)
    ]


class Table:
    """Rows by what they say, the median of several runs taken."""

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)

    def find(self, program: str, metric: str, unit: str, **parameters) -> list[Row]:
        """The rows whose parameters of these names have these values, one for all runs."""
        runs: dict[str, list[Row]] = {}
        for row in self.rows:
            if (row.program, row.metric, row.unit) == (program, metric, unit) and all(
                row.get(name) == str(value) for name, value in parameters.items()
            ):
                runs.setdefault(row.parameters, []).append(row)
        return [
            replace(rows[0], value=statistics.median(row.value for row in rows))
            for rows in runs.values()
        ]

    def value(self, program: str, metric: str, unit: str, **parameters) -> float | None:
        """Of the one row that `find` finds; None if it finds none, ValueError if several."""
        found = self.find(program, metric, unit, **parameters)
        if len(found) > 1:
            raise ValueError(f"{program} {metric}: {parameters} fits several rows")
        return found[0].value if found else None

    def values(self, program: str, metric: str, unit: str, name: str, **parameters) -> dict:
        """`value` for each value that the parameter `name` (a number) takes, in rising order."""
        numbers = {int(row.get(name)) for row in self.find(program, metric, unit, **parameters)}
        return {
            number: self.value(program, metric, unit, **parameters, **{name: number})
            for number in sorted(numbers)
        }
