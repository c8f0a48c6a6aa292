"""The self-test of kernels for GPUs: what it finds, how it ends, and what "auto" makes of it.

The comparison runs for real, on a GPU or in Triton's interpreter; test_cuda_calls.py runs that of
the CUDA kernels. Devices, and how a test ends, are faked.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from program_cells import CELLS as FUNCTIONS
from test_triton import DEVICE

import fastrnn
from fastrnn import Recurrent, diagnosis, dispatch
from fastrnn.call import Call
from fastrnn.dispatch import choice, cuda, cudnn, gpu, kept, reference, selftest, trial, triton
from fastrnn.dispatch.selftest import Subject, Verdict
from fastrnn.table import CELLS, weight_names

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


def call_of(name: str, H: int = 7, dtype: torch.dtype = torch.float32, **options) -> Call:
    """A call of a cell that is a function, as the test is given one."""
    seen = []
    module = Recurrent(FUNCTIONS[name], 3, H, dtype=dtype, **options)
    shapes = ((5, 2, 1), (5, 2, H))
    inputs = {
        k: torch.rand(shapes[i % 2], dtype=dtype) for i, k in enumerate(FUNCTIONS[name].inputs)
    }
    with pytest.MonkeyPatch.context() as patch:
        choose = dispatch.choose

        def spy(call, *rest, **options):
            seen.append(call)
            return choose(call, *rest, **options)

        patch.setattr(dispatch, "choose", spy)
        module(torch.rand(5, 2, 3, dtype=dtype), inputs=inputs or None)
    return seen[0]


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


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("function", [False, True])
def test_one_wrong_number_is_found(name, function):
    """Of a function, whose results count as a whole, half of the numbers. The kernels are the
    reference, altered."""
    call = call_of("lstm") if function else None
    run, run_backward = reference.run_detached, reference.run_backward
    kernels = SimpleNamespace(run=run, run_backward=run_backward)

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
    assert verdict.reason.startswith(f"{cell}: ") and f"{title} is off by" in verdict.reason


def test_nan_is_found():
    def run(call, save):
        results = reference.run_detached(call, save)
        results.h_n[-1, -1, -1] = torch.nan
        return results

    kernels = SimpleNamespace(run=run, run_backward=reference.run_backward)
    assert "h_n is off by nan" in test_of("gru", kernels=kernels).reason


def test_cases_cover_what_torch_nn_lacks():
    for case in trial.cases(CELLS):
        call = case.call
        assert (call.reset is None) == (call.h0.size(0) == 2)
        assert set(call.lengths.tolist()) == set(range(trial.T + 1))
        assert call.detach_every and call.grad_clip and call.input.dtype == torch.float64
    before = torch.get_rng_state()
    trial.cases(CELLS)
    assert torch.equal(before, torch.get_rng_state())  # the user's numbers go on as they were


# How a test ends and what is kept, with a fake of the kernels and of the GPU.


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU of compute capability 8 and kernels whose test ends as `ends` says."""
    state = SimpleNamespace(ran=0, name="A100", ends=lambda: Verdict(None))

    def test(*arguments):
        state.ran += 1
        return state.ends()

    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selftest, "_test", test)
    monkeypatch.setattr(selftest, "_verdicts", {})
    monkeypatch.setattr(selftest, "FILE", kept.File("selftest.json"))
    monkeypatch.setattr(kept, "machine", lambda device: state.name)
    monkeypatch.setattr(gpu, "nvidia", lambda device: 8)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return state


def another_process() -> None:
    selftest._verdicts.clear()


def gru(dtype: torch.dtype = torch.float32) -> Call:
    x, h0 = torch.empty(2, 3, 4, dtype=dtype), torch.empty(1, 3, 5, dtype=dtype)
    weights = [torch.empty(15, 4, dtype=dtype), torch.empty(15, 5, dtype=dtype)]
    return Call(x, None, h0, None, weights, "gru", weight_names(False, False), detach_every=2)


