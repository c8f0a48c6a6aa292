"""Where a contender runs: in this process, or alone in one of its own.

On one thread all contenders share this process and its memory. On several, each gets a process:
the thread pools of different libraries keep spinning for a while after their work is done, and
would take the cores from whoever comes next. The processes then take turns, one at work at a time.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

import torch

from bench.cases import Spec
from bench.contenders import CONTENDERS, Contender, WrongResult, verified
from bench.timing import Clock, sample, warm_up

# A pool that has finished spins for a few milliseconds before it sleeps.
SETTLE_SECONDS = 0.02


class Unfit(Exception):
    """A contender that cannot be timed; the text says why, for the table."""


class Session(Protocol):
    def open(self, spec: Spec) -> float:
        """Verify and warm up; seconds of a call. Raises Unfit."""

    def sample(self, repeats: int) -> float:
        """Seconds a call, averaged over `repeats` calls of what was opened last."""

    def close(self) -> None: ...


class Local:
    """In this process."""

    def __init__(self, contender: Contender, clock: Clock = time.perf_counter):
        self.contender, self.clock = contender, clock
        self.call: Callable[[], object] = lambda: None

    def open(self, spec: Spec) -> float:
        torch.set_num_threads(spec.threads)
        try:
            self.call, seconds = verified(self.contender, spec, self.clock)
        except ImportError as error:
            raise Unfit(f"not installed: {error}") from error
        except WrongResult as error:
            raise Unfit(f"wrong: {error}") from error
        except Exception as error:  # whatever a library raises is a result, not the suite's end
            reason = str(error).strip().partition("\n")[0]
            raise Unfit(f"failed: {type(error).__name__}: {reason}") from error
        return warm_up(self.call, seconds, self.clock)

    def sample(self, repeats: int) -> float:
        return sample(self.call, repeats, self.clock)

    def close(self) -> None:
        self.call = lambda: None


class Remote:
    """The same in a process of its own, for a contender listed in CONTENDERS."""

    def __init__(self, contender: Contender):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, contender.name), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, verb: str, argument: object) -> float:
        try:
            self.connection.send((verb, argument))
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Unfit("failed: its process died") from error
        if isinstance(reply, str):
            raise Unfit(reply)
        return reply

    def open(self, spec: Spec) -> float:
        return self.ask("open", spec)

    def sample(self, repeats: int) -> float:
        time.sleep(SETTLE_SECONDS)
        return self.ask("sample", repeats)

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def serve(connection: Connection, name: str) -> None:
    """The other end of Remote: answers with seconds, or with the text of Unfit, until it is cut."""
    (contender,) = (contender for contender in CONTENDERS if contender.name == name)
    session = Local(contender)
    while True:
        try:
            verb, argument = connection.recv()
        except EOFError:
            return
        try:
            connection.send(getattr(session, verb)(argument))
        except Unfit as error:
            connection.send(str(error))
