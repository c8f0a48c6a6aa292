"""What waits for another library: it is not imported for our sake, but told about us when it is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_waiting: dict[str, Callable[[ModuleType], None]] = {}


class _Finder(MetaPathFinder):
    """Finds nothing by itself. Has what others find call back when it has been executed."""

    def find_spec(self, name: str, path, target=None) -> ModuleSpec | None:
        told = _waiting.pop(name, None)  # so that the search below does not come back here
        if told is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            _waiting[name] = told
            return None
        loader, execute = spec.loader, spec.loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            loader.exec_module = execute
            execute(module)
            told(module)

        loader.exec_module = execute_and_tell
        return spec


_finder = _Finder()


def when_imported(name: str, told: Callable[[ModuleType], None]) -> None:
    """Calls `told` with the module of that name: now, or as soon as somebody imports it."""
    if name in sys.modules:
        told(sys.modules[name])
        return
    _waiting[name] = told
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
