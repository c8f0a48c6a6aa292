"""Random calls at real sizes: a part of `make stress`, and whether that finds what is wrong."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

pytest.importorskip("fastrnn._C", reason="there are no compiled kernels", exc_type=ImportError)

from stress.__main__ import main
from stress.case import Case
from stress.check import assert_same_bits, check
from stress.draw import AIMS, case, changed, constant, line
from stress.hunt import Hunt

import fastrnn

SEEDS = range(160)


def test_fixed_seeds():
    with Hunt(check) as hunt:
        hunt.run(map(case, SEEDS))
    assert not hunt.findings
    assert hunt.cases == len(SEEDS) and hunt.calls > 2 * len(SEEDS)


def kill(number: int) -> None:
    """This process, from another of its threads."""
    killer = threading.Thread(target=os.kill, args=(os.getpid(), number))
    killer.start()
    killer.join()


# By seed: what goes wrong in a child, and what is then said.
PLANTED = {
    2: (os.abort, "crash: SIGABRT"),
    3: (lambda: kill(signal.SIGFPE), "crash: SIGFPE"),
    4: (lambda: os._exit(7), "crash: exit status 7"),
    6: (lambda: assert_same_bits({}, {"h_n": None}, "planted"), "AssertionError: planted"),
    7: (lambda: 1 // 0, "ZeroDivisionError: "),
    8: (lambda: time.sleep(3600), "hang: more than 10 s"),
}


def go_wrong(case: Case) -> int:
    if case.seed in PLANTED:
        PLANTED[case.seed][0]()
    return 3


def test_what_goes_wrong_is_found():
    """With its seed; and the cases after it are run."""
    told = []
    with Hunt(go_wrong, told.append, limit=10) as hunt:
        hunt.run([Case(seed) for seed in range(10)])
    assert [finding.case.seed for finding in hunt.findings] == [*PLANTED]
    told = [text for text in told if "--seed" in text]  # without figures in between
    for finding, text, (seed, (_, what)) in zip(hunt.findings, told, PLANTED.items(), strict=True):
        assert what in finding.what
        assert f"--seed {seed} " in text and what in text
    assert hunt.cases == 10 and hunt.calls == 3 * 4


def dislike(case: Case) -> int:
    assert not (case.T >= 5 and case.reset and case.cell == "gru"), "disliked"
    return 1


def test_a_finding_is_made_simpler(capsys):
    """The line says how to repeat it, and repeats it."""
    start = Case(7, T=90, N=30, H=50, cell="gru", reset=True, states=True, threads=4)
    simple = Case(7, T=5, cell="gru", reset=True)
    _, _, _, _, *arguments = line(simple).split()
    assert changed(case(7), arguments[2:]) == simple
    assert main(line(start).split()[4:], dislike) == 1
    told = capsys.readouterr().out
    assert line(start) in told and f"simpler: {line(simple)}" in told and "1 findings" in told
    assert main([*arguments, "T=4"], dislike) == 0
    assert "1 cases, 1 calls" in capsys.readouterr().out


def test_time_is_kept():
    with Hunt(dislike) as hunt:
        hunt.run([Case(1)] * 3, seconds=0)
    assert hunt.cases == 0


def off_by_a_little(result, by):
    output, state = result
    return output + by, state


def write_before(input):
    input.data.as_strided((1,), (1,), input.storage_offset() - 1).zero_()


def write_into(input):
    input.data.zero_()


FAULTS = {
    "output": lambda input, result: off_by_a_little(result, 1e-3),
    "of output": lambda input, result: off_by_a_little(result, torch.get_num_threads() * 1e-7),
    "without gradients": lambda input, result: off_by_a_little(
        result, torch.is_grad_enabled() * 1e-7
    ),
    "changed": lambda input, result: (write_before(input), result)[1],
    "memory of an input": lambda input, result: (write_into(input), result)[1],
    "called again": lambda input, result: off_by_a_little(result, 1e-7 * torch.rand(1).item()),
    "called with others": lambda input, result: off_by_a_little(
        result, 1e-7 * (threading.current_thread() is not threading.main_thread())
    ),
}
GRADIENT = Case(1, T=3, N=2, I=4, H=8, hx=True, threads=2)


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_a_call_is_seen(what, monkeypatch):
    case = GRADIENT._replace(callers=2)
    forward = fastrnn.LSTM.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            fastrnn.LSTM,
            "forward",
            lambda module, input, hx: FAULTS[what](input, forward(module, input, hx)),
        )
        with pytest.raises(AssertionError, match=what):
            check(case)
    assert check(case) == 6


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


@pytest.mark.parametrize("wanted", ["x", "s", "w"])
def test_a_fault_of_any_gradient_is_seen(wanted, monkeypatch):
    forward = fastrnn.LSTM.forward

    def call(module, input, hx):
        output, state = forward(module, input, hx)
        return Scaled.apply(output), state

    monkeypatch.setattr(fastrnn.LSTM, "forward", call)
    with pytest.raises(AssertionError, match="grad"):
        check(GRADIENT._replace(wanted=wanted, loss="output"))


def test_cases():
    """A seed has one case; every value of a choice comes up, and both sides of every threshold."""
    cases = [case(seed) for seed in range(1500)]
    assert cases[3] == case(3)
    assert {found.layout for found in cases} >= {"plain", "offset", "transposed", "strided"}
    for field, default in Case._field_defaults.items():
        values = {getattr(found, field) for found in cases}
        assert len(values) > 1 and default in values, field
    for aim in AIMS:
        shares = [aim.amount(found) / aim.limit for found in cases]
        near = max(0.15, 1 / aim.limit)  # or the next whole number
        assert any(1 - near <= share < 1 for share in shares)
        assert any(1 <= share <= 1 + near for share in shares)


def test_a_threshold_that_is_gone():
    assert constant("kThreadWork") == 1 << 19
    with pytest.raises(LookupError, match="kNothing"):
        constant("kNothing")
