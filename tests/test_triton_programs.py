"""A launch of a Triton kernel whose programs run at the same time and exchange their states.

On a GPU they do; where there is none, each gets a process of its own.
"""

from __future__ import annotations

import multiprocessing
from functools import partial

import pytest
import torch
from conftest import assert_matches
from layers import on_loops
from op_cases import (
    FORWARD,
    Case,
    arguments,
    assert_gradients,
    backward,
    cotangents,
    expected,
    moved,
)
from recurrent_calls import Example
from test_triton_recurrent import check
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastrnn.dispatch import triton
from fastrnn.dispatch.triton import launch, tiles
from fastrnn.dispatch.triton.choose import Plan

# numpy warns where an exponential overflows, which the cells expect.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cpu" if triton.INTERPRETED else "cuda"
on_device = partial(moved, DEVICE)


class Concurrent:
    """A kernel whose programs run at the same time, each in a process of its own, on shared memory.

    The processes meet at the barrier as programs on a GPU do, but see memory as a CPU orders it.
    `missing`: how many of them never begin.
    """

    def __init__(self, kernel, missing=0):
        self.kernel, self.missing = kernel, missing

    def __getitem__(self, grid):
        def run(**arguments):
            for value in arguments.values():
                if isinstance(value, Tensor):
                    value.share_memory_()
            context = multiprocessing.get_context("fork")
            programs = [
                context.Process(target=self.program, args=(grid, p, arguments))
                for p in range(grid[0] - self.missing)
            ]
            for program in programs:
                program.start()
            for program in programs:
                program.join(100)
                if program.exitcode != 0:
                    for other in programs:
                        other.kill()
                    raise AssertionError(f"program ended with {program.exitcode}")

        return run

    def program(self, grid, index, arguments):
        from triton.runtime.interpreter import interpreter_builder

        place = interpreter_builder.set_grid_idx
        interpreter_builder.set_grid_dim = lambda *_: None
        interpreter_builder.grid_dim = (*grid, 1, 1)
        interpreter_builder.set_grid_idx = lambda x, y, z: place(index, y, z)
        self.kernel[(1,)](**arguments)


@pytest.fixture(autouse=True)
def concurrent(monkeypatch):
    """Several programs for the units of a row, in one launch."""
    monkeypatch.setattr(launch, "choose", lambda *_: Plan(True, 16, 16, 32, 4, 2))
    if triton.INTERPRETED:
        for name in ("forward_kernel", "backward_kernel"):
            monkeypatch.setattr(launch, name, Concurrent(getattr(launch, name)))


def test_programs_exchange_the_operand_of_a_second_product():
    check(Example("original_gru", 4, 3, 5, 33, torch.float32))


@pytest.mark.parametrize("cell", ["lstm_proj", "gru"])
def test_programs_exchange_states(cell):
    case = Case(cell, H=33, N=3, T=4, D=1, dtype=torch.float32)
    args = on_device(arguments(case))
    wanted, wanted_gradients = expected(case)
    results = on_loops(launch).layer_forward(*args)
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert_matches(actual.cpu(), value, name)
    grads = on_device(cotangents(wanted))
    grads = [None if g is None else g.float() for g in grads]
    gradients = backward(on_loops(launch).layer_backward, args, results, grads)
    assert_gradients(tree_map_only(Tensor, Tensor.cpu, gradients), wanted_gradients)


@pytest.mark.skipif(not triton.INTERPRETED, reason="on a GPU no program is missing")
def test_who_waits_in_vain_ends_with_an_error(monkeypatch):
    """At the next launch, as nobody waits for this one; those after it are right again."""
    case = Case("gru", H=33, N=3, T=4, D=1, dtype=torch.float32)
    args = arguments(case)

    def run():
        return on_loops(launch).layer_inference(*args)

    wanted = run()
    with monkeypatch.context() as broken:
        lacking = Concurrent(launch.forward_kernel.kernel, missing=1)
        broken.setattr(launch, "forward_kernel", lacking)
        broken.setattr(tiles, "POLLS", tiles.tl.constexpr(100))
        run()
    with monkeypatch.context() as stepwise:
        stepwise.setattr(launch, "choose", lambda *_: Plan(False, 16, 16, 32, 4, 2))
        with pytest.raises(RuntimeError, match="earlier launch .* on cpu waited in vain"):
            run()  # in any plan
    for actual, value in zip(run(), wanted, strict=True):
        assert torch.equal(actual, value)


def test_what_they_leave_is_on_the_host(monkeypatch):
    """Whatever modes the first call is made in."""
    monkeypatch.setattr(launch, "_lost", {})
    device = torch.device("cpu")
    assert launch._watched(device, False) is None
    with torch.inference_mode(), torch.device("meta"):
        lost = launch._watched(device, True)
    lost[0] = 1
    with pytest.raises(RuntimeError, match="waited in vain"):
        launch._watched(device, False)
    assert lost.tolist() == [0] and launch._watched(device, True) is lost
