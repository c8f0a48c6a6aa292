"""How the benchmark suite times: turns, ratios, processes, other checkouts, memory. Clocks are
injected: no test depends on how fast anything runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from bench_doubles import FACTS, SPEC, TINY, Clock, altered

from bench import base, ceilings, cuda, facts, jobs, memory, timing, verify
from bench.cases import Spec
from bench.contenders import BASELINE, OURS
from bench.jobs import find
from bench.measure import measure
from bench.results import Row
from bench.sessions import Local, Remote, Unfit, serve


@pytest.fixture(autouse=True)
def one_thread():
    """Sessions set the number of threads for their process, which here is that of the tests."""
    with timing.torch_threads(1):
        yield


def measured(clock: Clock, *entrants, seconds: float = 1.0, **options) -> dict[str, Row]:
    rows = measure(SPEC, {one.name: Local(one, clock) for one in entrants}, seconds, **options)
    return {row.contender: row for row in rows}


def test_a_slowed_down_contender_shows_its_ratio():
    clock = Clock()
    rows = measured(clock, clock.taking(OURS.name, 0.006), clock.taking(BASELINE.name, 0.002))
    ours, torchs = rows[OURS.name], rows[BASELINE.name]
    assert (ours.ms, torchs.ms) == pytest.approx((6, 2))
    assert (ours.ratio, torchs.ratio) == pytest.approx((1 / 3, 1))
    assert ours.gflops == pytest.approx(SPEC.flops() / 6e6)
    assert ours.status == torchs.status == "ok"


def test_a_ratio_is_taken_within_each_turn():
    """The machine becomes ten times slower now and then, for everybody."""
    speeds = [1, 10, 1, 1, 10, 1, 10, 1, 1, 10] * 3

    def sampler(seconds: float):
        left = iter(speeds)
        return lambda repeats: [seconds * next(left)]

    estimates = {"ours": 0.02, "baseline": 0.03}
    samplers = {name: sampler(seconds) for name, seconds in estimates.items()}
    taken = timing.alternate(samplers, estimates, seconds=2)
    assert len(taken["ours"]) > 5
    baseline, ours = ([turn[0] for turn in taken[name]] for name in ("baseline", "ours"))
    assert timing.ratios(baseline, ours) == pytest.approx((1.5, 1.5, 1.5))


def test_the_median_stands_up_to_an_outlier():
    clock = Clock()
    entrants = clock.taking(OURS.name, *[0.01] * 9, 5.0), clock.taking(BASELINE.name, 0.02)
    assert measured(clock, *entrants, seconds=30)[OURS.name].ratio == pytest.approx(2)


def test_a_wrong_contender_is_not_timed_and_the_others_are():
    clock = Clock()
    wrong = replace(altered(lambda found: [found[0] * float("nan"), *found[1:]]), name=OURS.name)
    rows = measured(clock, wrong, clock.taking(BASELINE.name, 0.002))
    assert rows[OURS.name].status.startswith("wrong: output is off by nan")
    assert rows[OURS.name].ms is rows[OURS.name].ratio is None
    assert rows[BASELINE.name].ms == pytest.approx(2)


def test_a_row_knows_its_share_of_the_floor_and_its_peak_of_memory():
    clock = Clock()
    machine = ceilings.Ceilings(SPEC.flops() / 0.001, ((1 << 30, 1e15),))  # 1 ms at the least
    rows = measured(clock, clock.taking(BASELINE.name, 0.004), ceilings=machine, memory=True)
    row = rows[BASELINE.name]
    assert (row.floor_ms, row.percent) == pytest.approx((1, 25))
    assert row.peak_mib >= 0


def test_a_row_knows_its_variant():
    (row,) = measure(SPEC, {BASELINE.name: Local(BASELINE)}, 0)
    assert (row.proj_size, row.filled, row.directions) == (0, None, 1)
    case = replace(TINY, T=10, N=4, job="packed", proj_size=2)
    one = jobs.find("packed", "torch.nn")
    (row,) = measure(replace(SPEC, case=case), {one.name: Local(one)}, 0)
    assert (row.status, row.proj_size, row.filled) == ("ok", 2, 28 / 40)


def test_a_stream_shows_the_tails_of_its_latency():
    clock = Clock()
    case = replace(TINY, T=1, N=1, layers=1, job="step")
    spec = Spec(case, "GRU", "inference")
    ours = clock.taking("fastrnn", *[0.0001] * 98, 0.05, 0.01, contender=find("step", "torch.nn"))
    peer = clock.taking("torch.nn", 0.0002, contender=find("step", "torch.nn"))
    sessions = {one.name: Local(one, clock) for one in (ours, peer)}
    row = measure(spec, sessions, seconds=20)[0]
    assert row.ms == pytest.approx(0.1) and row.ratio == pytest.approx(2)
    assert (row.ms_p99, row.ms_p999) == pytest.approx((10, 50))
    few = measure(spec, {"fastrnn": Local(ours, clock)}, seconds=0)[0]
    assert few.ms_p99 and few.ms_p999 is None  # of too few calls


def test_percentiles():
    values = [float(value) for value in range(1000, 0, -1)]
    assert [timing.percentile(values, share) for share in (0.5, 0.99, 0.999, 1)] == [
        500, 990, 999, 1000,
    ]  # fmt: skip
    assert timing.percentile([3.0], 0.999) == 3


def test_a_long_call_is_not_made_again_to_warm_up(monkeypatch):
    monkeypatch.setitem(verify.MOST_FLOPS, "cpu", 1.0)
    clock = Clock()
    assert Local(clock.taking("slow", 2.0), clock).open(SPEC) == 2.0
    assert clock.now == 3 * 2.0  # twice with fewer steps, once with all


def test_contenders_take_turns_in_alternating_order():
    order = []

    def sampler(name: str, seconds: float):
        def take(repeats: int) -> timing.Turn:
            order.append((name, repeats))
            return [seconds]

        return take

    samplers = {"a": sampler("a", 0.001), "b": sampler("b", 1.0)}
    taken = timing.alternate(samplers, {"a": 0.001, "b": 1.0}, seconds=0.1)
    once, many = ("b", 1), ("a", 5)
    assert order == [many, once, once, many, many, once]
    assert [len(samples) for samples in taken.values()] == [timing.FEWEST_TURNS] * 2
    taken = timing.alternate(samplers, {"a": 0.001, "b": 1.0}, seconds=10)
    assert len(taken["a"]) == 10


def test_spread_of_one_sample_and_of_many():
    assert timing.spread([3.0]) == (3, 3, 3)
    many = timing.spread([float(value) for value in range(1, 102)])
    assert many == (26, 51, 76)
    assert many.relative == pytest.approx(25 / 51)


# --- Processes --------------------------------------------------------------------------------


def test_another_process_answers_as_this_one_does(monkeypatch):
    wrong = replace(altered(lambda found: found[:-1]), name="wrong")
    monkeypatch.setitem(jobs.JOBS, "layer", (wrong, BASELINE))
    for contender in (wrong, BASELINE):
        mine, theirs = Pipe()
        server = threading.Thread(target=serve, args=(theirs, contender.name))
        server.start()
        mine.send(("open", (SPEC,)))
        reply = mine.recv()
        if contender is BASELINE:
            assert reply > 0
            mine.send(("sample", (2,)))
            assert mine.recv()[0] > 0
        else:
            assert reply.startswith("wrong: ")
        mine.close()
        server.join()


def wait_for_state(pid: int, *states: str | None) -> None:
    """Until a process is in one of the states of /proc; None: there is no such process."""
    stat, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 60
    while True:
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            state = None
        if state in states:
            return
        assert time.monotonic() < deadline, f"state {state}"
        time.sleep(0.01)


def test_a_contender_in_a_process_of_its_own():
    session = Remote(BASELINE.name)
    spec = replace(SPEC, threads=2)
    row = measure(spec, {BASELINE.name: session}, seconds=0.01, memory=True)[0]
    assert row.status == "ok" and row.peak_mib is not None
    wait_for_state(session.process.pid, "T")  # stopped, and takes no core
    session.process.kill()
    with pytest.raises(Unfit, match="its process died"):
        session.open(spec)
    session.close()


def test_a_process_that_is_stopped_ends_with_its_parent():
    program = """
