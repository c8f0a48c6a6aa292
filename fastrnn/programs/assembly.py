"""The order of instructions, the planes of their results, and the code as the machine reads it."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .bytecode import OPS, ROW, Instruction
from .graph import Value

FIELDS = 6  # of an instruction: op, dst, a, b, c, d


class Code(NamedTuple):
    """A program of the machine.

    Planes are numbered: those that it is given and writes (`planes` of them), constants, row
    temporaries, temporaries. A plane that is written may be read after it.
    """

    instructions: bytes  # native uint16, six for each instruction; an operand not used is 0
    constants: tuple[float, ...]
    planes: int
    row_temps: int
    temps: int
    reads: bytes  # for each of `planes`, 1 if an instruction reads it

    def unpacked(self) -> list[tuple[int, ...]]:
        """The instructions as tuples of six numbers."""
        numbers = struct.unpack(f"{len(self.instructions) // 2}H", self.instructions)
        return [numbers[at : at + FIELDS] for at in range(0, len(numbers), FIELDS)]

    def text(self) -> str:
        """One line for each instruction, to read."""
        return "\n".join(
            f"{'row ' if op & ROW else ''}{OPS[op & ~ROW]} {dst} <- {' '.join(map(str, operands))}"
            for op, dst, *operands in self.unpacked()
        )


@dataclass
class Frame:
    """The planes that a code is given and those that it writes."""

    there: dict[Value, int]  # the plane of each value that the code is given
    outputs: Sequence[tuple[Value, int]]  # what is to be written, and to which plane
    replaces: dict[int, int]  # a plane that is written: the plane given in the same memory
    planes: int


def assemble(instructions: list[Instruction], frame: Frame) -> Code:
    """The code of instructions, which are in an order that works but for `frame.replaces`."""
    rows = _rows(instructions)
    items = _with_outputs(instructions, frame, rows)
    while isinstance(before := _constraints(items, frame), Instruction):
        _detour(items, before)
    orders = (_scheduled(items, before, rows, greedy) for greedy in (True, False))
    codes = [_allocated(order, frame, rows) for order in orders]
    return min(codes, key=lambda code: code.temps + code.row_temps)


def _rows(instructions: Iterable[Instruction]) -> set[Value | None]:
    """Which results are one number a row. Made of a row value that lies in a plane, it is none."""
    rows: set[Value | None] = set()
    for item in instructions:
        of_rows = [v in rows for v in item.operands if v.number is None]
        if item.op == "sum" or (of_rows and all(of_rows)):
            rows.add(item.result)
    return rows


def _with_outputs(
    instructions: list[Instruction], frame: Frame, rows: Container[Value | None]
) -> list[Instruction]:
    """Instructions that write outputs where they can, and copies for the others."""
    makers = {i.result: i for i in instructions}
    copies = []
    for value, plane in frame.outputs:
        maker = makers.get(value)
        # what is made once a row is a row temporary
        if maker is None or maker.output is not None or value in rows:
            copies.append(Instruction("copy", None, (value,), plane))
        else:
            maker.output = plane
    return instructions + copies


def _constraints(items: list[Instruction], frame: Frame):
    """For each instruction those that must run before it, or an instruction for which there is
    no such order, because what it writes is where another one that needs its result reads."""
    makers = {i.result: i for i in items if i.result}
    before = {i: [makers[v] for v in i.operands if v in makers] for i in items}
    for item in items:
        given = frame.replaces.get(-1 if item.output is None else item.output)
        if given is None:
            continue
        for reader in items:
            if reader is item or not any(frame.there.get(v) == given for v in reader.operands):
                continue
            if _depends(reader, item, before):
                return item
            before[item].append(reader)
    return before


def _depends(item: Instruction, on: Instruction, before: dict) -> bool:
    seen, stack = {item}, [item]
    while stack:
        for each in before[stack.pop()]:
            if each is on:
                return True
            if each not in seen:
                seen.add(each)
                stack.append(each)
    return False


def _detour(items: list[Instruction], item: Instruction) -> None:
    """Lets an instruction write a temporary, and a copy bring that to the output."""
    if item.result is None:  # a copy: keep what it reads, which another copy is to write over
        kept = Value("kept", item.operands, -1 - len(items))
        items.insert(0, Instruction("copy", kept, item.operands))
        item.operands = (kept,)
    else:
        items.append(Instruction("copy", None, (item.result,), item.output))
        item.output = None


def _phases(items: Sequence[Instruction], rows: Container[Value | None]) -> dict[Instruction, int]:
    """When an instruction runs, if as few times as possible all units are waited for: planes in
    even phases, row values in the odd ones between. As late as it can, if it makes a temporary."""
    makers = {i.result: i for i in items if i.result}

    def is_row(item: Instruction) -> bool:
        return item.result in rows and item.op != "sum"

    def available(item: Instruction, phase: int) -> int:
        return phase + 1 if item.op == "sum" else phase

    phases: dict[Instruction, int] = {}
    for item in items:
        phase = int(is_row(item))
        for value in item.operands:
            if value in makers:
                maker = makers[value]
                phase = max(phase, available(maker, phases[maker]))
        phases[item] = phase + (phase % 2 != is_row(item))
    for item in reversed(items):
        readers = [phases[i] for i in items if item.result and item.result in i.operands]
        if readers and item.output is None:
            last = min(readers) - (item.op == "sum")
            phases[item] = max(phases[item], last - (last % 2 != is_row(item)))
    return phases


def _scheduled(
    items: list[Instruction], before: dict, rows: Container[Value | None], greedy: bool
) -> list[Instruction]:
    """An order that keeps few temporaries: greedily, or as near as possible to the given one."""
    phases = _phases(_in_order(items, before), rows)
    place = {item: n for n, item in enumerate(items)}
    readers: dict[Value, set[Instruction]] = {}
    for item in items:
        for value in item.operands:
            readers.setdefault(value, set()).add(item)
    temporaries = {i.result for i in items if i.result and i.output is None}
    done: dict[Instruction, None] = {}

    def cost(item: Instruction) -> tuple:
        ends = sum(
            readers[v] - done.keys() == {item} for v in set(item.operands) if v in temporaries
        )
        more = (item.result in temporaries) - ends if greedy else 0
        return phases[item], more, place[item]

    while len(done) < len(items):
        ready = [i for i in items if i not in done and all(b in done for b in before[i])]
        done[min(ready, key=cost)] = None
    return list(done)


def _in_order(items: Iterable[Instruction], before: dict) -> list[Instruction]:
    """Items, each after those that must run before it."""
    done: dict[Instruction, None] = {}

    def visit(item: Instruction) -> None:
        if item not in done:
            for each in before[item]:
                visit(each)
            done[item] = None

    for item in items:
        visit(item)
    return list(done)


def _allocated(order: list[Instruction], frame: Frame, rows: Container[Value | None]) -> Code:
    """The code of instructions in this order, where temporaries that are read no more are used
    again."""
    last = {value: at for at, item in enumerate(order) for value in item.operands}
    constants: dict[str, float] = {}
    used = {False: 0, True: 0}  # temporaries, and those of rows
    free: dict[bool, list[int]] = {False: [], True: []}
    place: dict[Value, tuple[bool, int]] = {}
    written: dict[Value, int] = {}
    lines = []
    for at, item in enumerate(order):
        operands = []
        for value in item.operands:
            if value.number is not None:
                constants.setdefault(value.number.hex(), value.number)
                operands.append(("constant", list(constants).index(value.number.hex())))
            elif value in place:
                operands.append(place[value])
            else:
                operands.append(("plane", written.get(value, frame.there.get(value))))
        for value in dict.fromkeys(item.operands):
            if value in place and last[value] == at:
                row, number = place[value]
                free[row].append(number)
        row = item.output is None and item.result in rows
        if item.output is None:
            if not free[row]:
                free[row].append(used[row])
                used[row] += 1
            target = place[item.result] = (row, free[row].pop())
        else:
            target = ("plane", item.output)
            if item.result:
                written[item.result] = item.output
        lines.append((OPS.index(item.op) + ROW * row, target, operands))
    starts = {"plane": 0, "constant": frame.planes, True: frame.planes + len(constants)}
    starts[False] = starts[True] + used[True]
    numbers = []
    reads = bytearray(frame.planes)
    for op, target, operands in lines:
        planes = [starts[kind] + n for kind, n in (target, *operands)]
        numbers += [op, *planes, *[0] * (FIELDS - 1 - len(planes))]
        for plane in planes[1:]:
            if plane < frame.planes:
                reads[plane] = 1
    packed = struct.pack(f"{len(numbers)}H", *numbers)
    return Code(
        packed, tuple(constants.values()), frame.planes, used[True], used[False], bytes(reads)
    )
