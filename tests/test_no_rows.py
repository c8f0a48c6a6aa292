"""Calls in which no row takes a step: the gradients of all weights are zeros, all written.

And one whose numbers of steps change while it reads them.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import KERNELS

import fastrnn
from fastrnn import Cell, Recurrent


def of_input_alone(g, s, p):
    return torch.tanh(g.x_a + p.u * s.h)


def more_of_h(g, s, p):
    return torch.tanh(g.x_a + g.u_b) * torch.sigmoid(g.u_c)


def more_of_input(g, s, p):
    return torch.tanh(g.x_a * g.x_b + torch.sigmoid(g.x_c) * g.u_d)


def second_product(g, s, p):
    return torch.tanh(g.x_a + g.u_b) + torch.sigmoid(g.u_c + g.w_d(s.h * s.h))


# As many gates of the input as of h, and fewer, and more: their biases differ in size.
CELLS = {
    "IndRNN": Cell(of_input_alone, "x:a", params="u"),
    "more of h": Cell(more_of_h, "x:a u:b u:c"),
    "more of the input": Cell(more_of_input, "x:a x:b x:c u:d"),
    "second product": Cell(second_product, "x:a u:b u:c w:d"),
    "GRU": fastrnn.GRU,
    "LSTM": fastrnn.LSTM,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_zero(name, bidirectional, dtype):
    cell, options = CELLS[name], {"bidirectional": bidirectional, "dtype": dtype}
    module = Recurrent(cell, 4, 24, **options) if isinstance(cell, Cell) else cell(4, 24, **options)
    for N, lengths in ((0, None), (2, [0, 0])):
        for _ in range(8):  # each in memory that another may have left
            module.zero_grad()
            x = torch.randn(3, N, 4, dtype=dtype, requires_grad=True)
            output, _ = module(x, lengths=lengths)
            output.sum().backward()
            assert not x.grad.count_nonzero()
            for key, parameter in module.named_parameters():
                assert not parameter.grad.count_nonzero(), key


def test_a_piece_past_the_longest_row():
    """No length is zero here: a call with `reset_state` and `detach_every` is one of pieces."""
    module = Recurrent(fastrnn.zoo.IndRNN, 3, 8)
    x, reset = torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)
    gradients = []
    for steps in (4, 2):
        module.zero_grad()
        asked = {"lengths": [2, 1], "reset": reset[:steps], "reset_state": torch.zeros(1, 2, 8)}
        output, _ = module(x[:steps], detach_every=2, **asked)
        output.sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for some, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(some, wanted)


@pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
@pytest.mark.parametrize("kind", ["lengths", "batch_sizes"])
def test_another_thread_may_write_what_a_call_checks(kind):
    """Whatever it writes, the call computes or raises: it uses the numbers that it has checked."""
    program = f"""
        import threading, time, torch, fastrnn
        gru, stop, N = fastrnn.GRU(1, 1), time.perf_counter() + 2, 4000
        weights, h = [each.detach() for each in gru.parameters()], torch.zeros(1, N, 1)
        if {kind == "lengths"}:
            low, high, x = torch.full((N,), 1), torch.full((N,), 3), torch.randn(3, N, 1)
        else:
            low, high, x = torch.tensor([N, 1, 1]), torch.tensor([N, N, N]), torch.randn(N + 2, 1)
        given = low.clone()
        sizes, lengths = (None, given) if {kind == "lengths"} else (given, None)

        def write():
            while time.perf_counter() < stop:
                given.copy_(high)
                given.copy_(low)

        thread = threading.Thread(target=write)
        thread.start()
        while time.perf_counter() < stop:
            try:
                torch.ops.fastrnn.layer_inference(
                    x, sizes, h, None, weights, "gru", "w_ih w_hh b_ih b_hh", None, lengths
                )
            except RuntimeError:
                pass
        thread.join()
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr
