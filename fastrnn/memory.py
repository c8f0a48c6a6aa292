"""Memory that calls on a CPU have worked in, and that waits for the next one."""

from __future__ import annotations

import importlib


def release_memory() -> int:
    """Gives the system the memory that the kernels for CPUs keep for their next call.

    They keep at most 64 MiB for the whole process, whatever the number of threads. A call that
    comes later asks the system again. May be called at any time, also while others compute.
    The memory of tensors is torch's and plays no part here.

    Returns:
        The number of bytes; 0 where no kernels are compiled.
    """
    try:
        kernels = importlib.import_module("fastrnn._C")
    except ImportError:
        return 0
    return kernels.release_memory()
