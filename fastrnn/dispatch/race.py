"""Whether our kernels are known to be faster in a call that PyTorch's own can take, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from ..call import Call
from . import choice, gpu, tuned
from .choice import Question

_noted: Callable[[Question, Call], None] | None = None


@contextlib.contextmanager
def noting(function: Callable[[Question, Call], None]) -> Iterator[None]:
    """Calls `function` with each such call on a GPU, in every thread, while the `with` lasts."""
    global _noted
    before, _noted = _noted, function
    try:
        yield
    finally:
        _noted = before


def won(kernels: ModuleType, call: Call, layers: int) -> bool:
    """Whether ours were measured faster in such a call of so many layers."""
    if call.projected or call.has_features or call.kind.step:
        return False
    input = call.input
    planes = call.h0.size(0) if call.h0.dim() == 3 else 1
    asked = Question(
        kernels.NAME,
        gpu.nvidia(input.device),
        call.cell,
        gpu.precision(input.dtype),
        call.batch_sizes is not None,
        layers,
        call.mean_steps(),
        call.h0.size(-2),
        call.h0.size(-1),
        input.is_cuda and torch.cuda.is_current_stream_capturing(),
        planes // layers,
        input.size(-1),
    )
    if _noted is not None:
        _noted(asked, call)
    return expected(input.device, asked)


def expected(device: torch.device, asked: Question) -> bool:
    """The same of a call on a device: what was measured there counts before what is known."""
    found = tuned.faster(device, asked) if asked.major else None
    return choice.faster(asked) if found is None else found
