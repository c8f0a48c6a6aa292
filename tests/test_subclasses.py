"""A user's subclass has names of its own: methods, and attributes of an instance."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_pairs import CELLS, LAYERS, assert_same_results, everything, example

import fastrnn

NAMES = ["_forward", "_step", "_run", "_weights", "_parts", "_cell", "_register", "step"]


def derived(base: type, name: str) -> type:
    """A subclass whose forward calls a method of the name, which calls the forward of `base`."""

    def forward(self, x, hx=None):
        return getattr(self, name)(x, hx)

    def helper(self, x, hx):
        return super(made, self).forward(x, hx)

    made = type("Derived", (base,), {"forward": forward, name: helper})
    return made


def results(module: nn.Module, name: str) -> list:
    torch.manual_seed(1)
    x, found = example(name), []
    for training in (True, False):
        with torch.set_grad_enabled(training):
            found.append(module(x))
    return found


def seeded(cls: type) -> nn.Module:
    torch.manual_seed(0)
    return cls(4, 3)


@pytest.mark.parametrize("helper", NAMES)
@everything
def test_a_method(name, helper):
    """`convert` sees no `super()` in this `forward`, and leaves the module alone."""
    ours, theirs = (seeded(derived(getattr(lib, name), helper)) for lib in (fastrnn, nn))
    assert_same_results(results(ours, name), results(theirs, name))


@pytest.mark.parametrize("attribute", NAMES)
@everything
def test_an_attribute(name, attribute):
    ours, theirs = (seeded(type("Derived", (getattr(lib, name),), {})) for lib in (fastrnn, nn))
    converted = fastrnn.convert(seeded(type("Derived", (getattr(nn, name),), {})))
    for module in (ours, theirs, converted):
        setattr(module, attribute, 0)
    wanted = results(theirs, name)
    assert_same_results(results(ours, name), wanted)
    assert_same_results(results(converted, name), wanted)


@pytest.mark.parametrize("helper", NAMES)
@everything
def test_convert_takes_a_class_with_such_a_method(name, helper, recwarn):
    cls = type("Derived", (getattr(nn, name),), {helper: lambda self: "of the user"})
    module = fastrnn.convert(seeded(cls))
    assert isinstance(module, getattr(fastrnn, name)) and not recwarn.list
    assert getattr(module, helper)() == "of the user"
    assert_same_results(results(module, name), results(seeded(getattr(nn, name)), name))


def test_names_of_ours_end_in_an_underscore():
    """But for those of `torch.nn`, which our classes override."""
    for name in LAYERS + CELLS:
        ours, of_torch = getattr(fastrnn, name), set(dir(getattr(nn, name)(1, 1)))
        inner = [base for base in ours.__mro__ if base.__module__.startswith("fastrnn.")]
        private = {key for base in inner for key in vars(base) if key.startswith("_")} - of_torch
        assert private and [key for key in private if not key.endswith("_")] == []
