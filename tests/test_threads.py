"""How threads share the work on a CPU: what is chosen, and that nothing else depends on it."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import KERNELS
from op_cases import DTYPES, Case, arguments, backward, cotangents
from torch.utils.data import DataLoader, Dataset

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels to split")
OPS = torch.ops.fastrnn
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def split(N: int, G: int, H: int, count: int, itemsize: int = 4) -> tuple[int, int, int]:
    return tuple(KERNELS.split_step(N, G * H, H, itemsize, count, -(-H // 32)))


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("G", [1, 3, 4])
def test_every_split_has_work_for_each_thread(G, itemsize):
    sizes = itertools.product(
        [1, 2, 3, 7, 20, 64, 500], [1, 10, 64, 256, 650, 2048], [1, 2, 3, 16, 64]
    )
    for N, H, count in sizes:
        rows, units, slices = split(N, G, H, count, itemsize)
        assert slices in (1, 4) and (slices == 1 or units > 1)
        assert 1 <= rows <= max(1, N // 2)
        assert 1 <= units <= -(-H // 32)
        assert rows * units <= count
        assert count > 3 or 1 in (rows, units)


def test_split_of_known_shapes():
    """One row of large weights, or weights beyond the caches, by units, in slices where a step is
    long; else by rows; by both where there are more threads than pieces of units."""
    assert split(1, 4, 256, 1) == (1, 1, 1)
    assert split(1, 4, 256, 2) == (1, 2, 1)
    assert split(1, 4, 64, 2) == (1, 1, 1)
    assert split(20, 4, 650, 2) == (1, 2, 4)
    assert split(32, 4, 256, 2) == (2, 1, 1)
    assert split(64, 4, 256, 2) == (2, 1, 1)
    assert split(64, 4, 1024, 2) == (2, 1, 1)
    assert split(1, 4, 256, 64) == (1, 8, 1)
    assert split(64, 4, 256, 16) == (2, 8, 1)
    assert split(64, 4, 256, 64) == (8, 8, 1)
    assert split(64, 4, 1024, 64) == (2, 32, 4)


def everything(case: Case, **limits) -> list[torch.Tensor]:
    """All results of the three ops."""
    return everything_of(arguments(case), **limits)


def everything_of(args: tuple, **limits) -> list[torch.Tensor]:
    results = OPS.layer_forward(*args)
    gradients = backward(OPS.layer_backward, args, results, cotangents(results), **limits)
    return [*results, *OPS.layer_inference(*args), *gradients[:3], *gradients[3]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("D", [1, 2])
def test_shared_units_change_no_bit(cell, D, dtype):
    """More than one chunk of steps, panels that are not full, members of unequal shares."""
    case = Case(cell, T=280, N=1, I=3, H=330, D=D, dtype=dtype)
    assert split(1, GATES[cell], 330, 3, dtype.itemsize)[1] == 3
    with threads(1):
        wanted = everything(case)
    for count in (2, 2 * D, 3 * D, 4 * D):
        with threads(count):
            assert all(map(torch.equal, wanted, everything(case)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("D", [1, 2])
def test_shared_rows_and_units_change_no_bit(cell, D, dtype):
    """Blocks of unequal rows, each with a team of its own; also a loss that one block and all steps
    but the last do not see."""
    case = Case(cell, T=90, N=5, I=3, H=200, D=D, dtype=dtype)
    work = 5, GATES[cell] * 200, 200, dtype.itemsize
    # Of four registers, of 16, 32 or 64 bytes.
    pieces = [-(-200 // (4 * size // max(dtype.itemsize, 4))) for size in (16, 32, 64)]

    def both(count: int) -> bool:
        return all(min(KERNELS.split_step(*work, count, most)[:2]) > 1 for most in pieces)

    count = next(filter(both, range(4, 33)))
    with threads(1):
        wanted = everything(case)
        args = arguments(case)
        results = OPS.layer_forward(*args)
        last = torch.zeros_like(results[0])
        last[-1, 3:] = 1  # the rows of one block
        late = backward(OPS.layer_backward, args, results, [last, None, None])
    with threads(count * D):
        assert all(map(torch.equal, wanted, everything(case)))
        found = backward(OPS.layer_backward, args, results, [last, None, None])
    for a, b in zip([*late[:3], *late[3]], [*found[:3], *found[3]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_a_row_depends_on_no_other_row(cell, dtype, isa):
    """Alone, in the middle of a tile and at the end of one, whatever the tile's height; on one
    thread and on two, each of which begins its tiles anew."""
    case = Case(cell, T=5, N=41, I=13, H=37, D=2, dtype=dtype)
    args = arguments(case)
    input, batch_sizes, h0, c0, *rest = args
    results = OPS.layer_forward(*args)
    cotangent = torch.randn_like(results[0])
    grads = backward(OPS.layer_backward, args, results, [cotangent, None, None])
    for first, last in ((0, 1), (0, 2), (3, 6), (37, 41), (34, 41), (1, 41)):
        rows = (first, last)
        c = None if c0 is None else c0[:, first:last]
        part = (input[:, first:last], batch_sizes, h0[:, first:last], c, *rest)
        for count in (1, 2):
            with threads(count):
                found = OPS.layer_forward(*part)
                some = backward(
                    OPS.layer_backward, part, found, [cotangent[:, first:last], None, None]
                )
                inferred = OPS.layer_inference(*part)
            assert torch.equal(found[0], results[0][:, first:last]), rows
            assert torch.equal(found[1], results[1][:, first:last]), rows
            assert torch.equal(inferred[0], found[0]), rows
            assert torch.equal(some[0], grads[0][:, first:last]), rows
            assert torch.equal(some[1], grads[1][:, first:last]), rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_a_single_step_is_the_same_each_time(cell, dtype, isa):
    """Its units are met in one order and in the other by turns."""
    case = Case(cell, H=53, N=3, T=1, I=7, D=2, dtype=dtype)
    first, second, third = (OPS.layer_forward(*arguments(case)) for _ in range(3))
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, third))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_a_shared_single_step_changes_no_bit(cell, D):
    """Few multiplications, but weights of more than a megabyte."""
    case = Case(cell, H=130, N=1, T=1, I=2800 // GATES[cell], D=D)
    with threads(1):
        wanted = everything(case)
    for count in (2, 3, 5):
        with threads(count):
            assert all(map(torch.equal, wanted, everything(case)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to count threads")
@pytest.mark.parametrize(("H", "more"), [(128, 0), (256, 2)])
def test_a_single_step_of_large_weights_is_shared(H, more):
    """The first call that more than one thread works on starts the others."""
    program = f"""
