"""Time torch.nn's LSTM, GRU and RNN as a user would find them on this GPU.

    python -m bench.micro.baseline --out FILE.csv [--seconds 300] [--start CASE] [--device cuda]

The cases stand in `cases()` in the order of their value: running out of time costs the last ones.
A row is one case in one mode, with or without a CUDA graph. Medians and the distances of quartiles
are of CUDA events around single calls. A case that breaks is a row that says why.
"""

import argparse
import copy
import csv
import faulthandler
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

from bench.micro.cases import DTYPES, Case, cases
from bench.micro.run import gather_facts

CASE_SECONDS = 3  # of one case; what is not measured by then is left out
HANG_SECONDS = 60  # of one case; the process ends then
MODES = ("inference", "training", "forward")


@dataclass(frozen=True)
class Row:
    """One figure. Where status is not "ok" it says why there is none."""

    case: Case
    mode: str
    graph: bool
    status: str
    us: float | None = None  # median of a call
    us_spread: float | None = None  # distance of the quartiles
    calls: int = 0
    us_per_step: float | None = None  # us / T
    peak_mib: float | None = None  # above what was allocated before the call
    error_y: float | None = None  # |y - ref| / |ref| against float64, on fewer steps
    error_y_max: float | None = None
    error_dw: float | None = None  # the same of the gradient of weight_hh_l0
    launches: int | None = None  # kernels of a call of min(T, 64) steps
    kernels: str = ""  # their names, those that took longest first


class Problem:
    """A module with its input, and the calls that are timed."""

    def __init__(self, case: Case, device: torch.device):
        torch.manual_seed(0)
        torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = case.dtype == "tf32"
        self.case = case
        dtype = DTYPES[case.dtype]
        self.module = getattr(nn, case.cell)(
            case.I,
            case.H,
            case.layers,
            bidirectional=case.directions == 2,
            device=device,
            dtype=dtype,
        )
        x = torch.randn(case.T, case.B, case.I, device=device).to(dtype)
        lengths = torch.linspace(case.T, (case.T + 1) // 2, case.B).round().long()
        self.packed = pack_padded_sequence(x, lengths) if case.packed else None
        self.x = (self.packed.data if self.packed else x).requires_grad_()
        self.dy = torch.randn(*self.x.shape[:-1], case.directions * case.H, device=device).to(dtype)

    def outputs(self) -> Tensor:
        """y (T, B, D * H), or its packed rows."""
        if self.packed is None:
            return self.module(self.x)[0]
        return self.module(PackedSequence(self.x, self.packed.batch_sizes))[0].data

    def inference(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.outputs()]

    def forward(self) -> list[Tensor]:
        return [self.outputs()]

    def training(self) -> list[Tensor]:
        """y and the gradients of the input and of every parameter."""
        y = self.outputs()
        return [y, *torch.autograd.grad(y, [self.x, *self.module.parameters()], self.dy)]

    def reference(self) -> "Problem":
        """The same numbers in float64 on the CPU."""
        other = object.__new__(Problem)
        other.case, other.packed = self.case, self.packed
        other.module = copy.deepcopy(self.module).to("cpu", torch.float64)
        other.x = self.x.detach().double().cpu().requires_grad_()
        other.dy = self.dy.double().cpu()
        return other


def errors(case: Case, device: torch.device) -> dict[str, float]:
    """Against float64 on at most 16 sequences and 32 steps, fewer where layers or H are many."""
    steps = 32 // case.layers if case.H <= 1024 else 8
    problem = Problem(replace(case, T=min(case.T, steps), B=min(case.B, 16)), device)
    names = ["x", *(name for name, _ in problem.module.named_parameters())]
    weight = 1 + names.index("weight_hh_l0")
    got = [value.detach().double().cpu() for value in problem.training()]
    want = [value.detach() for value in problem.reference().training()]

    def relative(i: int) -> float:
        return float((got[i] - want[i]).norm() / want[i].norm().clamp(min=1e-30))

    largest = float((got[0] - want[0]).abs().max())
    return {"error_y": relative(0), "error_y_max": largest, "error_dw": relative(weight)}


def kernels(case: Case, mode: str, device: torch.device) -> dict[str, int | str]:
    """What ran on the device in one call of at most 64 steps."""
    problem = Problem(replace(case, T=min(case.T, 64)), device)
    call = getattr(problem, mode)
    call()
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        call()
        synchronize(device)
    count, took = Counter(), Counter()
    for event in trace.events():
        if device.type != "cuda" or event.device_type == torch.autograd.DeviceType.CUDA:
            count[event.name] += 1
            took[event.name] += event.time_range.elapsed_us()
    names = [f"{name[:160]} x{count[name]}" for name, _ in took.most_common(6)]
    return {"launches": sum(count.values()), "kernels": "; ".join(names)}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: torch.device, seconds: float) -> dict[str, float]:
    """Median and spread of single calls, 5 to 100 of them, for about `seconds`."""
    call()
    synchronize(device)
    begun = time.perf_counter()
    call()
    synchronize(device)
    count = min(max(int(seconds / (time.perf_counter() - begun)), 5), 100)
    if device.type == "cuda":
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in pairs:
            start.record()
            call()
            end.record()
        synchronize(device)
        us = [1e3 * start.elapsed_time(end) for start, end in pairs]
    else:
        us = []
        for _ in range(count):
            begun = time.perf_counter()
            call()
            us.append(1e6 * (time.perf_counter() - begun))
    low, median, high = statistics.quantiles(us, n=4)
    return {"us": median, "us_spread": high - low, "calls": count}


