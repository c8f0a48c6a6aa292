"""The options of `python -m bench`."""

import argparse
from pathlib import Path

from bench.cases import CELLS, DTYPES, MODES, PUBLISHED, STEPS
from bench.facts import ROOT
from bench.jobs import names
from bench.results import FOLDER
from bench.suites import SUITES

EPILOG = """\
suites:
{suites}

A contender is verified before it is timed. Exit status: 0, or 1 if one was wrong or failed.
See bench/README.md."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    width = max(map(len, SUITES))
    suites = "\n".join(f"  {name:{width}}  {suite.about}" for name, suite in SUITES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Time fastrnn against torch.nn and others. report: tables, plots and a page.",
        epilog=EPILOG.format(suites=suites),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="*", choices=[*SUITES, "report", []], metavar="SUITE | report")
    add("--suite", action="append", choices=SUITES, default=[], help=argparse.SUPPRESS)
    add("--list", action="store_true", help="show what would be timed, and who runs such a model")
    select = parser.add_argument_group(
        "what is timed (commas separate; default: what the suite says)"
    )
    add = select.add_argument
    add("--filter", default="", metavar="WORDS", help="cases whose names contain one of a,b,c")
    add("--cells", type=some(*CELLS, *STEPS, *PUBLISHED), default=(), metavar=",".join(CELLS))
    add("--modes", type=some(*MODES), default=(), metavar=",".join(MODES))
    add("--dtypes", type=some(*DTYPES), default=(), metavar=",".join(DTYPES))
    add("--threads", type=counts, default=(), metavar="1,2")
    add("--device", choices=("cpu", "cuda"), default="")
    add(
        "--contenders", type=some(*names(), separator=";"), default=(), metavar="A;B",
        help="only these and torch.nn, separated by semicolons; those to choose from: "
        + "; ".join(names()),
    )  # fmt: skip
    add("--seconds", type=float, metavar="S", help="of timing a row")
    add("--at-most", type=float, metavar="S", help="begin no row after so many seconds of the run")
    add("--base", metavar="REF", help="time fastrnn against itself at this commit, nobody else")
    results = parser.add_argument_group("what becomes of it")
    add = results.add_argument
    add("--save", action="store_true", help="write <machine>.csv into the folder of results")
    add(
        "--results", type=Path, default=FOLDER, metavar="FOLDER",
        help="where --save writes and report reads (default: bench/results)",
    )  # fmt: skip
    add("--compare", type=Path, metavar="FILE", help="show how ratios changed since that .csv")
    add(
        "--root", type=Path, default=ROOT, metavar="FOLDER",
        help="whose README.md, bench/RESULTS.md and docs/pictures report writes (default: here)",
    )  # fmt: skip
    add(
        "--out", type=Path, default=ROOT / "build" / "bench", metavar="FOLDER",
        help="where report writes plots and page (default: build/bench)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.suites = [*options.what, *options.suite] or ["quick"]
    if "report" in options.suites and len(options.suites) > 1:
        parser.error("report stands alone")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare: there is no file {options.compare}")
    if options.base and options.save:
        parser.error("--save keeps ratios to torch.nn, --base gives others")
    return options


def some(*allowed: str, separator: str = ","):
    lookup = {word.lower(): word for word in allowed}

    def words(text: str) -> tuple[str, ...]:
        found = [word.strip().lower() for word in text.split(separator)]
        unknown = [word for word in found if word not in lookup]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return tuple(lookup[word] for word in found)

    return words


def counts(text: str) -> tuple[int, ...]:
    found = tuple(int(word) for word in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError("a number of threads is at least 1")
    return found
