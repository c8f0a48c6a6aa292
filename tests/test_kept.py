"""The file in which a machine's results are kept: damage, threads, processes, folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from fastrnn.dispatch import gpu, kept


@pytest.fixture
def file(monkeypatch, tmp_path) -> kept.File:
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "deep" / "cache"))
    return kept.File("things.json")


def test_entries_come_back(file):
    assert file.read() == {}
    file.change(lambda entries: entries.update(a=1))
    file.change(lambda entries: entries.update(b=[2, "three"]))
    assert file.read() == {"a": 1, "b": [2, "three"]}
    held = json.loads(file.path.read_text())
    assert held == {"format": kept.FORMAT, "entries": {"a": 1, "b": [2, "three"]}}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"format": 1}', '{"format": 1, "entries": []}', "\udcff",
     '{"format": 2, "entries": {}}', '{"entries": {"a": 1}}', "[" * 100_000],
)  # fmt: skip
def test_a_file_that_is_not_ours(file, text):
    """It counts for nothing, is said once, and is written anew."""
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match="fastrnn ignores .*things.json"):
        assert file.read() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file.read() == {}
        file.change(lambda entries: entries.update(a=1))
        assert file.read() == {"a": 1}


def test_a_change_that_fails_leaves_what_was_there(file):
    file.change(lambda entries: entries.update(a=1))
    with pytest.raises(ZeroDivisionError):
        file.change(lambda entries: entries.update(a=1 / 0))
    with pytest.raises(TypeError, match="JSON"):
        file.change(lambda entries: entries.update(a=object()))
    assert file.read() == {"a": 1}
    names = {path.name for path in file.path.parent.iterdir()}
    assert names == {"things.json", "things.lock"}  # no half a file
    file.change(lambda entries: entries.update(b=2))
    assert file.read() == {"a": 1, "b": 2}


WORK = """
import sys
from fastrnn.dispatch import kept
file = kept.File("things.json")
for k in range(40):
    file.change(lambda entries: entries.update({f"{sys.argv[1]} {k}": k}))
"""


def test_processes_and_threads_at_once(file):
    """Nobody's entry is lost, and nobody reads half a file."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", WORK, name], env=environment)
        for name in ("one", "two")
    ]
    errors = []

    def work(name: str) -> None:
        try:
            for k in range(40):
                file.change(lambda entries, k=k: entries.update({f"{name} {k}": k}))
                file.read()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("three", "four")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        while any(process.poll() is None for process in processes):
            file.read()
        for thread in threads:
            thread.join()
        assert not errors and [process.returncode for process in processes] == [0, 0]
        names = ("one", "two", "three", "four")
        assert file.read() == {f"{name} {k}": k for name in names for k in range(40)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_holds_no_lock(file):
    """Of a thread that writes while another forks, as a loader of data does."""
    fcntl = pytest.importorskip("fcntl")
    children = []

    def fork(entries) -> None:
        entries["a"] = 1
        children.append(os.fork())
        if not children[0]:
            time.sleep(60)
            os._exit(0)

    try:
        file.change(fork)
        with open(file.path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
    assert file.read() == {"a": 1}


def test_a_user_without_a_home(file, monkeypatch):
    """Nothing is kept, and a call goes on."""

    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("FASTRNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "expanduser", nobody)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file.read() == {}
    with pytest.raises(OSError, match="home directory. FASTRNN_CACHE names another folder"):
        file.change(lambda entries: None)


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRNN_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(sys, "platform", "linux")
    assert kept.folder() == tmp_path / ".cache" / "fastrnn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kept.folder() == tmp_path / "xdg" / "fastrnn"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert kept.folder() == tmp_path / "Library" / "Caches" / "fastrnn"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert kept.folder() == tmp_path / "local" / "fastrnn"


def test_what_a_result_holds_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {device.index}")
    monkeypatch.setattr(gpu, "capability", lambda device: (8, 6))
    monkeypatch.setattr(gpu, "driver", lambda: "550.54")
    name = kept.machine.__wrapped__(torch.device("cuda", 1))
    assert name.startswith(f"NVIDIA 1, sm_86, driver 550.54, torch {torch.__version__}, fastrnn ")


def test_a_key_is_of_one_machine(monkeypatch):
    """Not of another whose name ends as this one's does."""
    monkeypatch.setattr(kept, "machine", lambda device: "RTX 6000, sm_89")
    device = torch.device("cuda", 0)
    assert kept.is_of("lstm, float16: RTX 6000, sm_89", device)
    assert kept.is_of("triton, float16, gru: 3.7.0, RTX 6000, sm_89", device)
    assert not kept.is_of("lstm, float16: Quadro RTX 6000, sm_89", device)


def test_the_version_of_the_driver(monkeypatch):
    text = "NVRM version: NVIDIA UNIX {}  550.54.15  Tue Mar  5 2024\nGCC version: 12.2.0\n"
    for kind in ("x86_64 Kernel Module", "Open Kernel Module for x86_64"):
        monkeypatch.setattr(Path, "read_text", lambda self, kind=kind: text.format(kind))
        assert gpu.driver() == "550.54.15"

    def missing(*_):
        raise OSError

    monkeypatch.setattr(Path, "read_text", missing)

    class Driver:
        @staticmethod
        def cuDriverGetVersion(version):  # noqa: N802 (CUDA's name)
            version._obj.value = 12080
            return 0

    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: Driver)
    assert gpu.driver() == "of CUDA 12.8"
    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    assert gpu.driver() == "unknown"