import os, torch, fastrnn
torch.set_num_threads(1)
model, input = fastrnn.LSTM(128, {H}), torch.zeros(1, 1, 128)
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
with torch.inference_mode():
    model(input)
print(len(os.listdir("/proc/self/task")) - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == [str(more)], run.stderr


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("D", [1, 2])
def test_a_block_of_rows_that_ends_early(cell, D, dtype):
    """One long sequence and three short ones, over several chunks of steps: the thread that has the
    short ones is done after five steps, and in the reverse direction begins late. With one more
    thread than blocks the threads share the input's product."""
    _, _, h0, c0, *rest = arguments(Case(cell, T=5, N=4, I=64, H=64, D=D, dtype=dtype))
    batch_sizes = torch.tensor([4] * 5 + [1] * 150)
    input = torch.randn(int(batch_sizes.sum()), 64, dtype=dtype)
    args = (input, batch_sizes, h0, c0, *rest)
    with threads(1):
        wanted = everything_of(args)
    for count in (2, 2 * D + 1, 2 * D):
        with threads(count):
            assert all(map(torch.equal, wanted, everything_of(args)))


@pytest.mark.parametrize("cell", GATES)
def test_slices_change_no_bit(cell):
    """Steps so long that a thread that is done helps at once; panels that are cut in depth, whose
    sums each slice keeps for itself; in the end more slices than panels."""
    N, H = 13, 650 if GATES[cell] > 1 else 1290
    assert split(N, GATES[cell], H, 3)[1:] == (3, 4)
    case = Case(cell, T=4, N=N, I=3, H=H, D=1)
    with threads(1):
        wanted = everything(case)
    for count in (2, 3, 4, 16):
        with threads(count):
            assert all(map(torch.equal, wanted, everything(case)))


def test_more_threads_than_cores():
    case = Case("lstm", T=40, N=1, I=3, H=230, D=1)
    with threads(1):
        wanted = everything(case)
    with threads(16):
        for _ in range(5):
            assert all(map(torch.equal, wanted, everything(case)))


def test_calls_from_several_threads_at_once():
    """Each caller has a pool of its own, so that more threads meet than there are cores."""
    case = Case("gru", T=40, N=1, I=3, H=230, D=1)
    with threads(1):
        wanted = everything(case)
    wrong = []

    def call() -> None:
        torch.set_num_threads(2)
        for _ in range(5):
            if not all(map(torch.equal, wanted, everything(case))):
                wrong.append(threading.current_thread())

    with threads(2):
        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=120)
            assert not caller.is_alive()
    assert not wrong


class Outputs(Dataset):
    """What a layer makes of rows of a batch, computed in whichever process asks."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = fastrnn.LSTM(3, 230)
        self.rows = torch.randn(4, 30, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        with torch.no_grad():
            return self.module(self.rows[i])[0]


def test_forked_workers():
    """A process forked after the pool of threads has been in use."""
    data = Outputs()
    with threads(2):
        wanted = torch.stack([data[i] for i in range(4)])
        loader = DataLoader(data, 2, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert torch.equal(torch.cat(list(loader)), wanted)
