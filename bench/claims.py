"""What the README says about speed, worked out from the rows: no figure there is typed by hand.

A claim is one ratio with its scatter. It is even where the ratio lies within 5 % of 1, or within
its own scatter of 1; otherwise it is faster or slower.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bench.cases import CELLS
from bench.facts import Facts
from bench.report import EVEN, Line, lines, noise
from bench.results import Record, Row
from bench.suites import SUITES
from bench.timing import geometric_mean

MODES = ("inference", "training")
VERDICTS = ("faster", "even", "slower")
CLOSEST = 3  # rows that stand for the weakest ones


class Claim(NamedTuple):
    """How many times faster ours is than somebody in one row."""

    row: Row
    facts: Facts
    ratio: float
    noise: float

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1) <= max(EVEN, self.noise):
            return "even"
        return "faster" if self.ratio > 1 else "slower"

    def __str__(self) -> str:
        place = f"`{self.row.case}` {self.row.cell} {self.row.mode}"
        return f"{place} {self.ratio:.2f} ± {self.noise:.0%} ({self.facts.isa})"


def name(facts: Facts) -> str:
    """Of a machine, short: the processor and the instruction set that ran."""
    if facts.gpu:
        return facts.gpu
    words = facts.cpu.replace("(R)", "").replace("Processor", "").split()
    return f"{' '.join(words)}, {facts.isa}"


def to_torch(line: Line) -> tuple[float, float] | None:
    """Ratio and scatter against torch.nn, or against the fastest work-around with it."""
    ours = line.ours
    theirs = [row for who, row in line.rows.items() if who.startswith("torch.nn") and row.ratio]
    if not ours.ratio or not theirs:
        return None
    best = max(theirs, key=lambda row: row.ratio)
    return ours.ratio / best.ratio, _both(ours, best)


def to_peers(line: Line) -> tuple[float, float] | None:
    """The same against the fastest of the other libraries."""
    ours = line.ours
    own = ("fastrnn", "torch.nn")
    theirs = [row for who, row in line.rows.items() if not who.startswith(own) and row.ratio]
    if not ours.ratio or not theirs:
        return None
    best = max(theirs, key=lambda row: row.ratio)
    return ours.ratio / best.ratio, _both(ours, best)


def _both(ours: Row, theirs: Row) -> float:
    return (noise(ours) ** 2 + noise(theirs) ** 2) ** 0.5


def claims(
    results: Iterable[list[Record]],
    against: Callable[[Line], tuple[float, float] | None] = to_torch,
    **place: object,
) -> list[Claim]:
    """Of all files of results, in the rows that have the values in `place`. The suite `rounded`
    repeats models of `cpu`, which count once."""
    found = []
    for records in results:
        facts = {id(row): its for row, its in records}
        for line in lines(row for row, _ in records):
            ours = line.ours
            fits = all(getattr(ours, key) == value for key, value in place.items())
            repeated = ours.suite == "rounded"
            if fits and not repeated and (pair := against(line)) is not None:
                found.append(Claim(ours, facts[id(ours)], *pair))
    return found


def means(results: Iterable[list[Record]]) -> Iterator[tuple[str, list[Claim]]]:
    """Machine and number of threads, and the claims of the suite `cpu` there."""
    for records in results:
        found = claims([records], suite="cpu", dtype="float32")
        for threads in sorted({claim.row.threads for claim in found}):
            part = [claim for claim in found if claim.row.threads == threads]
            its = part[-1].facts
            words = "1 thread" if threads == 1 else f"{threads} threads"
            yield f"{name(its)}, {words} ({its.commit}, {its.date})", part


def mean(found: Iterable[Claim], **place: object) -> str:
    """Geometric mean, least and most of the claims in a place: `1.44 (1.07–3.13)`, or `1.44`."""
    ratios = [
        claim.ratio
        for claim in found
        if all(getattr(claim.row, key) == value for key, value in place.items())
    ]
    if not ratios:
        return "–"
    span = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{geometric_mean(ratios):.2f}{span}"


def newest(results: Iterable[list[Record]]) -> list[Record]:
    """The rows of the file where those of the suite `cpu` are the youngest; none without any."""

    def date(records: list[Record]) -> str:
        return max((its.date for row, its in records if row.suite == "cpu"), default="")

    return max(filter(date, results), key=date, default=[])


# What a reader calls the model, and how its rows are found.
KINDS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("one time step a call", lambda row: row.case == "stream"),
    ("a stream in chunks, by `Streamer`", lambda row: row.suite == "chunks"),
    ("one sequence a call", lambda row: row.case in ("vad", "rnnoise")),
    ("batches, 64 to 256 units", lambda row: row.case in ("text", "rl", "ts")),
    ("batches, 650 and 1024 units", lambda row: row.case in ("lm", "big")),
    ("[networks known by name](bench/RESULTS.md#models)", lambda row: row.suite == "models"),
    ("two directions", lambda row: row.case.endswith("-bi") and row.suite == "variants"),
    ("packed sequences", lambda row: row.case.endswith("-packed") and row.suite == "variants"),
    ("LSTM with a projection", lambda row: row.case.endswith("-proj")),
    ("`reset=`", lambda row: row.suite == "features" and row.case.startswith("rl-")),
    ("`lengths=`", lambda row: row.suite == "features" and row.case.endswith("-lengths")),
    ("`return_states=`", lambda row: row.suite == "features" and row.case == "states"),
)


def kinds(found: list[Claim]) -> list[list[str]]:
    """Cells of a table: a line for each kind of model, a column for each cell and mode."""
    heads = ["your model", *(f"{cell} {mode}" for cell in CELLS for mode in MODES)]
    out = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for label, fits in KINDS:
        part = [claim for claim in found if fits(claim.row)]
        if part:
            columns = [mean(part, cell=cell, mode=mode) for cell in CELLS for mode in MODES]
            out.append([label, *columns])
    return out


def to_baseline(line: Line) -> tuple[float, float] | None:
    """The same against what the ratio of the row is to."""
    return (line.ours.ratio, noise(line.ours)) if line.ours.ratio else None


def verdict(rows: list[Row], facts: Facts) -> list[str]:
    """What a run has shown, in two lines at most."""
    records = [(row, facts) for row in rows]
    found, who = claims([records]), "torch.nn"
    if not found:
        found = claims([records], to_baseline)
        who = found[0].row.baseline if found else ""
    if not found:
        return ["No verdict: no row has a ratio."]
    count = {word: sum(claim.verdict == word for claim in found) for word in VERDICTS}
    least = min(found, key=lambda claim: claim.ratio)
    mean = geometric_mean([claim.ratio for claim in found])
    place = f"{least.row.case} {least.row.cell} {least.row.mode}"
    return [
        f"Faster than {who} in {count['faster']} of {len(found)} rows, even in {count['even']}, "
        f"slower in {count['slower']}; geometric mean {mean:.2f}x.",
        f"Weakest row: {place}, {least.ratio:.2f}x ± {least.noise:.0%}.",
    ]


def balance(found: list[Claim]) -> list[str]:
    """How many rows are faster, even and slower, and the three that are closest to the last."""
    worst = sorted(found, key=lambda claim: claim.ratio)[:CLOSEST]
    counts = [str(sum(claim.verdict == word for claim in found)) for word in VERDICTS]
    return [*counts, "; ".join(map(str, worst))]


def order(results: list[list[Record]]) -> list[str]:
    """The suites that were measured, in the order in which the command line lists them."""
    seen = {row.suite for records in results for row, _ in records}
    known = [suite for suite in SUITES if suite in seen]
    return known + sorted(seen - set(known))
