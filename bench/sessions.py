"""Where a contender runs: in this process, or alone in one of its own.

On one thread all contenders share this process and its memory. On several, each gets a process:
the thread pools of different libraries keep spinning for a while after their work is done, and
would take the cores from whoever comes next. The processes then take turns, and those whose turn
it is not are stopped. Another checkout of fastrnn needs a process in any case, since one process
imports one fastrnn.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import torch

from bench import cuda, memory
from bench.cases import Spec
from bench.contenders import Contender
from bench.jobs import find
from bench.timing import Clock, Turn, latencies, no_garbage_collection, sample, warm_up
from bench.verify import WrongResult, verified

MISSING = "not installed"


class Unfit(Exception):
    """A contender that cannot be timed; the text says why, for the table."""


class Session(Protocol):
    def open(self, spec: Spec) -> float:
        """Verify and warm up; seconds of a call. Raises Unfit."""

    def sample(self, repeats: int) -> Turn:
        """Of `repeats` calls of what was opened last: their mean, or of a stream each."""

    def error(self) -> float:
        """Of the results of what was opened last against float64, as `verify.Verified` says."""

    def peak(self) -> float | None:
        """Bytes that a call takes at its height, None where that cannot be known."""

    def kernels(self) -> str:
        """What runs on the GPU in a call, "" where there is none."""

    def host(self) -> float:
        """Seconds until a call returns, on a GPU before it is done."""

    def close(self) -> None: ...


class Local:
    """In this process."""

    def __init__(self, contender: Contender, clock: Clock = time.perf_counter):
        self.contender, self.clock = contender, clock
        self.spec: Spec | None = None
        self.call: Callable[[], object] = lambda: None
        self.off = 0.0

    def open(self, spec: Spec) -> float:
        self.close()
        self.spec = spec
        torch.set_num_threads(spec.threads)
        cuda.allow_tf32(spec.dtype == "tf32")
        try:
            with self.contender.around():
                self.call, seconds, self.off = verified(self.contender, spec, self.clock)
                if spec.device == "cuda":  # whose calls return before they are done
                    return warm_up(lambda: cuda.sample(self.call, 1))
                return warm_up(lambda: sample(self.call, 1, self.clock), seconds)
        except ImportError as error:
            raise Unfit(f"{MISSING}: {error}") from error
        except WrongResult as error:
            raise Unfit(f"wrong: {error}") from error
        except Exception as error:  # whatever a library raises is a result, not the suite's end
            reason = str(error).strip().partition("\n")[0]
            raise Unfit(f"failed: {type(error).__name__}: {reason}") from error

    def sample(self, repeats: int) -> Turn:
        with self.contender.around(), no_garbage_collection():
            if self.spec.device == "cuda":
                return [cuda.sample(self.call, repeats)]
            if self.spec.case.streams:
                return latencies(self.call, repeats, self.clock)
            return [sample(self.call, repeats, self.clock)]

    def waited(self) -> object:
        """One call, until the GPU is done with it: for who times with a clock."""
        results = self.call()
        torch.cuda.synchronize()
        return results

    def error(self) -> float:
        return self.off

    def peak(self) -> float | None:
        with self.contender.around():
            return memory.peak(self.call, self.spec.device)

    def kernels(self) -> str:
        if self.spec.device != "cuda":
            return ""
        with self.contender.around():
            return cuda.kernels(self.call)

    def host(self) -> float:
        with self.contender.around(), no_garbage_collection():
            return cuda.host(self.call, self.clock)

    def close(self) -> None:
        self.call = lambda: None


class Remote:
    """The same in a process of its own, for contenders listed in JOBS: those of this name. It is
    stopped as a whole while nothing is asked of it, in the middle of whatever its threads do:
    onnxruntime's spin for longer than 20 ms after their work."""

    def __init__(self, name: str, checkout: Path | None = None):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = theirs, name.partition("@")[0], checkout
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        # A process that is stopped does not end when multiprocessing tells it to, at exit.
        atexit.register(self.signal, signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def ask(self, verb: str, *arguments: object):
        self.signal(signal.SIGCONT)
        try:
            self.connection.send((verb, arguments))
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Unfit("failed: its process died") from error
        finally:
            self.signal(signal.SIGSTOP)
        if isinstance(reply, str):
            raise Unfit(reply)
        return reply

    def open(self, spec: Spec) -> float:
        return self.ask("open", spec)

    def sample(self, repeats: int) -> Turn:
        return self.ask("sample", repeats)

    def error(self) -> float:
        return self.ask("error")

    def peak(self) -> float | None:
        return self.ask("peak")

    def kernels(self) -> str:
        return ""  # only what takes more than one thread of the CPU is in a process of its own

    def host(self) -> float:
        return self.ask("host")

    def close(self) -> None:
        self.connection.close()
        self.signal(signal.SIGCONT)
        self.process.join()
        atexit.unregister(self.signal)


def end_with_parent() -> None:
    """Has Linux kill this process when its parent ends in whatever way, even while it is stopped:
    a signal may end the parent before it can do so itself."""
    parent = multiprocessing.parent_process()
    if parent is None or not sys.platform.startswith("linux"):
        return
    on_death = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    if ctypes.CDLL(None, use_errno=True).prctl(on_death, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent.pid:  # it ended before
        os._exit(1)


def serve(connection: Connection, name: str, checkout: Path | None = None) -> None:
    """The other end of Remote: answers until it is cut, with the text of Unfit where one is raised.

    No module of bench imports fastrnn by itself, so that it comes from `checkout` if there is one.
    """
    end_with_parent()
    if checkout is not None:
        sys.path.insert(0, str(checkout))
    session: Session | None = None
    while True:
        try:
            verb, arguments = connection.recv()
        except EOFError:
            return
        try:
            if verb == "open":
                session = Local(find(arguments[0].case.job, name))
            connection.send(getattr(session, verb)(*arguments))
        except Unfit as error:
            connection.send(str(error))