def capture(call: Callable[[], list[Tensor]]) -> Callable[[], None]:
    """The replay of a CUDA graph of `call`, whose results were compared with those of a call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            want = [value.detach().clone() for value in call()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [value.detach() for value in call()]
    for value in got:
        value.fill_(torch.nan)
    graph.replay()
    for value, other in zip(got, want, strict=True):
        if not (value - other).float().norm() <= 0.02 * other.float().norm():
            raise RuntimeError("the graph's results differ")
    return graph.replay


def measure_mode(problem: Problem, mode: str, graph: bool, row: Row, device: torch.device) -> Row:
    """`row` with its figures, or with what stood in their way."""
    call = getattr(problem, mode)
    figures = {}
    try:
        if graph:
            call = capture(call)
        elif device.type == "cuda":
            call()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            figures["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        figures |= timed(call, device, CASE_SECONDS / 12)
        figures["us_per_step"] = figures["us"] / row.case.T
        if not graph and mode != "forward":
            figures |= kernels(row.case, mode, device)
    except RuntimeError as error:
        return replace(row, status=_reason(error))
    return replace(row, **figures)


def measure(case: Case, device: torch.device) -> Iterator[Row]:
    """The rows of a case, for about CASE_SECONDS, and as far as the first wrong answer."""
    until = time.monotonic() + CASE_SECONDS
    try:
        found = errors(case, device)
        problem = Problem(case, device)
    except RuntimeError as error:
        yield Row(case, "any", False, _reason(error))
        return
    blank = Row(case, "any", False, "ok", **found)
    if not found["error_y"] < 0.1:
        yield replace(blank, status="wrong")
        return
    for mode in MODES:
        for graph in (False, True) if device.type == "cuda" else (False,):
            if time.monotonic() < until:
                row = replace(blank, mode=mode, graph=graph)
                yield measure_mode(problem, mode, graph, row, device)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__


def write(path: Path, rows: Iterable[Row], facts: dict[str, str]) -> None:
    """Append, and begin a new file with the names of the columns."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        for row in rows:
            record = asdict(row)
            record = record.pop("case") | record | facts
            writer = csv.DictWriter(file, list(record), lineterminator="\n")
            if new:
                writer.writeheader()
            new = False
            writer.writerow(
                {key: f"{v:.5g}" if isinstance(v, float) else v for key, v in record.items()}
            )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    chosen = parser.parse_args(words)
    begun = time.monotonic()
    facts = gather_facts() | {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }
    every = cases()
    for number, case in enumerate(every[chosen.start :], chosen.start):
        if time.monotonic() - begun > chosen.seconds - CASE_SECONDS:
            print(f"out of time: {len(every) - number} cases of {len(every)} left out", flush=True)
            break
        print(f"case {number} {case}", flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
        for row in measure(case, chosen.device):
            write(chosen.out, [row], facts)
            graph = "graph" if row.graph else "eager"
            us = "" if row.us is None else f"{row.us:.1f} us, {row.us_per_step:.3f} a step"
            print(f"  {row.mode} {graph} {row.status} {us}", flush=True)
        # An error that the device cannot recover from ends the process here.
        synchronize(chosen.device)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
