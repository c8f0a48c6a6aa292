"""What was built, what runs here and whether it is right.

The exit status is 1 where something is wrong. `selftest` compares the kernels for GPUs with the
reference; where nobody has tried a kind of GPU, "auto" goes by that. `tune` measures where they are
faster than PyTorch's own, for some minutes; "auto" then takes the faster ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from fastrnn import diagnosis, tuning

_WORDS = {"slower": "this torch lacks {}, so calls take a longer way"}


def text_of(facts: dict) -> str:
    """The facts as lines, the verdict last."""
    return f"{lines_of(facts)}\n{facts['verdict']}"


def lines_of(facts: dict) -> str:
    """The facts as lines."""
    rows = []
    for label, fact in facts.items():
        if label in ("ok", "verdict") or fact == []:
            continue
        if isinstance(fact, dict):
            width = max(map(len, fact))
            for name, state in fact.items():
                rows.append((label, f"{name:{width}}  {state}"))
                label = ""
        elif isinstance(fact, list):
            rows.append((label, _WORDS[label].format(", ".join(fact))))
        else:
            rows.append((label, str(fact)))
    return "\n".join(f"{label:<14}{text}" for label, text in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is asked; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["report", "selftest", "tune"], default="report"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument("--device", help="the GPU that `tune` measures: the current one")
    asked = parser.parse_args(arguments)
    if asked.device is not None and asked.command != "tune":
        parser.error("--device goes with tune alone: python -m fastrnn tune --device ...")
    if asked.command == "tune":
        try:
            report = tuning.tune(device=asked.device, quiet=asked.json)
        except (RuntimeError, OSError) as error:
            print(f"fastrnn cannot tune: {error}", file=sys.stderr)
            return 1
        print(json.dumps(report.facts(), indent=2) if asked.json else report)
        return 0
    if asked.command == "selftest":
        found = diagnosis.selftests()
        print(json.dumps(found, indent=2) if asked.json else lines_of({"self-tests": found}))
        ran = [state for state in found.values() if not state.startswith(diagnosis.CANNOT)]
        return 0 if ran and set(ran) == {"passed"} else 1
    facts = diagnosis.facts()
    print(json.dumps(facts, indent=2) if asked.json else text_of(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
