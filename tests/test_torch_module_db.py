"""PyTorch's own descriptions of its modules, which its test_modules.py tests, for our classes.

A description says how a module is built and called, and what must raise.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
import sys
import unittest
from types import ModuleType

import pytest
import torch
from conftest import assert_matches
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map_only
from torch_pairs import assert_same_results, everything

import fastrnn


@pytest.fixture(scope="module")
def described():
    """The descriptions by the names of the modules.

    What they come with derives its test cases from another package, and changes the whole process.
    """
    package = ModuleType("expecttest")
    package.TestCase = unittest.TestCase
    environment, scripted = dict(os.environ), (torch._C.ScriptFunction, torch._C.ScriptMethod)
    calls = [each.__call__ for each in scripted]
    with pytest.MonkeyPatch.context() as patch:
        if "expecttest" not in sys.modules:
            patch.setitem(sys.modules, "expecttest", package)
        from torch.testing._internal import common_modules
    os.environ.clear()
    os.environ.update(environment)
    flags = torch.backends.flags_frozen.__globals__  # of a module that hides behind an object
    flags["__allow_nonbracketed_mutation_flag"] = True
    assert not torch.backends.flags_frozen()
    for each, call in zip(scripted, calls, strict=True):
        each.__call__ = call
    return {info.module_cls.__name__: info for info in common_modules.module_db}


def of_both(described, name: str, dtype=torch.float64, training: bool = True):
    """Of every description: (ours, torch's, arguments, description)."""
    info = described[name]
    for each in info.module_inputs_func(
        info, "cpu", dtype, requires_grad=True, training=training, with_packed_sequence=True
    ):
        given, modules = each.constructor_input, []
        for library in (fastrnn, nn):
            torch.manual_seed(0)
            module = getattr(library, name)(*given.args, **given.kwargs, dtype=dtype)
            modules.append(module.train(training))
        assert not each.forward_input.kwargs
        yield *modules, each.forward_input.args, each


def floats(tree) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]


def gradients(module: nn.Module, results, arguments) -> list[Tensor]:
    loss = sum((k + 1) * each.sin().sum() for k, each in enumerate(floats(results)))
    return list(torch.autograd.grad(loss, [*floats(arguments), *module.parameters()]))


def assert_like_torchs(ours: nn.Module, theirs: nn.Module, arguments) -> None:
    """Results and gradients."""
    results, wanted = ours(*arguments), theirs(*arguments)
    assert_same_results(results, wanted)
    actual, expected = gradients(ours, results, arguments), gradients(theirs, wanted, arguments)
    for a, e in zip(actual, expected, strict=True):
        assert_matches(a, e)


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, two apart in memory."""
    wide = torch.stack([tensor.detach(), torch.full_like(tensor, float("nan"))], -1)
    return wide[..., 0].requires_grad_(tensor.requires_grad)


@everything
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_and_gradients(described, name, dtype, training):
    """As torch.nn's; without a batch as with one of a single row; the same text."""
    for ours, theirs, arguments, each in of_both(described, name, dtype, training):
        assert_like_torchs(ours, theirs, arguments)
        assert repr(ours) == repr(theirs)
        with torch.no_grad():
            assert_same_results(ours(*arguments), theirs(*arguments))
        if not isinstance(arguments[0], PackedSequence):
            with torch.no_grad():
                assert_same_results(ours(*arguments), each.reference_fn(ours, *arguments))


@everything
def test_what_must_raise(described, name):
    info = described[name]
    for each in info.module_error_inputs_func(
        info, "cpu", torch.float32, requires_grad=False, training=True
    ):
        built, called = each.module_error_input.constructor_input, None
        with pytest.raises(each.error_type, match=each.error_regex):
            module = getattr(fastrnn, name)(*built.args, **built.kwargs)
            called = each.module_error_input.forward_input
            module(*called.args, **called.kwargs)
        assert (called is None) == (each.error_on.name == "CONSTRUCTION_ERROR")


@everything
def test_derivatives_by_differences(described, name):
    """First and second ones, of the parameters too, and of many cotangents at once.

    Of every third description: an odd step meets each value of each option.
    """
    for module, _, arguments, _ in itertools.islice(of_both(described, name), 0, None, 3):
        packed = isinstance(arguments[0], PackedSequence)
        inputs = [*floats(arguments), *module.parameters()]

        def call(*given, module=module, arguments=arguments):
            given = iter(given)
            found = module(*tree_map_only(Tensor, lambda t: next(given), arguments))
            return tuple(floats(found))

        if packed:  # whose batch sizes are a tensor too
            call = lambda *_, m=module, a=arguments: tuple(floats(m(*a)))  # noqa: E731
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(call, inputs, fast_mode=True, check_batched_grad=False)
        results = call(*inputs)
        seeds = [torch.randn(3, *each.shape, dtype=each.dtype) for each in results]
        batch = torch.autograd.grad(results, inputs, seeds, True, is_grads_batched=True)
        for k in range(3):
            one = torch.autograd.grad(results, inputs, [s[k] for s in seeds], True)
            for a, e in zip(batch, one, strict=True):
                assert_matches(a[k], e)


@everything
def test_numbers_apart_in_memory(described, name):
    """Input, states, parameters, and what comes back to the results, each and all together."""
    for ours, theirs, arguments, _ in of_both(described, name):
        for inputs_too, parameters_too in ((True, False), (False, True), (True, True)):
            given = tree_map_only(Tensor, copy.deepcopy, arguments)
            if inputs_too and not isinstance(given[0], PackedSequence):
                given = tree_map_only(Tensor, spread, given)
            modules = copy.deepcopy(ours), theirs
            if parameters_too:
                for parameter in modules[0].parameters():
                    parameter.data = spread(parameter).detach()
            runs = []
            for module in modules:
                results = floats(module(*given))
                seeds = [spread(torch.cos(each)).detach() for each in results]
                wanted = [*floats(given), *module.parameters()]
                runs.append([*results, *torch.autograd.grad(results, wanted, seeds)])
            for a, e in zip(*runs, strict=True):
                assert_matches(a, e)


@everything
def test_what_a_module_is_put_through(described, name):
    """Pickled, copied, on meta and back, of other dtypes, of another memory format, shared."""
    for ours, theirs, arguments, each in of_both(described, name):
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        given = each.constructor_input
        filled = getattr(fastrnn, name)(*given.args, **given.kwargs, device="meta")
        assert all(p.is_meta for p in filled.parameters())
        filled = filled.to_empty(device="cpu").double()
        filled.load_state_dict(theirs.state_dict())
        for module in (
            loaded,
            copy.deepcopy(ours),
            filled,
            ours.to(memory_format=torch.channels_last),
            copy.deepcopy(ours).share_memory(),
        ):
            assert_like_torchs(module, theirs, arguments)
        wide = tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, arguments)
        with torch.no_grad():
            assert_same_results(ours.float()(*wide), theirs.float()(*wide))
