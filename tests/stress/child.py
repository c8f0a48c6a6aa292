"""Cases in a process of their own, which may crash or hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from conftest import poison

from .case import Case

Check = Callable[[Case], int]


def _serve(connection: Connection, check: Check) -> None:
    """Answers each case with (calls made, what was wrong with it)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    with poison():
        connection.send("ready")
        while (case := connection.recv()) is not None:
            try:
                answer = check(case), ""
            except Exception as error:
                where = "" if isinstance(error, AssertionError) else traceback.format_exc()
                answer = 0, f"{type(error).__name__}: {error}\n{where}"
            connection.send(answer)


class Child:
    """Runs cases one after the other. After a crash or a hang the next one is in a new process.

    check: what is done with a case; a function of a module.
    """

    def __init__(self, check: Check) -> None:
        self._check, self._process = check, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._check), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def run(self, case: Case, limit: float) -> tuple[int, str]:
        """(calls made, what was wrong).

        A case hangs when it has used all cores, or none of them, for `limit` seconds. On a busy
        machine it may get so little time that the clock on the wall says nothing.
        """
        if self._process is None:
            self._start()
        begun = used = self._cpu_seconds()
        moved = time.monotonic()
        try:
            self._connection.send(case)
            while not self._connection.poll(min(limit, 1)):
                now, at = self._cpu_seconds(), time.monotonic()
                if now - used > 0.02 * limit:
                    used, moved = now, at
                if at - moved > limit or now - begun > limit * os.cpu_count():
                    self._end()
                    return 0, f"hang: more than {limit:g} s"
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return 0, f"crash: {self._end()}"

    def _cpu_seconds(self) -> float:
        """What the process has used so far, on all cores."""
        clock = ~self._process.pid << 3 | 2  # as clock_getcpuclockid() has it
        try:
            return time.clock_gettime(clock)
        except OSError:  # it has ended, which the connection says
            return 0.0

    def _end(self) -> str:
        """How it ended; what goes on a moment after the connection has broken is killed."""
        self._process.join(5)
        self._process.kill()
        self._process.join()
        code, self._process = self._process.exitcode, None
        self._connection.close()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def close(self) -> None:
        if self._process is not None:
            self._connection.send(None)
            self._end()
