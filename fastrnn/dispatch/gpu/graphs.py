"""CUDA graphs of chains of launches that repeat: what the step schedule costs the host.

A chain is known by everything that its launches are given, addresses included, so a replay is the
same launches on the same memory. The allocator of torch hands the same addresses to a loop that
repeats itself. The first time a chain runs as it is, which also compiles and loads its kernels; the
second time it is recorded; from then on it is replayed. One that cannot be recorded runs as it is.

Any thread may call `repeat`. A graph that is forgotten while it runs is safe: whoever replays it
holds it until it is launched, and CUDA frees what was launched when it is done.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

LIMIT = 64  # chains with a graph
SEEN = 1024  # chains without one that are remembered


class _Recorded:
    """A chain's graph, or None where it cannot be recorded, and when it was last asked for."""

    def __init__(self, replay: Callable[[], None] | None, used: int) -> None:
        self.replay, self.used = replay, used


_graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()  # the last used at the end
_seen: OrderedDict[Hashable, int] = OrderedDict()  # when each came last
_clock = itertools.count()
_lock = threading.Lock()  # of the three
_recording = threading.Lock()  # held while a chain is recorded, and of `_recorders`


def _own_stream() -> torch.cuda.Stream:
    """A stream of the current device that torch will not give to anyone else."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # ROCm
        return torch.cuda.Stream()
    non_blocking, handle = 1, ctypes.c_void_p()
    if error := driver.cuStreamCreate(ctypes.byref(handle), non_blocking):
        raise RuntimeError(f"cuStreamCreate failed with error {error}")
    return torch.cuda.ExternalStream(handle.value)


class _Recorder:
    """Records the chains of one stream, on a stream and in memory that are for these alone.

    Products of cuBLAS write to a workspace, which torch keeps for each stream and gives up when a
    graph recorded there is destroyed. So the stream is none of torch's pool. The workspace comes
    from the pool of memory of these graphs, to which it returns: none of them is without it, nobody
    else gets it, and graphs that share it run one after the other.
    """

    def __init__(self) -> None:
        self._stream, self._pool = _own_stream(), torch.cuda.graph_pool_handle()
        self._first: torch.cuda.CUDAGraph | None = None  # while it is there, the pool is

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        # torch.cuda.graph would empty the allocator's cache, after which no address comes back.
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        self._first = self._first or graph
        return graph.replay


_recorders: dict[tuple[int, int], _Recorder] = {}


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Records what `run` launches on the current stream; returns what launches it again, there.

    `run` must not allocate and must have run before. One thread at a time.
    """
    stream = torch.cuda.current_stream()
    key = (stream.device_index, stream.cuda_stream)
    if key not in _recorders:
        _recorders[key] = _Recorder()
    return _recorders[key].record(run)


def repeat(
    chain: Hashable,
    run: Callable[[], None],
    record: Callable[[Callable[[], None]], Callable[[], None]] = record,
) -> None:
    """Does what `run` does, by replaying a graph where `chain`, on this stream, has come before."""
    replay, worth = _look_up(chain)
    if worth:
        with _recording:
            with _lock:
                found = _graphs.get(chain)
            try:
                replay = found.replay if found else record(run)
            except RuntimeError:  # nothing has run yet: it does now, or says itself what is wrong
                replay = None
            if not found:
                _remember(chain, replay)
    (replay or run)()


def _look_up(chain: Hashable) -> tuple[Callable[[], None] | None, bool]:
    """(a chain's graph if it has one, whether it is to get one)

    Where all places are taken, it gets that of a graph which was not used since the chain came
    last. So chains that take turns do not drive each other out, however many they are.
    """
    with _lock:
        now = next(_clock)
        found = _graphs.get(chain)
        if found is not None:
            found.used = now
            _graphs.move_to_end(chain)
            return found.replay, False
        before = _seen.pop(chain, None)
        _seen[chain] = now
        if len(_seen) > SEEN:
            _seen.popitem(last=False)
        if before is None:
            return None, False
        return None, len(_graphs) < LIMIT or next(iter(_graphs.values())).used < before


def _remember(chain: Hashable, replay: Callable[[], None] | None) -> None:
    forgotten = []  # destroyed when the lock is free
    with _lock:
        _seen.pop(chain, None)
        _graphs[chain] = _Recorded(replay, next(_clock))
        while len(_graphs) > LIMIT:
            forgotten.append(_graphs.popitem(last=False))
