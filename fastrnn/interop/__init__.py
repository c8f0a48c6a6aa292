"""What lets code that knows `torch.nn` alone take our modules: class checks, tracers, counters."""

from __future__ import annotations

from .classes import PassesFor
from .opacus import PerSample
from .quantization import Quantizable
from .tracing import Recorded

__all__ = ["AsTorch"]


class AsTorch(PassesFor, PerSample, Quantizable, Recorded):
    """A module that other code may take for that of `torch.nn`."""
