"""The benchmark suite's contenders in processes of their own and in checkouts of other commits."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
from bench_doubles import SPEC, altered

from bench import base, jobs
from bench.contenders import BASELINE
from bench.measure import measure
from bench.sessions import Remote, Unfit, serve

# Sessions set the number of threads for their process, which here is that of the tests.
pytestmark = pytest.mark.usefixtures("one_thread")


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
import signal, sys, time
from bench.sessions import Remote
for number in signal.SIGINT, signal.SIGHUP:  # a shell or nohup may have had them ignored
    signal.signal(number, signal.SIG_DFL)
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
