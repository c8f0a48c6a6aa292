"""What compilers make of the micro-kernels: reads the disassembly of hot_loops.cpp, and complains
about a loop that touches the stack, or that has too many instructions an FMA where a tile is full.

    python hot_loops.py OBJDUMP OBJECT...
"""

import re
import subprocess
import sys
from dataclasses import dataclass

# Instructions an FMA, at most. A register of double serves two steps, one of others four.
MOST = {"double": 1.85}
MOST_ELSE = 1.6
FMA = re.compile(r"fmla|bfdot|fmadd|sdot")
JUMP = re.compile(r"(?:b\.\w+|cbn?z|tbn?z|b)\s.*?\b([0-9a-f]+) <")
# micro<operands, registers, rows, columns?>, lane_row<operands, registers, panels>, tile<format,
# rows, registers> of small weights, and dots<numbers, rows, ...> of weights as they lie
KERNEL = re.compile(
    r"::(micro|lane_row|tile|dots)<([\w:<>]+), (\d+)(?:, (\d+))?(?:, (true|false))?[^()]*>\("
)


@dataclass
class Loop:
    instructions: list[str]

    def fmas(self) -> int:
        return sum(bool(FMA.match(line)) for line in self.instructions)

    def cost(self) -> float:
        return len(self.instructions) / self.fmas()

    def calls(self) -> bool:
        return any(line.startswith("bl") for line in self.instructions)

    def stack(self) -> list[str]:
        return [line for line in self.instructions if "[sp" in line]


def functions(listing: str) -> dict[str, list[tuple[int, str]]]:
    """Addresses and instructions of each function of a listing of objdump."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in listing.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            current = found.setdefault(match[1], [])
        elif match := re.match(r"\s+([0-9a-f]+):\s+(\S.*)", line):
            current.append((int(match[1], 16), " ".join(match[2].split())))
    return found


def hot_loops(code: list[tuple[int, str]]) -> list[Loop]:
    """The innermost loops that multiply and add, and call nothing."""
    spans = []
    for address, text in code:
        match = JUMP.match(text)
        if match and code[0][0] <= (start := int(match[1], 16)) <= address:
            spans.append((start, address))
    ends = [address for address, text in code if text == "ret"]
    spans = [(a, b) for a, b in spans if not any(a <= end <= b for end in ends)]
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    loops = [Loop([text for at, text in code if first <= at <= last]) for first, last in inner]
    return [loop for loop in loops if loop.fmas() and not loop.calls()]


def check(listing: str) -> tuple[list[str], int]:
    """Complaints about a listing, and the number of loops that were looked at."""
    kernels = {KERNEL.search(name): code for name, code in functions(listing).items()}
    kernels.pop(None, None)
    highest: dict[tuple[str, ...], int] = {}
    for match in kernels:
        kind = match[1], match[2], match[3], match[5]
        highest[kind] = max(highest.get(kind, 0), int(match[4] or 0))
    complaints, count = [], 0
    for match, code in kernels.items():
        full = (
            match[1] == "micro" and int(match[4]) == highest[match[1], match[2], match[3], match[5]]
        )
        name = match[0].removeprefix("::").removesuffix("(")
        loops = hot_loops(code)
        if not loops:
            complaints.append(f"{name}: no loop with an FMA")
        count += len(loops)
        longest = max((loop.fmas() for loop in loops), default=0)  # others take what it leaves over
        for loop in loops:
            complaints += [f"{name}: touches the stack: {line}" for line in loop.stack()]
            if full and loop.fmas() == longest and loop.cost() > MOST.get(match[2], MOST_ELSE):
                complaints.append(f"{name}: {loop.cost():.2f} instructions an FMA")
    if not count:
        complaints.append("no micro-kernel found")
    return complaints, count


def main() -> None:
    objdump, *objects = sys.argv[1:]
    failed = False
    for path in objects:
        command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", path]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        complaints, count = check(listing)
        print(f"{path}: {count} hot loops", *complaints, sep="\n  ")
        failed |= bool(complaints)
    sys.exit(failed)


if __name__ == "__main__":
    main()
