"""What calls keep of the C library's memory, which tells of leaks that Python does not see."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest

_NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES.split()]


_library = ctypes.CDLL(None)
_mallinfo = getattr(_library, "mallinfo2", None)
if _mallinfo is not None:
    _mallinfo.restype = _Info

needs_glibc = pytest.mark.skipif(_mallinfo is None, reason="needs glibc, to ask what is in use")


def _used() -> int:
    gc.collect()
    info = _mallinfo()
    return info.uordblks + info.hblkhd


def bytes_kept(function: Callable[[], object], calls: int = 100) -> float:
    """Bytes that each call keeps: the least of a few rounds, as others keep something now and
    then."""
    rounds = []
    for _ in range(3):
        for _ in range(10):
            function()
        before = _used()
        for _ in range(calls):
            function()
        rounds.append((_used() - before) / calls)
    return min(rounds)