def refused(dtype: torch.dtype = torch.float32) -> tuple[str | None, list[str]]:
    """(the reason, warnings)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = selftest.refused(triton, gru(dtype))
    return reason, [str(warning.message) for warning in caught]


def test_a_pass_is_kept(machine):
    for _ in range(2):
        assert refused() == (None, [])
    another_process()
    assert refused() == (None, []) and machine.ran == 1
    assert refused(torch.float16) == (None, []) and machine.ran == 2  # of each precision its own
    another_process()
    machine.name = "A100 with another driver"
    assert refused() == (None, []) and machine.ran == 3
    another_process()
    machine.name = "A100"
    assert refused() == (None, []) and machine.ran == 3
    assert selftest.kept_of(torch.device("cuda")) == {
        "triton, float32, gru": "passed",
        "triton, float16, gru": "passed",
    }


def test_a_failure_is_kept_and_said_once(machine):
    machine.ends = lambda: Verdict("gru: h_n is off by 1")
    reason, said = refused()
    assert reason == "the triton kernels did not pass their self-test: gru: h_n is off by 1"
    (warning,) = said
    assert "runs as a loop of PyTorch's operations" in warning and reason in warning
    assert refused() == (reason, [])
    another_process()
    assert refused() == (reason, said) and machine.ran == 1
    assert selftest.kept_of(torch.device("cuda")) == {"triton, float32, gru": reason}
    machine.ends = lambda: Verdict(None)  # run at will
    asked = selftest.subject(triton, "gru", torch.device("cpu"), torch.float32)
    assert selftest.run(triton, asked) == Verdict(None)
    assert refused() == (None, [])


def raises(error: BaseException):
    def end():
        raise error

    return end


def test_what_another_process_may_find_otherwise_is_not_kept(machine, monkeypatch):
    monkeypatch.setattr(selftest, "PATIENCE", 0.2)
    released = threading.Event()

    def hangs() -> Verdict:
        released.wait()
        return Verdict(None)

    ends = (
        (raises(RuntimeError("no\nimage")), "RuntimeError: no image"),
        (raises(torch.OutOfMemoryError("full")), "OutOfMemoryError: full"),
        (hangs, "it took more than 0.2 s"),
    )
    for k, (machine.ends, text) in enumerate(ends, 1):
        reason, said = refused()
        assert reason.endswith(text) and len(said) == 1
        assert refused() == (reason, []) and machine.ran == k
        assert selftest.kept_of(torch.device("cuda")) == {}
        another_process()
    released.set()
    machine.ends = lambda: Verdict(None)
    assert refused() == (None, [])


def test_a_slow_pass_is_none(monkeypatch):
    times = iter([0.0, 0.4])
    verdict = selftest._test(triton, of_triton("rnn_tanh"), None, lambda: next(times))
    assert verdict == Verdict("it took 0.4 s, more than 0.3 s", lasting=False)


def test_an_error_of_the_device_is_kept(machine):
    machine.ends = raises(torch.AcceleratorError("illegal memory access"))
    reason, _ = refused()
    another_process()
    assert refused()[0] == reason and machine.ran == 1
    assert "illegal memory access" in reason


def test_a_process_that_did_not_survive(machine, monkeypatch):
    """Its mark is in the file; while it may still be at work, others test for themselves."""
    left = []

    def look() -> Verdict:
        left.append(json.loads(selftest.FILE.path.read_text()))
        return Verdict(None)

    machine.ends = look
    assert refused() == (None, [])
    (key,) = left[0]["entries"]
    another_process()
    selftest.FILE.path.write_text(json.dumps(left[0]))
    assert refused() == (None, []) and machine.ran == 2
    another_process()
    left[0]["entries"][key]["began"] = time.time() - selftest.PATIENCE - 1
    selftest.FILE.path.write_text(json.dumps(left[0]))
    reason, said = refused()
    assert "its process ended meanwhile; `python -m fastrnn selftest`" in reason and len(said) == 1
    assert machine.ran == 2


def test_an_interrupt_leaves_no_mark(machine, monkeypatch):
    monkeypatch.setattr(selftest, "_in_time", lambda *_: raises(KeyboardInterrupt())())
    with pytest.raises(KeyboardInterrupt):
        refused()
    assert selftest.FILE.read() == {} and not selftest._lock.locked()
    monkeypatch.undo()


@pytest.mark.parametrize("broken", ["nowhere", "damaged"])
def test_without_a_folder(machine, monkeypatch, tmp_path, broken):
    if broken == "nowhere":
        (tmp_path / "file").touch()
        monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "file"))
        for ran in (1, 2):
            assert refused()[0] is None and machine.ran == ran
            another_process()
    else:
        selftest.FILE.path.parent.mkdir()
        selftest.FILE.path.write_text("{")
        reason, said = refused()
        assert reason is None and len(said) == 1 and "ignores" in said[0]
        another_process()
        assert refused() == (None, []) and machine.ran == 1  # written anew


def test_threads_wait_for_one_test(machine):
    begun = threading.Barrier(4)
    machine.ends = lambda: (time.sleep(0.05), Verdict(None))[1]
    found = []

    def work():
        begun.wait()
        found.append(selftest.refused(triton, gru()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 4 and machine.ran == 1


def test_nothing_runs_while_a_graph_is_captured(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    reason, said = refused()
    assert "captured" in reason and not said and machine.ran == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert refused() == (None, [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert refused() == (None, [])


def test_older_gpus_and_others_are_not_tested(machine, monkeypatch):
    for major in (0, 7):  # 0: none of NVIDIA's
        monkeypatch.setattr(gpu, "nvidia", lambda _, major=major: major)
        reason, said = refused()
        assert "not tried on such a GPU; fastrnn.backend('triton') takes it" in reason
        assert not said and machine.ran == 0


# What "auto" makes of it.


@pytest.fixture
def a100(machine, monkeypatch):
    """CPU tensors are taken for those of a GPU that nobody has tried, with the Triton kernels."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda, "_missing", "not compiled")
    monkeypatch.setattr(cudnn, "status", lambda: None)
    monkeypatch.setattr(reference, "_warned", set())
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    return machine


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
