"""What a self-test compares: kernels with the reference, on a GPU or in Triton's interpreter.

test_cuda_calls.py runs that of the CUDA kernels.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_triton import DEVICE
from untried_gpu import call_of

from fastrnn.call import Call
from fastrnn.dispatch import choice, reference, selftest, trial, triton
from fastrnn.dispatch.selftest import Subject, Verdict
from fastrnn.table import CELLS

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def still() -> float:
    return 0.0


def of_triton(cell: str, dtype: torch.dtype = torch.float32) -> Subject:
    device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
    return selftest.subject(triton, cell, device, dtype)


def test_of(
    cell: str, dtype: torch.dtype = torch.float32, call: Call | None = None, kernels=triton
) -> Verdict:
    return selftest._test(kernels, of_triton(cell, dtype), call, still)


test_of.__test__ = False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_kernels_pass(cell, dtype):
    assert test_of(cell, dtype) == Verdict(None)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("lstm", torch.float16),
        ("layer_norm_lstm", torch.bfloat16),
        ("zoneout_lstm", torch.float32),  # which has inputs
        ("ligru", torch.bfloat16),  # which bends, where rounding decides
    ],
)
def test_functions_pass(name, dtype):
    call = call_of(name, dtype=dtype)
    assert test_of(call.cell, dtype, call) == Verdict(None)


RESULTS = ["output", "h_n", "c_n", "input", "h0", "c0", *range(4)]


@pytest.mark.parametrize("what", ["projected", "no bias", "states", "packed", "inference"])
def test_each_kind_of_call_counts(what):
    """One in which a kernel is wrong is found."""

    def off(call, came=None):
        return {
            "projected": call.projected,
            "no bias": "b_ih" not in call.names,
            "states": came is not None and came.cells is not None,
            "packed": call.batch_sizes is not None,
        }.get(what, False)

    def run(call, save):
        results = reference.run_detached(call, save)
        if off(call) or (what == "inference" and not save):
            results.output[-1] += 1
        return results

    def run_backward(call, came, *rest):
        gradients = reference.run_backward(call, came, *rest)
        if off(call, came):
            gradients.input[-1] += 1
        return gradients

    kernels = SimpleNamespace(run=run, run_backward=run_backward, SCHEDULES=("stepwise",))
    assert "is off by" in test_of("lstm", kernels=kernels).reason


def test_each_schedule_counts():
    def run(call, save):
        results = reference.run_detached(call, save)
        if choice.tested() == "library":
            results.h_n[0] += 1
        return results

    kernels = SimpleNamespace(
        run=run, run_backward=reference.run_backward, SCHEDULES=("stepwise", "library")
    )
    assert test_of("gru", kernels=kernels).reason.startswith("library gru: h_n is off by")
    assert choice.tested() == ""


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("function", [False, True])
def test_one_wrong_number_is_found(name, function):
    """Of a function, whose results count as a whole, half of the numbers. The kernels are the
    reference, altered."""
    call = call_of("lstm") if function else None
    run, run_backward = reference.run_detached, reference.run_backward
    kernels = SimpleNamespace(run=run, run_backward=run_backward, SCHEDULES=("stepwise",))

    def off(results):
        if isinstance(name, int):  # two gradients may lie in one place
            tensor = results.weights[name] = results.weights[name].clone()
        else:
            tensor = getattr(results, name)
        flat = tensor.view(-1)
        flat[: flat.numel() // 2 if function else 1] += 0.1
        return results

    cell = call.cell if function else "lstm"
    assert test_of(cell, call=call, kernels=kernels) == Verdict(None)
    if name in RESULTS[:3]:
        kernels.run = lambda *arguments: off(run(*arguments))
    else:
        kernels.run_backward = lambda *arguments: off(run_backward(*arguments))
    verdict = test_of(cell, call=call, kernels=kernels)
    assert verdict.lasting
    title = f"weight {name}" if isinstance(name, int) else name
    assert (
        verdict.reason.startswith(f"stepwise {cell}: ") and f"{title} is off by" in verdict.reason
    )


def test_nan_is_found():
    def run(call, save):
        results = reference.run_detached(call, save)
        results.h_n[-1, -1, -1] = torch.nan
        return results

    kernels = SimpleNamespace(run=run, run_backward=reference.run_backward, SCHEDULES=("stepwise",))
    assert "h_n is off by nan" in test_of("gru", kernels=kernels).reason


def test_cases_cover_what_torch_nn_lacks():
    calls = [case.call for case in trial.cases(CELLS)]
    for call in calls:
        assert (call.reset is None) == (call.h0.size(0) == 2)
        assert call.batch_sizes is not None or set(call.lengths.tolist()) == set(range(trial.T + 1))
        assert call.detach_every and call.grad_clip and call.input.dtype == torch.float64
    for cell in CELLS:
        own = [call for call in calls if call.cell == cell]
        assert {call.h0.size(0) for call in own} == {1, 2}
        assert {"b_ih" in call.names for call in own} == {True, False}
        assert {call.batch_sizes is None for call in own} == {True, False}
        assert {call.projected for call in own} == {False, cell == "lstm"}
    came = [case.cotangents.cells is None for case in trial.cases(["lstm"])]
    assert set(came) == {True, False}
    before = torch.get_rng_state()
    trial.cases(CELLS)
    assert torch.equal(before, torch.get_rng_state())  # the user's numbers go on as they were


def test_a_slow_pass_is_none(monkeypatch):
    times = iter([0.0, 0.4])
    verdict = selftest._test(triton, of_triton("rnn_tanh"), None, lambda: next(times))
    assert verdict == Verdict("it took 0.4 s, more than 0.3 s", lasting=False)
