"""One spec, all contenders -> rows."""

from collections.abc import Mapping, Sequence

from bench.cases import Spec
from bench.contenders import BASELINE
from bench.results import OK, Row
from bench.sessions import Session, Unfit
from bench.timing import alternate, ratios, spread


def measure(spec: Spec, sessions: Mapping[str, Session], seconds: float) -> list[Row]:
    """Verify every contender, then time in turns those that passed."""
    estimates, faults = {}, {}
    for name, session in sessions.items():
        try:
            estimates[name] = session.open(spec)
        except Unfit as error:
            faults[name] = str(error)
    samplers = {name: sessions[name].sample for name in estimates}
    taken = alternate(samplers, estimates, seconds) if samplers else {}
    return [
        row_of(spec, name, faults.get(name, OK), taken.get(name, ()), taken.get(BASELINE.name, ()))
        for name in sessions
    ]


def row_of(
    spec: Spec, contender: str, status: str, taken: Sequence[float], baseline: Sequence[float]
) -> Row:
    case = spec.case
    numbers = {}
    if taken:
        time = spread(taken)
        numbers |= {"turns": len(taken), "gflops": spec.flops() / time.median / 1e9}
        numbers |= {"ms": 1e3 * time.median, "ms_low": 1e3 * time.low, "ms_high": 1e3 * time.high}
    if taken and baseline:
        ratio = ratios(baseline, taken)
        numbers |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
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
        **numbers,
    )
