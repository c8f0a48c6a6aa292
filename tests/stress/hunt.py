"""Case after case until the time is over: what was found, and the simplest case that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .case import Case, simpler
from .child import Check, Child

LIMIT = 180.0  # seconds of a case; of denormal numbers some take half a minute


class Finding(NamedTuple):
    case: Case
    what: str


class Hunt:
    """Figures of the cases run so far.

    report: is told of each finding, and from time to time of the figures.
    """

    def __init__(self, check: Check, report: Callable[[str], None] = print, limit: float = LIMIT):
        self._child, self._report, self._limit = Child(check), report, limit
        self._begun = self._told = time.monotonic()
        self.cases = self.calls = 0
        self.findings: list[Finding] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def __str__(self) -> str:
        return (
            f"{self.cases} cases, {self.calls} calls, {self.seconds:.0f} s, "
            f"{len(self.findings)} findings"
        )

    def fails(self, case: Case) -> str:
        """What is wrong with a case, or nothing."""
        calls, wrong = self._child.run(case, self._limit)
        self.cases, self.calls = self.cases + 1, self.calls + calls
        return wrong

    def run(self, cases: Iterable[Case], seconds: float, line: Callable[[Case], str]) -> None:
        """All of the cases, or as many as there is time for. line(case) says how to repeat one."""
        for case in cases:
            if self.seconds > seconds:
                break
            if wrong := self.fails(case):
                self._report(f"{line(case)}\n  {wrong}")
                if not wrong.startswith("hang"):
                    case, wrong = self.shrunk(Finding(case, wrong), seconds / 10)
                    self._report(f"simpler: {line(case)}\n  {wrong}")
                self.findings.append(Finding(case, wrong))
            if time.monotonic() - self._told > 60:
                self._told = time.monotonic()
                self._report(str(self))

    def shrunk(self, found: Finding, seconds: float) -> Finding:
        """A case as simple as can be found in some seconds that fails, too."""
        end = time.monotonic() + seconds
        tried = set()
        smaller = True
        while smaller:
            smaller = False
            for case in simpler(found.case):
                if time.monotonic() > end:
                    return found
                if case not in tried:
                    tried.add(case)
                    if wrong := self.fails(case):
                        found, smaller = Finding(case, wrong), True
                        break
        return found

    def close(self) -> None:
        self._child.close()
