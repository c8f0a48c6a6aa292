"""Random calls of the public API at real sizes, against torch.nn.

Prints how to repeat each case that crashes, hangs or gives what it must not, and in the end what
was run. Exits with 1 if there was such a case.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys

from .check import check
from .child import Check
from .draw import case, changed
from .hunt import LIMIT, Hunt


def main(arguments: list[str] | None = None, check: Check = check) -> int:
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="of the run (300)")
    parser.add_argument("--first", type=int, help="the first seed; any, unless given")
    parser.add_argument("--seed", type=int, help="the only one")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds of a case ({LIMIT:g})")
    parser.add_argument("change", nargs="*", help="of that seed's case, as in T=3")
    given = parser.parse_args(arguments)
    if given.seed is None:
        first = random.randrange(10**9) if given.first is None else given.first
        print(f"seeds from {first} on", flush=True)
        cases = map(case, itertools.count(first))
    else:
        cases = [changed(case(given.seed), given.change)]
        print(cases[0], flush=True)
    with Hunt(check, limit=given.limit) as hunt:
        hunt.run(cases, given.seconds)
    print(hunt)
    return 1 if hunt.findings else 0


if __name__ == "__main__":
    sys.exit(main())
