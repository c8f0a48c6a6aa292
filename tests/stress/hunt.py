"""Case after case until the time is over: what was found, and the simplest case that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .case import Case, simpler
from .child import Check, Child
from .draw import line

LIMIT = 180.0  # seconds of a case; with denormal numbers some take half a minute
PATIENCE = 60.0  # seconds for making a finding simpler, and between two lines of figures


class Finding(NamedTuple):
    case: Case
    what: str

    def __str__(self) -> str:
        return f"{line(self.case)}\n    {' '.join(self.what.split())}"


class Hunt:
    """Findings, and figures of the cases run so far.

    check: what is done with a case; a function of a module.
    report: is told of each finding, and from time to time of the figures.
    limit: seconds of a case, after which it hangs.
    """

    def __init__(
        self, check: Check, report: Callable[[str], None] | None = None, limit: float = LIMIT
    ) -> None:
        self._child, self._limit = Child(check), limit
        self._report = report or (lambda text: print(text, flush=True))
        self._begun = self._told = time.monotonic()
        self.cases = self.calls = 0
        self.findings: list[Finding] = []

    def __enter__(self) -> Hunt:
        return self

    def __exit__(self, *error) -> None:
        self._child.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def __str__(self) -> str:
        return (
            f"{self.cases} cases, {self.calls} calls, {self.seconds:.0f} s, "
            f"{len(self.findings)} findings"
        )

    def run(self, cases: Iterable[Case], seconds: float = float("inf")) -> None:
        """All of the cases, or as many as there is time for."""
        for case in cases:
            if self.seconds > seconds:
                break
            if wrong := self._wrong(case):
                finding = Finding(case, wrong)
                self._report(str(finding))
                if not wrong.startswith("hang"):
                    simple = self._simplest(finding, min(PATIENCE, seconds / 10))
                    if simple != finding:
                        self._report(f"simpler: {simple}")
                        finding = simple
                self.findings.append(finding)
            if time.monotonic() - self._told > PATIENCE:
                self._told = time.monotonic()
                self._report(str(self))

    def _wrong(self, case: Case) -> str:
        """What is wrong with a case, or nothing."""
        calls, wrong = self._child.run(case, self._limit)
        self.cases, self.calls = self.cases + 1, self.calls + calls
        return wrong

    def _simplest(self, finding: Finding, seconds: float) -> Finding:
        """A case as simple as can be found in some seconds that fails, too."""
        end, tried, smaller = time.monotonic() + seconds, set(), True
        while smaller:
            smaller = False
            for case in simpler(finding.case):
                if time.monotonic() > end:
                    return finding
                if case not in tried and (wrong := self._wrong(case)):
                    finding, smaller = Finding(case, wrong), True
                    break
                tried.add(case)
        return finding
