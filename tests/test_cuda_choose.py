"""What csrc/cuda/choose.h decides: the schedule, and its tiles."""

from __future__ import annotations

import itertools

import pytest

from bench import choose as chosen

if chosen.COMPILER is None:
    pytest.skip("there is no C++ compiler", allow_module_level=True)

A100, A10, H100 = (108, 8), (72, 8), (132, 9)
SHARED = {A100: 163 << 10, A10: 99 << 10, H100: 227 << 10}  # bytes that a block can have
HOW = ["float32", "tf32", "float16", "bfloat16", "float64"]


def products(gates: int, H: int, P: int, backward: bool) -> list[tuple[int, int, int]]:
    """The products of a step as (planes, units, depth); P is H where there is no projection."""
    first = (1, P, gates * H) if backward else (gates, H, P)
    second = (1, H, P) if backward else (1, P, H)
    return [first] + [second] * (P != H)


def library(steps, N, D, how, device) -> bool:
    """Whether the library makes the products of these steps."""
    times = chosen.times(steps, N, D, how, device)
    return times.library <= times.stepwise


def choose(H, N, how="bfloat16", device=H100, gates=4, P=None, D=1, backward=False):
    return library(products(gates, H, P or H, backward), N, D, how, device)


@pytest.mark.parametrize("device", SHARED, ids=["A100", "A10", "H100"])
def test_every_choice_can_run(device):
    sizes = itertools.product(
        [1, 15, 64, 100, 129, 512, 768, 1024, 4096, 20000], [0, 1, 16, 17, 64, 65, 1000, 10**6]
    )
    schedules = set()
    for (H, N), how in itertools.product(sizes, HOW):
        for gates, projected, D, backward in itertools.product(
            [1, 3, 4], [False, True], [1, 2], [False, True]
        ):
            steps = products(gates, H, H // 2 + 1 if projected else H, backward)
            by_library = library(steps, N, D, how, device)
            schedules.add((how, by_library))
            if by_library:
                continue
            for step in steps:
                facts = chosen.tiles(step, N, D, how == "float64")
                assert facts.shared <= SHARED[device]
                # On Hopper the next launch comes in while this one ends, beside it.
                assert device != H100 or 2 * facts.shared <= SHARED[device]
                assert facts.blocks < 2**31 and facts.threads <= 1024
                assert facts.unit_tiles == -(-step[1] // facts.units)
                assert facts.blocks == D * facts.unit_tiles * -(-N // facts.rows)
    assert schedules == set(itertools.product(HOW, (False, True)))


def test_schedules():
    stepwise, by_library = False, True
    # many blocks, so that all processors stream the weights
    assert choose(1024, 1) == choose(1024, 16) == choose(256, 32) == choose(512, 64) == stepwise
    assert choose(512, 64, backward=True) == choose(256, 256, backward=True) == stepwise
    # sizes at which the library's larger tiles win
    assert choose(1024, 64) == choose(1024, 64, "tf32") == choose(512, 256) == by_library
    assert choose(512, 64, "tf32", backward=True) == by_library
    assert choose(4096, 256) == choose(1024, 512) == choose(2048, 512, backward=True) == by_library
    assert choose(1024, 64, "float32") == choose(1024, 64, "float64") == by_library
    assert choose(128, 8, "float32") == choose(128, 8, "float64") == stepwise


GRID = list(
    itertools.product(
        (1, 3, 4), (16, 128, 130, 256, 512, 600, 1024, 1025), (1, 8, 64, 300, 2000), HOW, (1, 2),
        (False, True),
    )
)  # fmt: skip


def at_once(largest: int, processors: int = 132):
    """Groups that run at the same time, where a cluster has so many blocks at most."""

    def groups(units: int, blocks: int) -> int:
        if units == 16:
            return processors // blocks
        return chosen.of_h200(units, blocks) if blocks <= largest else 0

    return groups


def test_persistent_kernels_are_chosen_by_their_time():
    """Where they are permitted: what is predicted to take least time, and nothing that cannot run.
    They lose where many rounds of groups follow each other."""
    won, lost, rounds = 0, 0, set()
    for gates, H, N, how, D, backward in GRID:
        best = chosen.plan(gates, H, N, how, D, backward)
        alone = chosen.plan(gates, H, N, how, D, backward, alone=True)
        other = min(chosen.times(products(gates, H, H, backward), N, D, how))
        library = choose(H, N, how, gates=gates, D=D, backward=backward)
        assert best.library == library and bool(best.units) == (0 < alone.time < other)
        won, lost = won + bool(best.units), lost + (alone.time > other)
        if best.units:
            assert best == alone._replace(library=library)
            assert best.parts * best.rows >= N and best.blocks * best.units >= H
            at_same_time = chosen.of_h200(best.units, best.blocks)
            rounds.add(-(-best.parts * D // at_same_time))
            assert best.units != 16 or best.parts * D <= at_same_time
    assert won > 100 and lost > 50 and {1, 2} < rounds
    assert (
        chosen.plan(4, 512, 2000, "bfloat16").units == 0 < chosen.plan(4, 512, 8, "float16").units
    )


def test_where_no_cluster_can_run():
    """`cudaOccupancyMaxActiveClusters` says 0: blocks go through memory, or steps are launches."""
    for gates, H, N, how, D, backward in GRID:
        args = gates, H, N, how, D, backward
        for largest in (0, 1, 8):
            plan = chosen.plan(*args, at_once=at_once(largest), alone=True)
            assert plan.units == 16 or plan.blocks <= largest
        assert chosen.plan(*args, at_once=lambda *_: 0).units == 0
        assert chosen.plan(*args, at_once=at_once(16), device=A100, alone=True).units == 0
    one = 4, 512, 1, "bfloat16"
    units = [chosen.plan(*one, at_once=at_once(largest)).units for largest in (16, 8, 1, 0)]
    assert units == [32, 16, 16, 16]
    assert chosen.plan(4, 128, 64, "bfloat16").units == 128  # one block, which is a cluster, too
    few = at_once(0, processors=8)
    assert chosen.plan(4, 128, 64, "bfloat16", at_once=few).units == 0
