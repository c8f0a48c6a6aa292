"""bench.threads: the model of more threads, on rows that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_doubles import FACTS, row
from conftest import KERNELS

from bench import threads

pytestmark = pytest.mark.skipif(KERNELS is None, reason="the kernels say how they are split")

PLACE = {"T": 50, "input_size": 128, "hidden_size": 256, "cell": "GRU", "mode": "inference"}
PLACE |= {"dtype": "float32", "suite": "cpu"}


def measured(N: int, *times: float, **more) -> list:
    """Our rows of one thread and two, and a peer's, which plays no part."""
    rows = [
        row("fastrnn", N=N, case=f"N={N}", threads=k + 1, ms=ms, **PLACE | more)
        for k, ms in enumerate(times)
    ]
    return [(one, FACTS) for one in (*rows, row("torch.nn", N=N, ms=9.0, threads=1, **PLACE))]


def test_predictions():
    records = [*measured(64, 10.0, 5.0), *measured(1, 1.0), *measured(8, 2.0, dtype="bfloat16")]
    many, one = threads.predictions(records)
    assert (many.row.N, many.measured, one.row.N, one.measured) == (64, 2.0, 1, None)
    assert set(many.modelled) == {2, *threads.COUNTS}
    # More threads than pieces of units share rows as well; one row cannot.
    # Pieces are as wide as the registers of the instruction set.
    for isa, wanted in (("avx2", [(4, 8), (1, 8)]), ("avx512bf16", [(8, 4), (1, 4)])):
        facts = replace(FACTS, isa=isa)
        assert [threads.split(found.row, facts, 32) for found in (many, one)] == wanted
    assert many.modelled[4] < many.modelled[8] < many.modelled[16] < many.modelled[32]
    assert one.modelled[32] < 1.1 * one.modelled[8]
    for found in (many, one):
        assert all(gain < 3 * n for n, gain in found.modelled.items())


def test_a_step_that_is_all_meeting_gains_nothing():
    (small,) = threads.predictions(measured(1, 1.0, hidden_size=64, input_size=8))
    assert small.modelled[32] < 1.5


def test_the_table_says_how_far_off_it_is():
    found = threads.predictions([*measured(64, 10.0, 5.0), *measured(1, 1.0)])
    off = found[0].modelled[2] / 2
    text = threads.table(found)
    assert text.splitlines()[2].count("|") == text.splitlines()[4].count("|")
    assert f"off by a factor of {max(off, 1 / off):.2f} in the mean" in text
    assert "| 2.00 |" in text and "| - |" in text and "2 x 8" in text


def test_wrong_constants():
    """The costs are those of split.h: what is given as they are changes nothing."""
    work, costs = (64, 4 * 256, 256, 4), KERNELS.step_costs()
    for count in (2, 8, 32):
        assert KERNELS.split_step(*work, count, 8, costs) == KERNELS.split_step(*work, count, 8)
    assert KERNELS.step_time(*work, 2, 8, costs) == KERNELS.step_time(*work, 2, 8)
    slower = KERNELS.step_time(*work, 2, 8, {"flops": costs["flops"] / 2})
    assert slower > 1.5 * KERNELS.step_time(*work, 2, 8)
    with pytest.raises(IndexError):
        KERNELS.step_time(*work, 2, 8, {"patience": 1})
    found = threads.wrong_constants()
    assert found.keys() == {f"{name} x {by}" for name in costs for by in ("0.5", "2")}
    # A choice within a tenth of the best one may be better than the right one in the model.
    assert all(0.9 < ratio < 3 for ratios in found.values() for ratio in ratios)
    assert any(max(ratios) > 1 for ratios in found.values())
    lines = threads.constants_table({"meeting x 2": [1.0, 1.21]}).splitlines()
    assert lines[-1] == "| meeting x 2 | 1.100 | 1.21 | 50% |"


def test_the_constants_of_a_machine():
    """Those of split.h cost nothing where they are right."""
    costs = KERNELS.step_costs()
    assert set(threads.own_costs(FACTS)) == set(costs)
    assert set(threads.slower({}, costs)) == {1.0}
    assert max(threads.slower({"meeting": 1e6}, costs)) > 1.2
    facts = replace(FACTS, isa="avx2", fma_gflops=100.0, cache_gbs=70.0)
    text = threads.own_constants(facts)
    ratios = threads.slower({}, threads.own_costs(facts))
    assert "(flops 100, near 1.04858e+06, near_bytes 70, " in text
    assert f"{max(ratios):.2f} at most" in text
