"""CUDA graphs of chains of launches that repeat: what the step schedule costs the host.

A chain is known by everything that its launches are given, addresses included, so a replay is the
same launches on the same memory. The allocator of torch hands the same addresses to a loop that
repeats itself. The first time a chain runs as it is, which also compiles and loads its kernels; the
second time it is recorded; from then on it is replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

LIMIT = 64  # chains remembered

_chains: OrderedDict[Hashable, Callable[[], None] | None] = OrderedDict()


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Records what `run` launches on the current device; returns what launches it again.

    `run` must not allocate and must have run before.
    """
    # torch.cuda.graph would empty the allocator's cache, after which no address comes back.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def repeat(
    chain: Hashable,
    run: Callable[[], None],
    record: Callable[[Callable[[], None]], Callable[[], None]] = record,
) -> None:
    """Does what `run` does, by replaying a graph where `chain` has come before."""
    if chain in _chains:
        _chains.move_to_end(chain)
        replay = _chains[chain]
        if replay is None:
            replay = _chains[chain] = record(run)
        replay()
        return
    run()
    _chains[chain] = None
    if len(_chains) > LIMIT:
        _chains.popitem(last=False)
