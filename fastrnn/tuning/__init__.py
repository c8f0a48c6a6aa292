"""`fastrnn.tune`: our kernels and PyTorch's own, measured on the user's GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch

from ..arguments import check_kind
from ..dispatch import LOOPS, gpu, race, status_on, tuned
from ..dispatch.tuned import Point
from .measure import Gpu, Machine
from .report import Report, progress
from .shapes import Kind, grid, met


def tune(
    run: Callable[[], Any] | None = None,
    *,
    device: torch.device | str | None = None,
    quiet: bool = False,
) -> Report:
    """Measures on an NVIDIA GPU where our kernels are faster than PyTorch's own, and keeps it.

    "auto" then takes the faster ones, in this process and in later ones on the same GPU, driver and
    versions of torch and fastrnn. What was measured here wins over what fastrnn knows by itself.
    Calls are measured called one by one and replayed from a CUDA graph, in inference and in
    training, and ours have to be faster in both. Between the sizes that were measured ours are
    taken where they were faster at all the sizes around. An interrupt keeps what is done.

    No GPU has run this yet.

    Args:
        run: a function without arguments that runs a model, for example a training step over some
            batches. The sizes of the layers that it calls are measured, by their kinds: where there
            are many lengths or batch sizes the least, the largest and one between. Without it a
            grid of sizes of LSTM and GRU in one direction is, in float32 as torch's settings have
            it, float16 and bfloat16, which takes some minutes.
        device: a GPU; the current one by default.
        quiet: whether to show no progress.

    Returns:
        What changed and by how much; `print` shows it as a table.

    Raises:
        TypeError: `run` is no function.
        RuntimeError: there is no such GPU, or our kernels cannot run on it.
        OSError: the cache folder cannot be written.

    Example:
        >>> report = fastrnn.tune(lambda: model(batch).sum().backward())  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    check_kind("run", run, (Callable, NoneType), "a function")
    on = _gpu(device)
    reasons = {each: status_on(each.NAME, on) for each in LOOPS}
    kernels = next((each for each, reason in reasons.items() if reason is None), None)
    if kernels is None:
        reasons = "; ".join(f"{each.NAME}: {reason}" for each, reason in reasons.items())
        raise RuntimeError(f"there is nothing to tune: {reasons}")
    kinds = grid() if run is None else met(run, on)
    with gpu.current(on):
        return measured(kinds, kernels, Gpu(on), quiet)


def _gpu(device: torch.device | str | None) -> torch.device:
    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise RuntimeError("there is no NVIDIA GPU that torch can use")
    found = torch.device("cuda" if device is None else device)
    if found.type != "cuda":
        raise RuntimeError(f"tuning is for GPUs, got the device {found}")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def measured(kinds: list[Kind], kernels: Any, machine: Machine, quiet: bool = True) -> Report:
    """Measures each kind on a machine, keeps the results, and says what they changed."""
    tuned.FILE.change(lambda entries: None)  # raises now, not after minutes
    report = Report(kernels.NAME)
    before = {(k, point): _ours(machine, kernels, k, point) for k in kinds for point in k.points()}
    reasons: dict[Kind, str | None] = {}
    times: dict[Kind, dict] = {kind: {} for kind in kinds}
    try:
        for kind, point in progress(list(before), quiet):
            if kind not in reasons:
                reasons[kind] = machine.obstacle(kernels, kind)
            why, found = reasons[kind], None
            if why is None:
                found = machine.measure(kernels, kind, point)
                why = "they do not fit in memory"
            if found is None:
                report.untouched[why] = report.untouched.get(why, 0) + 1
            else:
                times[kind][point] = found
    finally:
        for kind in kinds:
            if times[kind]:
                tuned.keep(machine.device, kind.lattice(kernels.NAME, times[kind]))
    for (kind, point), was in before.items():
        if point in times[kind]:
            now = _ours(machine, kernels, kind, point)
            report.add(kind, point, times[kind][point], was, now)
    return report


def _ours(machine: Machine, kernels: Any, kind: Kind, point: Point) -> bool:
    """Whether "auto" takes ours in such a call."""
    return race.expected(machine.device, kind.question(kernels.NAME, machine.major, point))
