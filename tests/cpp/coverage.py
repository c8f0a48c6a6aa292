"""Which lines and branches of csrc/cpu ran: python tests/cpp/coverage.py FOLDER...

Reads what programs compiled with --coverage left in the folders. Prints a table and every line that
never ran. Fails if that is a line, or a branch, of how threads share the work (WHOLE).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

WHOLE = ("split.h", "team.h", "tasks.h")
CPU = Path(__file__).parents[2] / "csrc/cpu"
# Lines that a compiler gives branches of its own: whether an array is too large, and whether there
# is an exception where there always is one.
HIDDEN = (" new ", "rethrow_exception(")


class Source:
    """A file as all instances of its templates saw it: a line ran if it ran in one of them."""

    def __init__(self):
        self.lines: dict[int, bool] = defaultdict(bool)
        self.branches: dict[tuple[int, int, int], bool] = defaultdict(bool)

    def add(self, line: dict) -> None:
        number = line["line_number"]
        self.lines[number] |= line["count"] > 0
        branches = [b for b in line["branches"] if not b["throw"]]
        for i, branch in enumerate(branches):
            self.branches[number, len(branches), i] |= branch["count"] > 0

    def missed_lines(self) -> list[int]:
        return sorted(number for number, ran in self.lines.items() if not ran)

    def missed_branches(self) -> list[int]:
        return sorted({number for (number, *_), ran in self.branches.items() if not ran})


def read(folders: list[str]) -> dict[str, Source]:
    sources: dict[str, Source] = defaultdict(Source)
    for folder in folders:
        for counts in sorted(Path(folder).rglob("*.gcda")):
            command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", counts]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for report in map(json.loads, text.splitlines()):
                for file in report["files"]:
                    if Path(file["file"]).parts[-3:-1] == ("csrc", "cpu"):
                        for line in file["lines"]:
                            sources[Path(file["file"]).name].add(line)
    return dict(sorted(sources.items()))


def ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1-3 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def main(folders: list[str]) -> int:
    sources = read(folders)
    failed = not sources
    every = ran = 0
    for name, source in sources.items():
        missed, text = source.missed_lines(), (CPU / name).read_text().splitlines()
        branches = [
            number
            for number in source.missed_branches()
            if not any(word in text[number - 1] for word in HIDDEN)
        ]
        every += len(source.lines)
        ran += len(source.lines) - len(missed)
        share = 1 - len(missed) / len(source.lines)
        print(f"{name:18} {share:7.1%}  {ranges(missed)}")
        if name in WHOLE and (missed or branches):
            failed = True
            print(f"{name:18} branches that never went one way: {ranges(branches)}")
    missing = [name for name in WHOLE if name not in sources]
    if missing:
        print("never compiled:", *missing)
    print(f"{'csrc/cpu':18} {ran / max(1, every):7.1%} of {every} lines")
    return int(failed or bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
