"""What is generated from all files of results: the figures of the README between its markers, and
the whole of bench/RESULTS.md."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bench import claims, plans, predictions
from bench.cases import CELLS
from bench.claims import Claim
from bench.results import Record
from bench.suites import SUITES
from bench.tables import grid, markdown

HEAD = """\
# Results

`python -m bench report` writes this page from the rows in `bench/results`. Times are milliseconds
a call, and microseconds in a table of latencies. A ratio says how many times faster a contender is
than the baseline of its row, which is `torch.nn` or a work-around with it. A ratio that scatters
by more than 10 % carries its ±. The README of the folder says how rows are measured.

Every table names its machine, its commit and its date. Rows of an older commit show older kernels.
Two threads on the AMD processor with AVX2 were timed before waiting contenders were stopped, so the
± there is large.
"""

SCHEDULES = """\
## Schedules on a GPU

`python -m bench.plans` times every schedule of the kernels for GPUs beside `torch.nn`: T = 100,
the input as wide as h, one direction. A cell says how many times faster than `torch.nn` a call is,
alone and replayed from a CUDA graph. It has the better of the two schedules that
`csrc/cuda/choose.h` knows. A dash stands for a size that was not reached in the time.
"""

PREDICTIONS = """\
### What one launch for all steps is predicted to take

**The first figure of a cell is not measured.** It is what `csrc/cuda/choose.h` expects of the
persistent kernels, which no GPU has run, in microseconds a step: `python -m bench.predictions`. The
two after it are those of the rows above, from a graph: the kernels with one launch a step, and
cuDNN. Training is forward and backward. A dash stands for no group of blocks that holds the layer,
or no row. A star says that `choose.h` expects another schedule to be faster in one of the passes.
"""


def blocks(results: list[list[Record]]) -> dict[str, str]:
    """What stands between the markers of the README, by the name of the block."""
    single = claims.claims(results, threads=1, dtype="float32")
    return {
        "line": headline(claims.newest(results)),
        "kinds": grid(claims.kinds(single)),
        "balance": grid(balance(results)),
        "means": grid(means(results)),
    }


def headline(records: list[Record]) -> str:
    """The machine and the date, and the geometric means over the models of `cpu`; then the same for
    a loss on the last output, where that was timed there too."""
    found = claims.claims([records], suite="cpu", dtype="float32", threads=1)
    if not found:
        return "No row of the suite `cpu` was saved."
    facts = found[-1].facts
    parts = [
        f"{cell} {' and '.join(mean_of(found, cell, mode) for mode in claims.MODES)}"
        for cell in CELLS
    ]
    models = len({claim.row.case for claim in found})
    return (
        f"{claims.name(facts)}, one thread, float32, {facts.date}: {', '.join(parts)} times as "
        f"fast as `torch.nn` in inference and training. These are geometric means over {models} "
        "models." + last_step(records)
    )


def last_step(records: list[Record]) -> str:
    """A sentence on the suite `last-step`, or nothing without rows."""
    found = claims.claims([records], suite="last-step", dtype="float32", threads=1)
    found = [claim for claim in found if claim.row.case.startswith("last")]
    cells = [f"{cell} {mean_of(found, cell, 'training')}" for cell in CELLS if found]
    if not cells:
        return ""
    return f" With a loss on the last output alone training is {', '.join(cells)} times as fast."


def mean_of(found: list[Claim], cell: str, mode: str) -> str:
    return claims.mean(found, cell=cell, mode=mode).partition(" ")[0]


def means(results: list[list[Record]]) -> list[list[str]]:
    columns = [(cell, mode) for cell in CELLS for mode in claims.MODES]
    out = [["machine (commit, date)", *(f"{cell} {mode}" for cell, mode in columns)]]
    out.append(["---"] + ["---:"] * len(columns))
    for where, found in claims.means(results):
        out.append([where, *(mean_of(found, *column) for column in columns)])
    return out


def opponents(results: list[list[Record]]) -> Iterator[tuple[str, list[Claim]]]:
    """Against whom, and the claims in float32."""
    peers = "onnxruntime and OpenVINO, the faster"
    for who, against in (("`torch.nn`", claims.to_torch), (peers, claims.to_peers)):
        for threads, words in ((1, "1 thread"), (2, "2 threads")):
            found = claims.claims(results, against, threads=threads, dtype="float32")
            if found:
                yield f"{who}, {words}", found


def balance(results: list[list[Record]]) -> list[list[str]]:
    out = [["against", *claims.VERDICTS, "the least"], ["---", "---:", "---:", "---:", "---"]]
    return out + [[who, *claims.balance(found)] for who, found in opponents(results)]


def not_faster(results: list[list[Record]]) -> list[list[str]]:
    """Every row in which fastrnn is even or slower, the least first."""
    out = [["against", "case", "cell", "mode", "ratio", "±", "verdict", "machine (commit)"]]
    out.append(["---"] * 4 + ["---:"] * 2 + ["---"] * 2)
    for who, found in opponents(results):
        for claim in sorted(found, key=lambda claim: claim.ratio):
            row, figures = claim.row, [f"{claim.ratio:.2f}", f"{claim.noise:.0%}"]
            if claim.verdict != "faster":
                place = [who, row.case, row.cell, row.mode]
                where = f"{claims.name(claim.facts)} ({claim.facts.commit})"
                out.append([*place, *figures, claim.verdict, where])
    return out


def page(results: list[list[Record]], schedules: Iterable[list[Record]] = ()) -> str:
    """bench/RESULTS.md: a section for each suite, in it the tables of each machine, and one for the
    rows of `bench.plans`."""
    parts = [HEAD, f"## Where it is not faster\n\n{grid(not_faster(results))}\n"]
    for suite in claims.order(results):
        about = f": {SUITES[suite].about}" if suite in SUITES else ""
        parts.append(f"## {suite}\n\n`{suite}`{about}.\n")
        found = [[one for one in records if one[0].suite == suite] for records in results]
        parts += [markdown(records) + "\n" for records in found if records]
    for records in schedules:
        parts.append(f"{SCHEDULES}\n{records[-1][1].machine()}:\n\n{plans.table(records)}\n")
        parts.append(f"{PREDICTIONS}\n{predictions.table(records)}\n")
    return "\n".join(parts)


def rewrite(
    root: Path, results: list[list[Record]], schedules: Iterable[list[Record]] = ()
) -> list[Path]:
    """Write README.md and bench/RESULTS.md below `root`. ValueError where the README lacks a
    marker; both are then left alone."""
    readme, tables = root / "README.md", root / "bench" / "RESULTS.md"
    text = readme.read_text()
    for name, found in blocks(results).items():
        text = replace_between_markers(text, found, name)
    readme.write_text(text)
    tables.parent.mkdir(exist_ok=True)
    tables.write_text(page(results, schedules))
    return [readme, tables]


def markers(name: str) -> tuple[str, str]:
    return f"<!-- bench:begin {name} -->", f"<!-- bench:end {name} -->"


def replace_between_markers(text: str, found: str, name: str) -> str:
    """ValueError where the markers are not there, once and in order."""
    first, last = markers(name)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise ValueError(f"the text needs one {first} and, after it, one {last}")
    return f"{before}{first}\n{found}\n{last}{after}"
