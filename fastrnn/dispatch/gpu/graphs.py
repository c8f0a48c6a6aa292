"""CUDA graphs of chains of launches that repeat: what the step schedule costs the host.

A chain is known by everything that its launches are given, addresses included, so a replay is the
same launches on the same memory. The allocator of torch hands the same addresses to a loop that
repeats itself. The first time a chain runs as it is, which also compiles and loads its kernels; the
second time it is recorded; from then on it is replayed. One that cannot be recorded runs as it is.

Any thread may call `repeat`. A graph that is forgotten while it runs is safe: whoever replays it
holds it until it is launched, and CUDA frees what was launched when it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

import torch

LIMIT = 64  # chains with a graph
SEEN = 1024  # chains without one that are remembered
STREAMS = 32  # whose chains are recorded: torch hands out as many before it begins again
# A graph takes memory and time for each launch in it. Bounds of the launches in one graph and in
# all of them: 10,000 steps of two launches fit. No memory was measured.
LONGEST = 1 << 15
HELD = 1 << 17
# What recording a launch takes, in launches; a replay saves those of its chain. No GPU was asked:
# a capture makes each launch once more, and instantiating a graph is taken to be as long or twice.
PRICE = 4
WAGE = 16  # of launches that are made as they are, one counts as saved: without any no graph begins


class _Recorded:
    """A chain's graph, or None where it cannot be recorded, when it was last asked for, and how
    many launches it holds."""

    def __init__(self, replay: Callable[[], None] | None, used: int, launches: int) -> None:
        self.replay, self.used, self.launches = replay, used, launches


_graphs: OrderedDict[Hashable, _Recorded] = OrderedDict()  # the last used at the end
_seen: OrderedDict[Hashable, int] = OrderedDict()  # when each came last
_clock = itertools.count()
_credit = PRICE * HELD  # launches that recordings may still cost; at first they fill all graphs
_lock = threading.Lock()  # of the four
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


def _takes_generators(version: str) -> bool:
    """Whether this torch registers the device's default generator with every graph."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 13)


_TAKES_GENERATORS = _takes_generators(torch.__version__)


class _Numbers:
    """Has the default generator of a device, while it is entered, draw from a state of ours.

    What is registered when a capture begins is this state. Else random numbers of any other thread
    would raise until the capture ends, a replay would raise while another thread captures, and it
    would write to where graphs of the user's read their seeds.
    """

    def __init__(self, device: int) -> None:
        self._default = torch.cuda.default_generators[device]
        self._own = torch.Generator(torch.device("cuda", device))
        self._own.seed()  # who draws in between gets numbers that nobody else has

    def __enter__(self) -> None:
        self._before = self._default.graphsafe_get_state()
        self._default.graphsafe_set_state(self._own)

    def __exit__(self, *_: object) -> None:
        self._default.graphsafe_set_state(self._before)


class _Recorder:
    """Records the chains of one stream, on a stream and in memory that are for these alone.

    Products of cuBLAS write to a workspace, which torch keeps for each stream and gives up when a
    graph recorded there is destroyed. So the stream is none of torch's pool. The workspace comes
    from the pool of memory of these graphs, to which it returns: none of them is without it, nobody
    else gets it, and graphs that share it run one after the other.
    """

    def __init__(self, device: int) -> None:
        self._stream, self._pool = _own_stream(), torch.cuda.graph_pool_handle()
        self._numbers = _Numbers(device) if _TAKES_GENERATORS else contextlib.nullcontext()
        self._first: torch.cuda.CUDAGraph | None = None  # while it is there, the pool is

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        # torch.cuda.graph would empty the allocator's cache, after which no address comes back.
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            with self._numbers:
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

    Each stream keeps its recorder, and the memory of that, for good: graphs which still run may use
    it, and nobody says when a stream is gone. So there are at most STREAMS.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    stream = torch.cuda.current_stream()
    key = (stream.device_index, stream.cuda_stream)
    if key not in _recorders:
        if len(_recorders) >= STREAMS:
            raise RuntimeError(f"chains of {STREAMS} streams are recorded, and of no more")
        _recorders[key] = _Recorder(stream.device_index)
    return _recorders[key].record(run)


def repeat(
    chain: Hashable,
    run: Callable[[], None],
    record: Callable[[Callable[[], None]], Callable[[], None]] = record,
    launches: int = 1,
) -> None:
    """Does what `run` does, by replaying a graph where `chain`, on this stream, has come before.

    launches: how many it makes.
    """
    replay, worth = _look_up(chain, launches)
    if worth:
        with _recording:
            with _lock:
                found = _graphs.get(chain)
            try:
                replay = found.replay if found else record(run)
            except RuntimeError:  # nothing has run yet: it does now, or says itself what is wrong
                replay = None
            if not found:
                _remember(chain, replay, launches if replay else 0)
    (replay or run)()


def _look_up(chain: Hashable, launches: int) -> tuple[Callable[[], None] | None, bool]:
    """(a chain's graph if it has one, whether it is to get one)

    Where there is no place, it gets that of graphs which were not used since the chain came last.
    So chains that take turns do not drive each other out, however many they are.
    """
    with _lock:
        now = next(_clock)
        found = _graphs.get(chain)
        if found is not None:
            found.used = now
            _graphs.move_to_end(chain)
            _earn(launches if found.replay else launches / WAGE)
            return found.replay, False
        _earn(launches / WAGE)
        before = _seen.pop(chain, None)
        _seen[chain] = now
        if len(_seen) > SEEN:
            _seen.popitem(last=False)
        if before is None or launches > LONGEST:
            return None, False
        unused = all(_graphs[each].used < before for each in _in_the_way(launches))
        return None, unused and _afford(launches)


def _earn(launches: float) -> None:
    global _credit
    _credit = min(_credit + launches, PRICE * HELD)


def _afford(launches: int) -> bool:
    """Takes the price of a recording off what replays have saved, if that is enough. So all
    recordings together never take longer than they save, but for a constant and a few per cent."""
    global _credit
    if _credit < PRICE * launches:
        return False
    _credit -= PRICE * launches
    return True


def _in_the_way(launches: int) -> Iterator[Hashable]:
    """The chains, the longest unused first, whose graphs leave no place for one more."""
    count, held = len(_graphs), sum(each.launches for each in _graphs.values())
    for chain, each in _graphs.items():
        if count < LIMIT and held + launches <= HELD:
            return
        yield chain
        count, held = count - 1, held - each.launches


def _remember(chain: Hashable, replay: Callable[[], None] | None, launches: int) -> None:
    forgotten = []  # destroyed when the lock is free
    with _lock:
        _seen.pop(chain, None)
        forgotten += [_graphs.pop(each) for each in list(_in_the_way(launches))]
        _graphs[chain] = _Recorded(replay, next(_clock), launches)
