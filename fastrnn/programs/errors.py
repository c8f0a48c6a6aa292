"""What is wrong with a step, said with the line of it that is meant."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import torch

_OURS = str(Path(__file__).parent)
_TORCHS = str(Path(torch.__file__).parent)


class StepError(RuntimeError):
    """A step that cannot become a program. The message names the line and the remedy.

    Example:
        >>> loud = fastrnn.Cell(lambda g, s, p: torch.tanh(g.n + torch.randn(())), gates="n")
        >>> fastrnn.Recurrent(loud, 10, 20)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fastrnn.programs.errors.StepError: ...
    """


def step_error(step: Callable, message: str, until: CodeType | None = None) -> StepError:
    """The error with the place in the user's code that runs now, looked for in the frames up to
    that of `until`; without one, the place where the step is defined."""
    frame = sys._getframe(1) if until else None
    while frame and frame.f_code is not until:
        file = frame.f_code.co_filename
        if not file.startswith((_OURS, _TORCHS)):
            line = linecache.getline(file, frame.f_lineno).strip()
            code = f"\n    {line}" if line else ""
            return StepError(f"{file}:{frame.f_lineno}: {message}{code}")
        frame = frame.f_back
    code = getattr(inspect.unwrap(step), "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
    name = getattr(step, "__qualname__", repr(step))
    return StepError(f"{place}in the step {name}: {message}")
