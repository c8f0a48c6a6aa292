"""Structured pruning by `torch.ao.pruning`, which finds what to prune by the types of modules."""

from __future__ import annotations

import functools
from types import ModuleType

from torch import nn


def register(sparsifier: ModuleType, lstm: type) -> None:
    """Enters our LSTM where that of `torch.nn` stands."""

    def ours(pattern: tuple) -> tuple:
        return tuple(lstm if each is nn.LSTM else each for each in pattern)

    def add_patterns(patterns: dict) -> dict:
        return patterns | {ours(pattern): prune for pattern, prune in patterns.items()}

    def add_types(types: set) -> set:
        return types.union(ours(tuple(types)))

    _extend(sparsifier, "_get_default_structured_pruning_patterns", add_patterns)
    _extend(sparsifier, "_get_supported_structured_pruning_modules", add_types)


def _extend(module: ModuleType, name: str, add) -> None:
    """Has a function of a module give what `add` makes of its result."""
    function = getattr(module, name, None)
    if function is not None:
        setattr(module, name, functools.wraps(function)(lambda: add(function())))
