"""How much memory a call takes at its height, above what the process holds before it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(call: Callable[[], object], device: str) -> float | None:
    """Bytes. On a CPU what the operating system counts, which is None where it is not Linux; on a
    GPU what torch's allocator counts."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(
            0
        )  # or what earlier calls gave back would hide what this takes
        CLEAR.write_text("5")  # Linux, proc_pid_clear_refs(5): resets VmHWM, the peak
    except (OSError, AttributeError):
        return None
    before = resident("VmRSS")
    results = call()
    highest = resident("VmHWM")
    del results
    return max(0.0, highest - before)


def resident(field: str) -> float:
    return 1024 * float(re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.M)[1])
