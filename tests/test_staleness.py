"""No call remembers weights: whatever way they change, the next call sees it.

Version counters do not count writes through `.data`, which target networks live on, so nothing may
rely on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import assert_matches
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch_pairs import example, layers, pair


def through_data(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data.mul_(0.5)


def in_place(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.25)


def load(module: nn.Module) -> None:
    module.load_state_dict({name: value * 0.5 for name, value in module.state_dict().items()})


def there_and_back(module: nn.Module) -> None:
    through_data(module.to(torch.float64))
    module.to(torch.float32)


def optimize(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for k, weight in enumerate(module.parameters()):
        weight.grad = torch.full_like(weight, 0.5 - k)
    optimizer.step()


def new_data(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data = weight.data * 0.5


WRITES = [through_data, in_place, load, there_and_back, optimize, new_data]
STEPS = (1, 40)  # weights read as they lie, and packed


def check(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    for T in STEPS:
        x = example(name, T=T)
        with torch.inference_mode():
            assert_matches(ours(x)[0], theirs(x)[0], f"inference, T = {T}")
        assert_matches(ours(x)[0], theirs(x)[0], f"training, T = {T}")


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@layers
def test_writes(name, write: Callable[[nn.Module], None]):
    ours, theirs = pair(name, 4, 3)
    before = ours(example(name))[0]
    check(name, ours, theirs)
    write(ours)
    write(theirs)
    check(name, ours, theirs)
    assert not torch.allclose(ours(example(name))[0], before)


@layers
def test_functional_call_and_back(name):
    ours, theirs = pair(name, 4, 3)
    other = {key: value * 0.5 for key, value in ours.state_dict().items()}
    for _ in range(2):
        for T in STEPS:
            x = example(name, T=T)
            for module in (ours, theirs):
                module(x)
            assert_matches(
                functional_call(ours, other, (x,))[0], functional_call(theirs, other, (x,))[0]
            )
        check(name, ours, theirs)


@layers
def test_parametrized_weight_that_is_written(name):
    ours, theirs = pair(name, 4, 3)
    for module in (ours, theirs):
        parametrizations.weight_norm(module, "weight_hh_l0")
    check(name, ours, theirs)
    for module in (ours, theirs):
        for weight in module.parametrizations.weight_hh_l0.parameters():
            weight.data.mul_(0.5)
    check(name, ours, theirs)


@layers
def test_shared_weight_written_through_the_other_module(name):
    ours, theirs = pair(name, 4, 3)
    ours_too, theirs_too = copy.deepcopy(ours), copy.deepcopy(theirs)
    ours_too.weight_hh_l0, theirs_too.weight_hh_l0 = ours.weight_hh_l0, theirs.weight_hh_l0
    for shared in (ours, theirs):
        shared.weight_hh_l0.data.mul_(0.5)
    check(name, ours_too, theirs_too)
    check(name, ours, theirs)
