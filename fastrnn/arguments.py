"""Arguments of a wrong kind: errors that name the argument and say what is expected.

These checks are for where a call is prepared, or where it has failed: calls that succeed on the
short way pay nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor


def kind_of(given: Any) -> str:
    """What a message calls it: its type, of a tuple or a list also what is in it."""
    kind = type(given).__name__
    if isinstance(given, (tuple, list)) and len(given) < 9:
        return f"{kind} of ({', '.join(type(each).__name__ for each in given)})"
    return kind


def check_kind(name: str, given: Any, kind: type | tuple[type, ...], what: str) -> None:
    """TypeError if an argument is not of its kind, `what` it must be."""
    if not isinstance(given, kind):
        raise TypeError(f"{name} must be {what}, got {type(given).__name__}")


def integer_of(name: str, given: Any) -> int:
    """An argument that is an integer; TypeError if it is none."""
    kind = type(given).__name__
    if isinstance(given, bool):
        raise TypeError(f"{name} must be an integer, got {kind}")
    try:
        return operator.index(given)
    except (TypeError, RuntimeError) as error:  # of an object, of a tensor
        raise TypeError(f"{name} must be an integer, got {kind}") from error


def count_of(name: str, given: Any, least: int = 1) -> int:
    """An argument that is a number of things; TypeError or ValueError if it is none."""
    count = integer_of(name, given)
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    return count


def number_of(given: Any) -> float:
    """A real number, or that of a tensor or array of one; NaN of all else."""
    if isinstance(given, (bool, str, bytes)):
        return math.nan
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # of what is no such number
        return math.nan


def check_rate(name: str, given: Any, with_one: bool) -> None:
    """ValueError if it is no number in [0, 1), or [0, 1] `with_one`."""
    rate = number_of(given)
    if not (0 <= rate < 1 or (with_one and rate == 1)):
        raise ValueError(
            f"{name} must be a number in [0, 1{']' if with_one else ')'}, got {given!r}"
        )


def check_flag(name: str, given: Any) -> None:
    """TypeError if it is neither true nor false, as a tensor or an array of several numbers."""
    try:
        bool(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be True or False, got {type(given).__name__}") from error


def is_among(given: Any, names: Iterable[str]) -> bool:
    """Whether it is one of some strings. An array would be compared number by number."""
    return isinstance(given, str) and given in names


def check_layer(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    dropout: float,
    proj_size: int,
    heads: int,
    **flags: bool,
) -> None:
    """TypeError or ValueError if the arguments of a `Recurrent` cannot be."""
    for name, size in {"hidden_size": hidden_size, "num_layers": num_layers}.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    count_of("input_size", input_size, least=0)
    check_rate("dropout", dropout, with_one=True)
    if not 0 <= integer_of("proj_size", proj_size) < hidden_size:
        raise ValueError(f"proj_size must be in [0, hidden_size), got {proj_size}")
    if integer_of("heads", heads) < 1 or hidden_size % heads or (heads > 1 and proj_size):
        sizes = f"{heads} of {hidden_size} and proj_size={proj_size}"
        raise ValueError(f"heads must divide hidden_size, without a projection; got {sizes}")
    for name, flag in flags.items():
        check_flag(name, flag)


def check_state(given: Any, names: tuple[str, ...]) -> None:
    """TypeError if the `state` of a step is not a tensor for each of its names."""
    parts = given if len(names) > 1 else (given,)
    if (
        not isinstance(parts, (tuple, list))
        or len(parts) != len(names)
        or not all(isinstance(part, Tensor) for part in parts)
    ):
        what = f"a tuple of tensors ({', '.join(names)})" if len(names) > 1 else "a tensor"
        raise TypeError(f"state must be {what}, got {kind_of(given)}")
