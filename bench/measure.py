"""One spec, all contenders -> rows."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from bench.cases import RAGGED, Spec
from bench.ceilings import Ceilings, floor
from bench.results import OK, Row
from bench.sessions import Session, Unfit
from bench.timing import Turn, alternate, percentile, ratios, spread


def measure(
    spec: Spec,
    sessions: Mapping[str, Session],
    seconds: float,
    *,
    baseline: str = "torch.nn",
    ceilings: Ceilings | None = None,
    memory: bool = False,
    suite: str = "cpu",
) -> list[Row]:
    """Verify every contender, then time in turns those that passed."""
    estimates, faults, errors, peaks, kernels, hosts = {}, {}, {}, {}, {}, {}
    for name, session in sessions.items():
        try:
            estimates[name] = session.open(spec)
            errors[name] = session.error()
            peaks[name] = session.peak() if memory else None
            if spec.device == "cuda":
                kernels[name], hosts[name] = session.kernels(), session.host()
        except Unfit as error:
            faults[name] = str(error)
            estimates.pop(name, None)
    samplers = {name: sessions[name].sample for name in estimates}
    taken = alternate(samplers, estimates, seconds) if samplers else {}
    least = floor(spec, ceilings) if ceilings else None
    rows = []
    for name in sessions:
        numbers = figures(spec, taken.get(name, ()), taken.get(baseline, ()), least)
        if name in errors:
            numbers["error"] = errors[name]
        if name in hosts:
            numbers["host_ms"] = 1e3 * hosts[name]
        if peaks.get(name) is not None:
            numbers["peak_mib"] = peaks[name] / 2**20
        row = row_of(spec, name, faults.get(name, OK), suite, baseline, **numbers)
        rows.append(replace(row, kernels=kernels.get(name, "")))
    return rows


def figures(
    spec: Spec, turns: Sequence[Turn], baseline: Sequence[Turn], least: float | None
) -> dict[str, float]:
    """The columns that are read off the samples of a contender and of the baseline."""
    if not turns:
        return {}
    middles = [statistics.median(turn) for turn in turns]
    time = spread(middles)
    found = {"turns": len(turns), "gflops": spec.flops() / time.median / 1e9}
    found |= {"ms": 1e3 * time.median, "ms_low": 1e3 * time.low, "ms_high": 1e3 * time.high}
    if spec.case.streams and spec.device == "cpu":
        calls = list(chain.from_iterable(turns))
        found |= {"ms": 1e3 * statistics.median(calls), "ms_p99": 1e3 * percentile(calls, 0.99)}
        if len(calls) >= 1000:
            found["ms_p999"] = 1e3 * percentile(calls, 0.999)
    if baseline:
        ratio = ratios([statistics.median(turn) for turn in baseline], middles)
        found |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
    if least is not None:
        found["floor_ms"] = 1e3 * least
    return found


def row_of(
    spec: Spec, contender: str, status: str, suite: str, baseline: str, **numbers: float
) -> Row:
    case = spec.case
    return Row(
        case=case.name,
        T=case.T,
        N=case.N,
        input_size=case.input_size,
        hidden_size=case.hidden_size,
        layers=case.layers,
        cell=spec.cell,
        mode=spec.mode,
        dtype=spec.dtype,
        threads=spec.threads,
        contender=contender,
        status=status,
        directions=case.directions,
        device=spec.device,
        suite=suite,
        baseline=baseline,
        proj_size=case.proj_size,
        filled=case.filled() if case.job in RAGGED else None,
        **numbers,
    )
