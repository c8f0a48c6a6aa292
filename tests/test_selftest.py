"""How a self-test of kernels for GPUs ends, and what is kept of it, with a fake of both."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
import untried_gpu
from untried_gpu import another_process, gru, refused

from fastrnn.dispatch import gpu, selftest, triton
from fastrnn.dispatch.selftest import Verdict

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

machine = untried_gpu.machine  # fixtures


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


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_an_error_that_the_device_stays_with_is_kept(machine, monkeypatch, kind):
    machine.ends = raises(kind("illegal memory access"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: machine.ends())
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


@pytest.mark.parametrize(
    "entry", [{}, {"reason": 7}, {"reason": ["passed"]}, {"began": "yesterday"}, 7, None, [], "ok"]
)
def test_a_damaged_entry_is_no_result(machine, entry):
    """Neither a pass nor a failure: the test is made anew."""
    assert refused() == (None, [])
    another_process()
    (key,) = selftest.FILE.read()
    selftest.FILE.change(lambda entries: entries.update({key: entry}))
    assert selftest.kept_of(torch.device("cuda")) == {}
    assert refused() == (None, []) and machine.ran == 2
    assert selftest.FILE.read() == {key: {"reason": None}}


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
