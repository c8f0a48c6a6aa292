"""Memory that calls on a CPU have worked in, and that waits for the next one."""

from __future__ import annotations

import importlib


def release_memory() -> int:
    """Gives back to the system the working memory that the CPU kernels keep between calls.

    The kernels keep at most 64 MiB for the whole process, whatever the number of threads. The next
    call asks the system again. This function may be called at any time, also while other threads
    compute. It leaves tensors alone: their memory is torch's.

    Returns:
        The number of bytes given back; 0 where no kernels are compiled.

    Example:
        >>> freed = fastrnn.release_memory()
        >>> fastrnn.release_memory()
        0
    """
    try:
        kernels = importlib.import_module("fastrnn._C")
    except ImportError:
        return 0
    return kernels.release_memory()
