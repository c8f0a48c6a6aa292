"""`python -m fastrnn [--json]`: what was built, what runs here and whether it is right.

The exit status is 1 where something is wrong. `--json` prints the same facts for a bug report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from fastrnn import diagnosis

_WORDS = {"slower": "this torch lacks {}, so calls take a longer way"}


def text_of(facts: dict) -> str:
    """The facts as lines, the verdict last."""
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
    lines = [f"{label:<14}{text}" for label, text in rows]
    return "\n".join([*lines, facts["verdict"]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    asked = parser.parse_args(arguments)
    facts = diagnosis.facts()
    print(json.dumps(facts, indent=2) if asked.json else text_of(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
