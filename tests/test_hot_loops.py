"""tests/cpp/hot_loops.py, which reads the disassembly of the kernels for 64-bit ARM."""

import sys

import pytest
from project import ROOT

sys.path.insert(0, str(ROOT / "tests" / "cpp"))
import hot_loops

FMAS = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(8)]
LOADS = ["ldr q30, [x1], #16", "ldr q31, [x0], #16"]
NAME = "void neon::micro<float, 2, 8, false>(float const*)"


def complaints(*loop: str, name: str = NAME) -> list[str]:
    """About a function whose loop is between a prologue and an epilogue, both on the stack."""
    lines = ["str d8, [sp, #-16]!", *loop, "b.ne 4 <loop+0x4>", "ldr d8, [sp], #16", "ret"]
    code = (f"   {4 * i:x}:\t{line}" for i, line in enumerate(lines))
    return hot_loops.check("\n".join([f"{0:016x} <{name}>:", *code]))[0]


def test_a_loop_in_registers_is_fine():
    assert complaints(*LOADS, *FMAS) == []


@pytest.mark.parametrize("access", ["ldr q1, [sp, #32]", "stp q1, q2, [sp]"])
def test_a_loop_that_spills_is_not(access: str):
    (said,) = complaints(*LOADS, access, *FMAS)
    assert said == f"micro<float, 2, 8, false>: touches the stack: {access}"


def test_too_many_instructions():
    slow = [*LOADS, *["add x2, x2, #1"] * 5, *FMAS]
    assert complaints(*slow) == ["micro<float, 2, 8, false>: 2.00 instructions an FMA"]
    # Of a single row there are more loads; double has a limit of its own.
    assert complaints(*slow, name="void neon::lane_row<float, 4, 4>(float const*)") == []
    assert complaints(*slow[1:-1], name=NAME.replace("float", "double", 1)) == [
        "micro<double, 2, 8, false>: 2.00 instructions an FMA"
    ]
    assert complaints(*LOADS, *["nop"] * 3, *FMAS, name=NAME.replace("float", "double", 1)) == []


def test_small_weights():
    name = "void neondot::SmallMatrix::tile<neondot::Bytes<true>, 1, 8>(long, long, long)"
    loop = [*LOADS, *["sdot v0.4s, v30.16b, v31.16b"] * 4]
    assert complaints(*loop, name=name) == []
    said = complaints(*loop, "str q0, [sp, #16]", name=name)
    assert said == ["tile<neondot::Bytes<true>, 1, 8>: touches the stack: str q0, [sp, #16]"]


def test_dot_products():
    """Of which the loop for what is left of a row calls functions, and keeps sums for them."""
    name = "void neon::dots<float, 1, false, float, float>(neon::Terms<float, float> const&)"
    called = [
        *FMAS,
        "str q0, [sp, #16]",
        "bl 40 <neon::load_part(float const*)>",
        "b.ne 2c <x+0x2c>",
    ]
    assert complaints(*LOADS, *FMAS, name=name) == []
    assert complaints(*LOADS, *FMAS, "b.ne 4 <x+0x4>", *called, name=name) == []
    said = complaints(*LOADS, *FMAS, "str q0, [sp, #16]", name=name)
    assert said == ["dots<float, 1, false, float, float>: touches the stack: str q0, [sp, #16]"]


def test_nothing_found_is_a_complaint():
    assert complaints(*LOADS) == [
        "micro<float, 2, 8, false>: no loop with an FMA",
        "no micro-kernel found",
    ]
    assert complaints(*LOADS, *FMAS, name="other()") == ["no micro-kernel found"]
