"""Tensors in nested arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


def tensors(tree) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for branch in tree:
            yield from tensors(branch)
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))


def map_tensors(function: Callable[[Tensor], Tensor], tree):
    """The same tree with `function` of each tensor in its place."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        branches = [map_tensors(function, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    if isinstance(tree, dict):
        return {key: map_tensors(function, branch) for key, branch in tree.items()}
    return tree
