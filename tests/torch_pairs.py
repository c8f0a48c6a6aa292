"""Pairs of one of our modules and torch.nn's, and what it takes to compare the two."""

from __future__ import annotations

import io

import pytest
import torch
from conftest import assert_matches
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastrnn

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
layers = pytest.mark.parametrize("name", LAYERS)
cells = pytest.mark.parametrize("name", CELLS)
everything = pytest.mark.parametrize("name", LAYERS + CELLS)


def pair(name: str, *args, **kwargs) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and torch's module, made from the same seed."""
    modules = []
    for library in (fastrnn, torch.nn):
        torch.manual_seed(0)
        modules.append(getattr(library, name)(*args, **kwargs))
    return modules[0], modules[1]


def example(name: str, T: int = 5, N: int = 3, I: int = 4, dtype=torch.float32) -> Tensor:
    return torch.randn(N, I, dtype=dtype) if name in CELLS else torch.randn(T, N, I, dtype=dtype)


def state(name: str, *shape: int, c_width: int | None = None, dtype=torch.float32):
    """A random hx of `name`: for LSTM a pair, whose c has its own width if projected."""
    h = torch.randn(shape, dtype=dtype)
    c_shape = (*shape[:-1], c_width or shape[-1])
    return (h, torch.randn(c_shape, dtype=dtype)) if name.startswith("LSTM") else h


def assert_same_results(ours, theirs) -> list[Tensor]:
    """Equal nests of tensors, in the same containers. Returns our tensors."""
    for a, e in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert (a is None) == (e is None)
        if e is not None and e.is_floating_point():
            assert_matches(a, e)
        elif e is not None:
            assert torch.equal(a, e)
    assert type(ours) is type(theirs)
    return [t for t in tree_leaves(ours) if t is not None and t.is_floating_point()]


def outcome(call, library):
    """What `call(library)` raised, as (type, message), or its result."""
    try:
        return call(library)
    except Exception as error:
        return type(error), str(error)


def assert_same_error(call) -> None:
    """Without gradients as well, where a call takes another way (fastrnn/direct.py)."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            ours, theirs = outcome(call, fastrnn), outcome(call, torch.nn)
        assert isinstance(theirs, tuple) and isinstance(theirs[0], type), "torch.nn raised nothing"
        assert ours == theirs


def gradients(call, parameters) -> list[Tensor]:
    """Those of the squares of all that `call` gives."""
    leaves = [each for each in tree_leaves(call()) if each.requires_grad]
    return list(torch.autograd.grad(sum(each.square().sum() for each in leaves), parameters))


def saved_and_loaded(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """What a file of `torch.jit.save` holds."""
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


def exact(module: torch.nn.Module, name: str, *sizes, **options) -> torch.nn.Module:
    """torch.nn's own, in float64."""
    theirs = getattr(torch.nn, name)(*sizes, **options).double()
    theirs.load_state_dict(module.state_dict())
    return theirs


def compare(ours, theirs, x, hx) -> None:
    """Results and the gradients of all that goes in, with gradients and without."""
    found, wanted = [], []
    for module, results, cast in ((ours, found, x.dtype), (theirs, wanted, torch.float64)):
        given = [x, *hx] if isinstance(hx, tuple) else [x, hx]
        given = [each.detach().to(cast).requires_grad_() for each in given]
        states = tuple(given[1:]) if isinstance(hx, tuple) else given[1]
        output, last = module(given[0], states)
        last = last if isinstance(last, tuple) else (last,)
        loss = sum(
            (each.double() * (1 + k)).square().sum() for k, each in enumerate((output, *last))
        )
        results += [output, *last, *torch.autograd.grad(loss, [*given, *module.parameters()])]
        with torch.no_grad():
            again, _ = module(given[0], states)
        assert torch.equal(again, output)
    for a, e in zip(found, wanted, strict=True):
        assert_matches(a, e)
