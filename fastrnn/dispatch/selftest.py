"""Whether kernels for GPUs may be taken where nobody has tried them: once a self-test has passed.

It compares tiny layers, forward and backward, in the precision of a call. The first call waits for
it, and the result is kept for later processes. Meanwhile and after it kernels run in `SCHEDULES` of
their backend alone, whatever the environment says. In these no block waits for another, so each
launch ends, whatever it computes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from ..call import Call
from ..table import CELLS, cell_named
from ..torch_private import constant_in_graphs
from . import choice, gpu, kept, trial

LEAST = 8  # the major compute capability from which on the kernels run
LIMIT = 0.3  # seconds for all layers, once kernels are compiled and loaded
PATIENCE = 60.0  # seconds until they are

FILE = kept.File("selftest.json")


class Subject(NamedTuple):
    """What one test is about."""

    backend: str
    device: torch.device
    dtype: torch.dtype
    precision: str  # see `gpu.precision`
    cell: str  # a name in the table, or "" for all that are built in

    @property
    def title(self) -> str:
        return f"{self.backend}, {self.precision}, {self.cell or 'all cells'}"

    def key(self, version: str | None) -> str:
        """Under which the result is kept."""
        return f"{self.title}: {version}, {kept.machine(self.device)}"


class Verdict(NamedTuple):
    """How a test ended."""

    reason: str | None  # why the kernels are not to be taken
    lasting: bool = True  # whether another process would find the same


_verdicts: dict[Subject, Verdict] = {}
_lock = threading.Lock()  # held while a test runs


def subject(kernels: ModuleType, cell: str, device: torch.device, dtype: torch.dtype) -> Subject:
    """What must have passed before a call. Kernels compiled at their first use are tested cell by
    cell."""
    alone = cell_named(cell).step or not kernels.COMPILED
    return Subject(kernels.NAME, device, dtype, gpu.precision(dtype), cell if alone else "")


def refused(kernels: ModuleType, call: Call) -> str | None:
    """Why kernels may not be taken for a call, or None if they have passed. The first time of a
    subject it tests, or reads what was found, and warns if that was bad."""
    if torch.compiler.is_compiling():
        return _refused_in_graph(kernels, call.input.device, call.input.dtype, call.cell) or None
    asked = subject(kernels, call.cell, call.input.device, call.input.dtype)
    verdict = _verdicts.get(asked)
    return (verdict or _found(kernels, asked, call)).reason


@constant_in_graphs
def _refused_in_graph(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, cell: str
) -> str:
    """`refused` while a graph is made, where tensors have no numbers; "" for None."""
    return _found(kernels, subject(kernels, cell, device, dtype), None).reason or ""


def _found(kernels: ModuleType, asked: Subject, call: Call | None) -> Verdict:
    """What is known of a subject, or what a test now finds."""
    if gpu.nvidia(asked.device) < LEAST:
        name = kernels.NAME
        return Verdict(f"{name} was not tried on such a GPU; fastrnn.backend('{name}') takes it")
    if torch.cuda.is_current_stream_capturing():
        return Verdict("no self-test can run while a CUDA graph is captured: make a call before")
    with _lock:
        verdict = _verdicts.get(asked) or _remembered(kernels, asked)
        function = cell_named(asked.cell).step if asked.cell else None
        if verdict is None and function and call is None:
            return Verdict("its self-test needs a call outside of torch.compile, before")
        known = asked in _verdicts
        if verdict is None:
            verdict = run(kernels, asked, call)
        _verdicts[asked] = verdict
    if verdict.reason and not (known or function):  # of functions the reference warns
        warnings.warn(
            "what torch.nn lacks runs as a loop of PyTorch's operations on this GPU, which is "
            f"slow: {verdict.reason}",
            stacklevel=2,
        )
    return verdict


def kept_of(device: torch.device) -> dict[str, str]:
    """What was found on this machine, in this process or an earlier one: "passed", or why not."""
    return {
        key.split(":")[0]: entry["reason"] or "passed"
        for key, entry in FILE.read().items()
        if kept.is_of(key, device) and _is_result(entry)
    }


def _is_result(entry: object) -> bool:
    """Whether an entry of the file tells how a test ended: not where it is damaged."""
    if not isinstance(entry, dict) or "began" in entry or "reason" not in entry:
        return False
    return entry["reason"] is None or isinstance(entry["reason"], str)


def _failed(asked: Subject, why: str) -> str:
    return f"the {asked.backend} kernels did not pass their self-test: {why}"


def _remembered(kernels: ModuleType, asked: Subject) -> Verdict | None:
    """What an earlier process found, if any did."""
    entry = FILE.read().get(asked.key(kernels.version()))
    if _is_result(entry):
        return Verdict(entry["reason"])
    began = entry.get("began") if isinstance(entry, dict) else None
    if not isinstance(began, (int, float)):
        return None
    if time.time() - began < PATIENCE:  # another process is at it
        return None
    again = "its process ended meanwhile; `python -m fastrnn selftest` runs it again"
    return Verdict(_failed(asked, again))


def run(
    kernels: ModuleType,
    asked: Subject,
    call: Call | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Runs the test and keeps the result; `call` is one of a cell that is a function."""
    key = asked.key(kernels.version())
    _keep(key, {"began": time.time()})  # which stays if the process does not survive the test
    entry = None
    try:
        test = functools.partial(_test, kernels, asked, call, clock)
        verdict = _in_time(test, PATIENCE, asked.device)
        if verdict.reason:
            verdict = verdict._replace(reason=_failed(asked, verdict.reason))
        if verdict.lasting:
            entry = {"reason": verdict.reason}
    finally:
        _keep(key, entry)
    _verdicts[asked] = verdict
    return verdict


