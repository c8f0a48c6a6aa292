"""Other people's libraries with our modules in them: `python tests/thirdparty [NAME ...]`.

Runs each program of `programs` in a process of its own, and prints the table of docs/swap.md. Not a
part of `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import programs
from environment import ROOT, VERSIONS, environment


def main() -> int:
    names = sys.argv[1:] or list(programs.PROGRAMS)
    python, failed = environment(VERSIONS), False
    print("| library | version | what ran | result |\n| --- | --- | --- | --- |")
    for name in names:
        run = subprocess.run(
            [python, "-W", "ignore", programs.__file__, name],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        title = programs.PROGRAMS[name].__doc__.rstrip(".")
        lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
        result = lines[-1] if lines else f"ended with {run.returncode}"
        failed |= run.returncode != 0
        print(f"| {name} | {VERSIONS[name]} | {title} | {result} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
