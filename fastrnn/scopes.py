"""A choice that holds for the whole process: while a `with` lasts, or until it is taken back."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class Choice:
    """A value of the process: that of the last entry that is still active, else `default`.

    Entries may end in any order and in any thread, so scopes of several threads that overlap leave
    nothing behind. `apply` is called with each new value, by one thread at a time.
    """

    def __init__(self, default, apply: Callable[[object], None]) -> None:
        self._default, self._apply = default, apply
        self._entries: dict[Hashable, object] = {}
        self._lock = threading.RLock()

    @property
    def value(self) -> Any:
        """What counts now."""
        with self._lock:
            return next(reversed(self._entries.values()), self._default)

    def begin(self, key: Hashable, value: object) -> None:
        """Makes an entry the last one; an earlier one under the same key ends."""
        with self._lock:
            before = self.value
            self._entries.pop(key, None)
            self._entries[key] = value
            try:
                self._change(before)
            except BaseException:
                del self._entries[key]
                raise

    def end(self, key: Hashable) -> None:
        """Takes an entry away, wherever it stands; without one nothing happens."""
        with self._lock:
            before = self.value
            self._entries.pop(key, None)
            self._change(before)

    def _change(self, before) -> None:
        if self.value != before:
            self._apply(self.value)


class Scope(contextlib.ContextDecorator):
    """Context manager and decorator: an entry of `choice` for the time of a `with` or of a call.

    If it is dropped without either, it had no effect, and it warns with the text `unused`.
    """

    _used = True  # until it is constructed: one that failed there does not warn

    def __init__(self, choice: Choice, value, unused: str) -> None:
        self._choice, self._value, self._unused = choice, value, unused
        self._keys: list[object] = []
        self._used = False

    def __call__(self, function: Function) -> Function:
        self._used = True
        return super().__call__(function)

    def __enter__(self) -> None:
        self._used = True
        key = object()
        self._keys.append(key)
        self._choice.begin(key, self._value)

    def __exit__(self, *_: object) -> None:
        self._choice.end(self._keys.pop())

    def __del__(self) -> None:
        if not self._used and not sys.is_finalizing():
            warnings.warn(self._unused, stacklevel=2)
