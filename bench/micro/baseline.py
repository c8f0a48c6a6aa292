"""Time torch.nn's LSTM, GRU and RNN as a user would find them on this GPU.

    python -m bench.micro.baseline --out FILE.csv [--seconds 300] [--start CASE] [--device cuda]

The cases stand in `specs()` in the order of their value: running out of time costs the last ones. A
row is one case in one mode, called as it is or replayed from a CUDA graph, verified and timed as in
every suite of the benchmark. A case that breaks is a row that says why.
"""

import argparse
import faulthandler
import sys
import time
from pathlib import Path

import torch

from bench import facts, jobs, series
from bench.cases import Spec
from bench.contenders import graph
from bench.micro.cases import specs
from bench.results import Row

SECONDS = 0.25  # of the calls of a case that are timed
SPARE = 3  # seconds that a case takes in all; none begins with less
HANG = 60  # seconds of one case; the process ends then


def rows(spec: Spec) -> list[Row]:
    """Of `torch.nn`, and of its replay on a GPU."""
    faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
    theirs = jobs.baseline(spec.case.job)
    contenders = (theirs, graph(theirs))
    found = series.rows_of(spec, contenders, SECONDS, suite="baseline", memory=True)
    if spec.device == "cuda":
        torch.cuda.synchronize()  # what the device cannot recover from ends the process here
    faulthandler.cancel_dump_traceback_later()
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    chosen = parser.parse_args(words)
    until = time.monotonic() + chosen.seconds - SPARE
    series.run(
        specs(chosen.device),
        rows,
        facts=facts.gather(device=chosen.device),
        path=chosen.out,
        until=until,
        start=chosen.start,
    )


if __name__ == "__main__":
    main()