def _keep(key: str, entry: dict | None) -> None:
    def change(entries: dict) -> None:
        entries.pop(key, None)
        if entry is not None:
            entries[key] = entry

    # Where the folder cannot be written, each process tests anew.
    with contextlib.suppress(OSError):
        FILE.change(change)


def _in_time(test: Callable[[], Verdict], seconds: float, device: torch.device) -> Verdict:
    """What a test finds, in a thread of its own: no mode, autocast or device of the caller's counts
    there."""
    found: list[Verdict] = []

    def work() -> None:
        try:
            found.append(test())
        except Exception as error:  # whatever it is, it is what the test is about
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            found.append(Verdict(text, lasting=_is_lost(device)))

    thread = threading.Thread(target=work, name="fastrnn self-test", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else Verdict(f"it took more than {seconds:g} s", lasting=False)


def _is_lost(device: torch.device) -> bool:
    """Whether a GPU refuses the process whatever it asks, as after an illegal access."""
    try:
        torch.cuda.synchronize(device)
    except Exception:  # which of several types it has depends on who made the call that failed
        return True
    return False


def _test(
    kernels: ModuleType, asked: Subject, call: Call | None, clock: Callable[[], float]
) -> Verdict:
    device, dtype = asked.device, asked.dtype
    cases = [c.to("cpu", dtype) for c in trial.cases([asked.cell] if asked.cell else CELLS, call)]
    wanted = [trial.expected(case) for case in cases]
    cases = [case.to(device, dtype) for case in cases]
    spent = 0.0
    for schedule in kernels.SCHEDULES:
        with gpu.current(device), choice.testing(schedule):
            for case in cases:
                trial.results(kernels, case)  # compiles and loads
            began = clock()
            found = [trial.results(kernels, case) for case in cases]
            spent += clock() - began
        for case, own, right in zip(cases, found, wanted, strict=True):
            if text := trial.wrong(own, right, case, dtype):
                return Verdict(f"{schedule} {text}")
    if spent > LIMIT:
        return Verdict(f"it took {spent:.1f} s, more than {LIMIT} s", lasting=False)
    return Verdict(None)
