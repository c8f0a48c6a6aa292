"""What "auto" makes of a self-test of kernels for GPUs, with a fake of both."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
import untried_gpu
from untried_gpu import another_process, call_of, gru, refused

import fastrnn
from fastrnn import diagnosis, dispatch
from fastrnn.call import Call
from fastrnn.dispatch import choice, cuda, cudnn, gpu, reference, selftest, triton
from fastrnn.dispatch.selftest import Verdict
from fastrnn.table import CELLS, weight_names

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

machine = untried_gpu.machine  # fixtures
a100 = untried_gpu.a100


def test_kernels_for_what_torch_nn_lacks(a100):
    plain = gru()._replace(detach_every=0)
    assert dispatch.choose(plain) is cudnn and a100.ran == 0
    assert dispatch.choose(gru()) is triton and a100.ran == 1
    assert dispatch.choose(plain) is cudnn
    for fields in (
        {"grad_clip": 1.0},
        {"lengths": torch.ones(3, dtype=torch.int64)},
        {"reset": torch.zeros(2, 3, dtype=torch.bool)},
    ):
        assert dispatch.choose(gru()._replace(detach_every=0, **fields)) is triton
    with fastrnn.backend("reference"):
        assert dispatch.choose(gru()) is reference
    assert dispatch.choose(gru(torch.float64)) is reference  # which these kernels do not take
    # transforms, which no op sees
    assert torch.func.vmap(lambda _: torch.tensor(dispatch.choose(gru()) is reference))(
        torch.zeros(2)
    ).all()
    assert a100.ran == 1


def test_a_failure_leaves_things_as_they_are(a100):
    a100.ends = lambda: Verdict("wrong")
    with pytest.warns(UserWarning, match="did not pass their self-test: wrong"):
        assert dispatch.choose(gru()) is reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose(gru()) is reference
        assert dispatch.choose(gru()._replace(detach_every=0)) is cudnn


def test_functions_on_a_gpu(a100, monkeypatch):
    call = call_of("lstm")
    assert dispatch.choose(call) is triton and a100.ran == 1
    # a GPU on which the built-in cells were tried, and functions not
    another_process()
    monkeypatch.setattr(gpu, "nvidia", lambda _: 9)
    a100.ends = lambda: Verdict("wrong")
    selftest.FILE.path.unlink()
    with pytest.warns(UserWarning) as caught:
        assert dispatch.choose(call) is reference
    (warning,) = caught
    assert "the cell lstm runs as a loop" in str(warning.message)
    assert "self-test: wrong" in str(warning.message)


@pytest.mark.parametrize("before", [False, True])
def test_in_a_compiled_graph(a100, before):
    """Whether the test is made while the graph is, or was before."""

    def function(x, h0, weights):
        call = Call(x, None, h0, None, weights, "gru", weight_names(False, False), detach_every=2)
        return x + (1 if dispatch.choose(call) is triton else 2)

    call = gru()
    if before:
        dispatch.choose(call)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    x = torch.zeros_like(call.input)
    assert compiled(x, call.h0, call.weights).unique().item() == 1 and a100.ran == 1


def test_functions_need_a_call_before_a_graph(a100):
    call = call_of("lstm")  # which makes a test
    another_process()
    selftest.FILE.change(dict.clear)
    args = (triton, call.input.device, call.input.dtype, call.cell)
    assert "outside of torch.compile" in selftest._refused_in_graph(*args)
    assert dispatch.choose(call) is triton
    assert selftest._refused_in_graph(*args) == ""


def test_modes_of_the_caller_do_not_reach_the_test(machine):
    """It runs with real tensors, in the dtypes that it asks for."""
    seen = []

    def look() -> Verdict:
        a = torch.ones(2, 2)
        seen.append((type(a), (a @ a).dtype, torch.is_grad_enabled(), torch.is_inference(a)))
        return Verdict(None)

    machine.ends = look
    from torch._subclasses import FakeTensorMode

    call = gru()
    for mode in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), FakeTensorMode()):
        another_process()
        selftest.FILE.change(dict.clear)
        with mode:
            assert selftest.refused(triton, call) is None
    assert seen == [(torch.Tensor, torch.float32, True, False)] * 3


def test_no_kernel_waits_for_another_block(monkeypatch):
    """Where nobody has tried the kernels, and nobody forces them."""
    launch = pytest.importorskip("fastrnn.dispatch.triton.launch", reason="there is no Triton")
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    properties = SimpleNamespace(
        multi_processor_count=132, shared_memory_per_block_optin=227 << 10, warp_size=32, major=9
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(launch, "_of_gpu", launch._of_gpu.__wrapped__)

    def plans(major: int, functions: bool) -> set[bool]:
        monkeypatch.setattr(gpu, "nvidia", lambda _: major)
        device = launch.device_of(tensor, functions)
        return {
            launch.choose(units, 4 * units, n, 1, size, ieee, device, whole).persistent
            for units in (8, 100, 128, 256, 1024)
            for n in (1, 16, 64, 1000)
            for size, ieee in ((2, False), (4, False), (4, True))
            for whole in (False, True)
            if not (whole and units > 128)
        }

    for major in (8, 10, 12):
        assert plans(major, False) == plans(major, True) == {False}
    assert plans(9, False) == {False, True} and plans(9, True) == {False}
    monkeypatch.setattr(choice, "forced", "triton")
    assert plans(8, False) == plans(9, True) == {False, True}


def test_the_choice_of_the_user_is_known():
    assert choice.forced == "auto"
    with fastrnn.backend("reference"):
        assert choice.forced == "reference"
    assert choice.forced == "auto"


def test_all_at_will(machine, monkeypatch, capsys):
    from fastrnn import __main__

    names = [f"triton, {p}, {c}" for p in ("float16", "bfloat16", "float32", "tf32") for c in CELLS]
    assert __main__.main(["selftest", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("cuda").startswith("cannot run: ")
    assert found == dict.fromkeys(names, "passed") and machine.ran == len(names)
    machine.ends = lambda: Verdict("wrong")
    assert __main__.main(["selftest"]) == 1
    assert "did not pass their self-test: wrong" in capsys.readouterr().out
    monkeypatch.setattr(triton, "status", lambda: "no GPU")
    assert __main__.main(["selftest"]) == 1
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


def test_the_report_says_so(machine, monkeypatch):
    for each, state in ((cudnn, None), (triton, None), (cuda, "broken")):
        monkeypatch.setattr(each, "status", lambda state=state: state)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert diagnosis.served()[1][1] == (
        "cudnn; what torch.nn lacks: triton if its self-test passes, else reference; "
        "not cuda: broken"
    )
    assert diagnosis._kept() == {}
    refused()
    assert diagnosis._kept() == {"triton, float32, gru": "passed"}