import signal
from bench.sessions import Remote
Remote("torch.nn").signal(signal.SIGSTOP)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=90).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_whatever_ends_the_parent_ends_what_it_stopped():
    program = """
import sys, time
from bench.sessions import Remote
sys.path.insert(0, sys.argv[1])
from bench_doubles import SPEC
remote = Remote("torch.nn")
remote.open(SPEC)
print(remote.process.pid, flush=True)
time.sleep(600)
"""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in numbers
    ]
    children = []
    try:
        for parent, number in zip(parents, numbers, strict=True):
            children.append(int(parent.stdout.readline()))
            wait_for_state(children[-1], "T")
            parent.send_signal(number)
            parent.wait(60)
            wait_for_state(children[-1], None, "Z")
            children.pop()
    finally:
        for process in [*(parent.pid for parent in parents if parent.poll() is None), *children]:
            os.kill(process, signal.SIGKILL)


def test_a_checkout_of_another_commit(tmp_path):
    """Of which `git archive` gives the files; compiling it is left out."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    package = tmp_path / "fastrnn"
    package.mkdir()
    (package / "__init__.py").write_text("# the old one")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "old"], ["tag", "then"]):
        subprocess.run([*git, *words], check=True)
    (package / "__init__.py").write_text("# the new one")

    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "build", built.append)
        folder = base.checkout("then", tmp_path, tmp_path / "kept")
        assert base.checkout("then", tmp_path, tmp_path / "kept") == folder
    assert built == [folder]
    ours, theirs = base.rivals(SPEC, "then", folder)
    assert (ours.name, theirs.name, theirs.checkout) == ("fastrnn", "fastrnn@then", folder)
    assert "the old one" in (folder / "fastrnn" / "__init__.py").read_text()


# --- Memory and machine -----------------------------------------------------------------------


def test_the_peak_is_what_a_call_holds_at_once():
    megabytes = 2**20

    def call():
        held = [torch.ones(16 * megabytes // 4) for _ in range(3)]
        torch.ones(8 * megabytes // 4)
        return held[0]

    found = memory.peak(call, "cpu")
    assert 55 * megabytes <= found < 80 * megabytes  # pages are counted in batches
    assert memory.peak(lambda: None, "cpu") < 8 * megabytes


def test_ceilings_of_this_machine():
    """That something was counted: the rates themselves are not judged."""
    found = ceilings.measure("float32", 1)
    assert found.flops > 1e8
    assert [size for size, _ in found.reads] == list(ceilings.SIZES)
    assert found.bandwidth(1) == found.reads[0][1]
    assert found.bandwidth(1 << 40) == found.reads[-1][1]
    assert ceilings.measure("bfloat16", 1) is None


def test_no_ceilings_without_a_compiler(monkeypatch):
    ceilings.compiled.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert ceilings.measure("float32", 1) is None
    ceilings.compiled.cache_clear()


def test_facts_of_this_machine(monkeypatch):
    monkeypatch.setattr(facts, "matrix_rate", lambda: 12.34e9)
    found = facts.gather(ceilings.Ceilings(5e10, ((1 << 18, 7e10), (1 << 27, 2e10))))
    assert (found.mm_gflops, found.fma_gflops) == (12.3, 50)
    assert (found.cache_gbs, found.memory_gbs) == (70, 20)
    assert found.torch == torch.__version__
    assert found.isa in found.machine()
    assert "onnxruntime" in found.peers
    assert facts.gather().fma_gflops is None


def test_the_machine_names_its_file():
    assert FACTS.machine() == "a-cpu-r-avx2-2-cores"
    assert replace(FACTS, gpu="NVIDIA H100 80GB HBM3").machine() == "nvidia-h100-80gb-hbm3"


def test_tf32_is_allowed_where_the_dtype_says_so():
    for dtype in ("tf32", "float32"):
        Local(BASELINE).open(replace(SPEC, dtype=dtype))
        assert torch.backends.cudnn.allow_tf32 == (dtype == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 == (dtype == "tf32")


def test_a_gpu_is_timed_by_events_around_each_call_with_a_cold_cache(monkeypatch):
    """With stand-ins for the events: what order things are put into the stream."""
    stream = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            stream.append(self)

        def elapsed_time(self, later) -> float:
            between = stream[stream.index(self) : stream.index(later)]
            return 3.0 * between.count("call") + 100.0 * between.count("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stream.append("wait"))
    monkeypatch.setattr(cuda, "eraser", lambda: Mock(zero_=lambda: stream.append("flush")))
    assert cuda.sample(lambda: stream.append("call"), 4) == pytest.approx(0.003)
    assert [one for one in stream if isinstance(one, str)] == ["flush", "call"] * 4 + ["wait"]


def test_a_question_to_a_driver_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert cuda.query("driver_version") == ""
