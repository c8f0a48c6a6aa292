"""Results changed in place: wherever torch.nn trains ours does, with the gradients of torch.nn.

A copy of torch.nn's output is changed, because its float32 LSTM refuses what all others let pass.
"""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_matches
from feature_calls import CELLS, each_backend, layer_arguments, using
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch_pairs import everything, example, layers, pair

from fastrnn import ops
from fastrnn.call import Call

VARIANTS = {
    "plain": {},
    "packed": {},
    "unsorted": {},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 2},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "two layers": {"num_layers": 2},
    "batch_first": {"batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}
CHANGES = {
    "relu": lambda y: y.relu_(),
    "mask": lambda y: y.masked_fill_(y > 0, 0.5),
    "assignment": lambda y: y.__setitem__((..., 1), 0.25),
    "dropout": lambda y: F.dropout(y, inplace=True),
    "detached": lambda y: y.detach().mul_(2),
    "view": lambda y: y[-1].sin_(),
}
PACK = {
    "packed": lambda x: pack_padded_sequence(x, [5, 3, 2]),
    "unsorted": lambda x: pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False),
}
MODES = ["LSTM", "GRU", "RNN", "RNN relu"]


def modules(mode: str, variant: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Ours, torch's and an input."""
    name, *relu = mode.split()
    options = VARIANTS[variant] | ({"nonlinearity": "relu"} if relu else {})
    ours, theirs = pair(name, 4, 3, **options)
    return ours, theirs, example(name, dtype=options.get("dtype", torch.float32))


def changed(module: nn.Module, change, copy: bool = False):
    """input -> all results of a call whose output was then changed in place, or a copy of it."""

    def model(x) -> list[Tensor]:
        y, state = module(x)
        y = y if isinstance(y, Tensor) else y.data
        y = y.clone() if copy else y
        change(y)
        return [y, *tree_leaves(state)]

    return model


def gradients(model, module: nn.Module, variant: str, x: Tensor) -> list[Tensor]:
    """The results, and what they send back to the input and the parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    results = model(PACK.get(variant, nn.Identity())(x))
    loss = sum((k + 1) * result.cos().sum() for k, result in enumerate(results))
    return [*results, *torch.autograd.grad(loss, [x, *module.parameters()])]


def takes(mode: str, variant: str) -> bool:
    return variant != "projected" or mode == "LSTM"


MATRIX = [(mode, variant) for mode in MODES for variant in VARIANTS if takes(mode, variant)]


def assert_trains_as_torchs(mode: str, variant: str, change, through=lambda model: model) -> None:
    """`through` a compiler, or what else takes our model for another."""
    ours, theirs, x = modules(mode, variant)
    actual = gradients(through(changed(ours, change)), ours, variant, x)
    wanted = gradients(changed(theirs, change, copy=True), theirs, variant, x)
    for a, e in zip(actual, wanted, strict=True):
        assert_matches(a, e)


def several(y: Tensor) -> None:
    for name in ("mask", "assignment", "view", "relu"):
        CHANGES[name](y)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("mode", "variant"), MATRIX)
def test_the_output_is_changed(mode, variant, change):
    assert_trains_as_torchs(mode, variant, CHANGES[change])


@pytest.mark.parametrize(("mode", "variant"), MATRIX)
def test_the_output_is_changed_in_compiled_code(mode, variant):
    torch._dynamo.reset()
    compile = partial(torch.compile, backend="aot_eager", fullgraph=True)
    assert_trains_as_torchs(mode, variant, several, compile)


def assert_trains_outside(mode: str, variant: str, backend: str) -> None:
    torch._dynamo.reset()
    ours, theirs, x = modules(mode, variant)
    compiled = torch.compile(ours, backend=backend)
    actual = gradients(changed(compiled, several), ours, variant, x)
    wanted = gradients(changed(theirs, several, copy=True), theirs, variant, x)
    for a, e in zip(actual, wanted, strict=True):
        assert_matches(a, e)


@pytest.mark.parametrize(("mode", "variant"), MATRIX)
def test_what_a_compiled_module_returned_is_changed(mode, variant):
    assert_trains_outside(mode, variant, "aot_eager")


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("variant", ["plain", "two layers", "batch_first"])
def test_what_inductor_returned_is_changed(mode, variant):
    assert_trains_outside(mode, variant, "inductor")


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_states_that_a_compiled_module_returned_are_changed(mode, backend):
    torch._dynamo.reset()
    module, _, x = modules(mode, "two layers")
    found = []
    for call in (module, torch.compile(module, backend=backend)):
        _, _, states = call(x, return_states=True, return_gates=mode != "RNN")
        tensors = [each for each in tree_leaves(states) if each is not None]
        if call is module:
            tensors = [each.clone() for each in tensors]
        for each in tensors:
            with torch.set_grad_enabled(each.requires_grad):
                each.mul_(2)
        loss = sum(each.square().sum() for each in tensors if each.requires_grad)
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for a, e in zip(*found, strict=True):
        assert_matches(a, e)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_other_compilers(mode, backend):
    torch._dynamo.reset()
    assert_trains_as_torchs(mode, "plain", several, partial(torch.compile, backend=backend))


@pytest.mark.parametrize("mode", MODES)
def test_hooks_on_what_is_saved(mode):
    """Autograd then looks at no version, and torch.nn's float32 LSTM gives wrong gradients."""

    def on_cpu(model):
        def call(x):
            with save_on_cpu():
                return model(x)

        return call

    assert_trains_as_torchs(mode, "plain", several, on_cpu)
    assert_trains_as_torchs(
        mode, "plain", several, lambda model: partial(checkpoint, model, use_reentrant=False)
    )


@everything
def test_any_result_is_changed(name):
    """Each result in turn, of cells too; with states, which are views of what is saved."""
    module, _ = pair(name, 4, 3)
    x = example(name).requires_grad_()
    call = partial(module, x, **({} if name.endswith("Cell") else {"return_gates": True}))
    for k, given in enumerate(tree_leaves(call())):
        if name == "RNNCell" or given is None or not given.requires_grad:
            continue  # torch.nn's own step, which refuses it; no c; gates
        runs = []
        for copy in (True, False):
            result = tree_leaves(call())[k]
            result = result.clone() if copy else result
            result.mul_(1.5)
            runs.append(torch.autograd.grad(result.cos().sum(), [x, *module.parameters()]))
        for a, e in zip(*runs, strict=True):
            assert torch.equal(a, e)


@each_backend
@pytest.mark.parametrize("name", CELLS)
def test_the_second_forward_has_every_feature(name, backend):
    """Through the Function of eager mode and the op that compiled and exported graphs call."""
    arguments = layer_arguments(name)
    inputs = Call(*arguments).tensors()
    with using(backend):
        for run in (
            lambda: ops.layer(Call(*arguments), traced=True)[:5],
            lambda: torch.ops.fastrnn.layer_forward(*arguments)[:5],
        ):
            runs = []
            for change in (False, True):
                torch.manual_seed(1)
                y, h_n, c_n, gates, cells = run()
                given = [each for each in (y, h_n, c_n, cells) if each is not None]
                results = [each for each in given if each.requires_grad]
                seeds = [torch.randn_like(each) for each in results]
                if change:
                    for result in (r for r in (y, gates, cells) if r is not None):
                        result.detach().fill_(float("nan"))
                runs.append(torch.autograd.grad(results, inputs, seeds))
            for a, e in zip(*runs, strict=True):
                assert torch.equal(a, e)


@layers
def test_second_derivatives(name):
    module, _ = pair(name, 4, 3, dtype=torch.float64)
    inputs = (example(name, 2, 2, dtype=torch.float64).requires_grad_(), *module.parameters())
    model = changed(module, several)
    assert torch.autograd.gradgradcheck(lambda x, *_: model(x)[0], inputs, fast_mode=True)


@layers
def test_what_goes_in_may_not_be_changed(name):
    """As everywhere in torch; and a second backward through a graph that was kept is right."""
    module, _ = pair(name, 4, 3)
    for change_input in (True, False):
        x = example(name)
        y = module(x)[0]
        first = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
        y.detach().relu_()
        second = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
        assert all(map(torch.equal, first, second))
        with torch.no_grad():
            (x if change_input else module.weight_hh_l0).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@everything
def test_a_float16_weight_that_is_changed(name):
    """Backward reads its cast to float32, which is of the old numbers; the next call, the new."""
    module, theirs = pair(name, 4, 3, dtype=torch.float16)
    x = example(name, dtype=torch.float16).requires_grad_()
    weight = next(module.parameters())
    ys = [tree_leaves(module(x))[0] for _ in range(2)]
    wanted = torch.autograd.grad(ys[0].sum(), x)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(*torch.autograd.grad(ys[1].sum(), x), *wanted)
    theirs.load_state_dict(module.state_dict())
    assert_matches(tree_leaves(module(x))[0], tree_leaves(theirs(x))[0])


@layers
def test_nothing_outlives_its_use(name):
    """The graph holds no cycle, and after backward no memory of the output."""
    module, _ = pair(name, 4, 3)
    gc.disable()
    try:
        y = module(example(name))[0]
        loss, seen = y.sum(), weakref.ref(y.untyped_storage())
        node = weakref.ref(y.grad_fn)
        del y
        loss.backward()
        assert seen() is None
        del loss
        assert node() is None
    finally:
        gc.enable()
