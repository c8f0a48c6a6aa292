"""The short way of a call without gradients: when it is taken, and that it changes no bit."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import weakref

import pytest
import torch
from conftest import KERNELS
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_pairs import CELLS, LAYERS, assert_same_results, cells, everything, layers, pair, state

import fastrnn
from fastrnn import direct

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Of each call since, whether it took the short way."""
    calls = []

    def watched(function):
        def call(*arguments):
            results = function(*arguments)
            calls.append(results is not None)
            return results

        return call

    for name in ("stack", "step"):
        monkeypatch.setattr(direct, name, watched(getattr(direct, name)))
    return calls


@contextlib.contextmanager
def long_way():
    before, direct._direct = direct._direct, None
    try:
        yield
    finally:
        direct._direct = before


def both_ways(module, *arguments) -> list[torch.Tensor]:
    results = tree_leaves(module(*arguments))
    with long_way():
        wanted = tree_leaves(module(*arguments))
    for a, e in zip(results, wanted, strict=True):
        assert torch.equal(a, e) and a.dtype == e.dtype and a.stride() == e.stride()
        assert a.requires_grad == e.requires_grad and a.is_inference() == e.is_inference()
    storages = {a.untyped_storage().data_ptr() for a in results}
    assert len(storages) == len(results) and all(a.untyped_storage().resizable() for a in results)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, "projected", "relu"])
def test_layers_change_no_bit(name, dtype, taken):
    """All that a call of a layer may be made of, in one step and in more, few rows and many."""
    special = {"projected": {"proj_size": 3}, "relu": {"nonlinearity": "relu"}}.get(name, {})
    kind = {"projected": "LSTM", "relu": "RNN"}.get(name, name)
    options = itertools.product([1, 2], [False, True], [True, False])
    for num_layers, bidirectional, bias in options:
        ours, theirs = pair(
            kind, 5, 7, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, **special
        )
        planes = num_layers * (1 + bidirectional)
        for T, N in ((1, 1), (1, 3), (1, 40), (4, 2)):
            x = torch.randn(T, N, 5, dtype=dtype)
            width = special.get("proj_size", 7)
            hx = state(kind, planes, N, width, c_width=7, dtype=dtype)
            for given in ((x,), (x, hx)):
                with torch.inference_mode():
                    both_ways(ours, *given)
                with torch.no_grad():
                    both_ways(ours, *given)
                    assert_same_results(ours(*given), theirs(*given))
    # Of three calls, one was told to take the long way.
    assert taken.count(True) == len(taken) // 5 * 3 and len(taken) == 8 * 4 * 2 * 5


@layers
def test_forms_of_input(name, taken):
    module = getattr(fastrnn, name)(5, 7, batch_first=True)
    for shape in ((2, 1, 5), (1, 4, 5), (1, 1, 5)):
        with torch.no_grad():
            output = both_ways(module, torch.randn(shape))[0]
        assert output.shape == (*shape[:2], 7)
    with torch.no_grad():
        both_ways(module, torch.randn(4, 5))
        both_ways(module, torch.randn(4, 5), state(name, 1, 7))
        stream = torch.randn(1, 9, 5)
        both_ways(module, stream[:, 3:4])
    assert taken == [True, False] * 6


@cells
@pytest.mark.parametrize("bias", [True, False])
def test_cells_change_no_bit(name, bias, taken):
    ours, theirs = pair(name, 5, 7, bias)
    with torch.no_grad():
        for N in (1, 3, 40):
            for given in ((), (state(name, N, 7),)):
                x = torch.randn(N, 5)
                assert_same_results(ours(x, *given), theirs(x, *given))
        assert_same_results(ours(x[0], *given[:0]), theirs(x[0], *given[:0]))
    assert taken == [True] * 7


def test_a_cell_is_a_layer_of_one_step():
    layer, cell = fastrnn.GRU(5, 7), fastrnn.GRUCell(5, 7)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(layer, f"{name}_l0"))
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    with torch.no_grad():
        assert torch.equal(cell(x, h), layer(x[None], h[None])[1][0])


class Dispatch(TorchDispatchMode):
    seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = True
        return func(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def inside(name: str):
    """A context in which somebody may want to see the op."""
    return {
        "gradients": torch.enable_grad,
        "autocast": lambda: torch.autocast("cpu"),
        "dispatch": Dispatch,
        "function": Function,
        "device": lambda: torch.device("cpu"),
        "dual": torch.autograd.forward_ad.dual_level,
        "profiler": torch.profiler.profile,
        "reference": lambda: fastrnn.backend("reference"),
    }[name]()


CONTEXTS = (
    "gradients", "autocast", "dispatch", "function", "device", "dual", "profiler", "reference",
)  # fmt: skip


@pytest.mark.parametrize("context", CONTEXTS)
@everything
def test_watched_calls_take_the_long_way(name, context, taken):
    module = getattr(fastrnn, name)(5, 7)
    x = torch.randn(3, 5) if name in CELLS else torch.randn(2, 3, 5)
    with torch.no_grad(), inside(context) as entered:
        module(x)
        assert taken == [False]
    if context == "dispatch":
        assert entered.seen
    if context == "profiler":
        names = {event.key for event in entered.key_averages()}
        assert any("fastrnn::" in key or "rnn_tanh_cell" in key for key in names)
    with torch.no_grad():
        module(x)
    assert taken == [False, True]


@layers
def test_transforms_and_traces_see_the_op(name, taken):
    module = getattr(fastrnn, name)(5, 7).requires_grad_(False)
    x = torch.randn(4, 2, 3, 5)
    with torch.no_grad():
        mapped = torch.vmap(lambda x: module(x)[0], randomness="error")(x)
        assert not any(taken)
        for k in range(4):
            assert torch.allclose(mapped[k], module(x[k])[0], atol=1e-6)
        taken.clear()
        # A constant in the place of the op would give the first input's result for every input.
        traced = torch.jit.trace(lambda x: module(x)[0], x[0], check_trace=False)
        assert not any(taken)
        assert torch.allclose(traced(x[1]), module(x[1])[0], atol=1e-6)
        exported = torch.export.export(module, (x[0],)).module()
        assert torch.allclose(exported(x[1])[0], module(x[1])[0], atol=1e-6)


class Subclass(torch.Tensor):
    pass


@everything
def test_what_does_not_fit_takes_the_long_way(name, taken):
    """And gives the same results there."""
    is_cell = name in CELLS
    module = getattr(fastrnn, name)(5, 7)
    x = torch.randn(3, 5) if is_cell else torch.randn(2, 3, 5)
    weight = "weight_hh" if is_cell else "weight_hh_l0"
    with torch.no_grad():
        wanted = tree_leaves(module(x))
        assert taken == [True]

        def long(*arguments) -> None:
            taken.clear()
            for a, e in zip(tree_leaves(module(*arguments)), wanted, strict=True):
                assert torch.allclose(a, e, atol=1e-6)
            assert taken == [False]

        long(x.as_subclass(Subclass))
        shape = (3, 7) if is_cell else (1, 3, 7)
        zero = torch.zeros(1).expand(shape)
        long(x, (zero, zero) if name.startswith("LSTM") else zero)
        zero = torch.zeros(shape).as_subclass(Subclass)
        long(x, (zero, zero) if name.startswith("LSTM") else zero)
        before = module._parameters[weight]
        module._parameters[weight] = torch.nn.Parameter(before.T.contiguous().T)
        long(x)
        module._parameters[weight] = before
        torch.nn.utils.parametrize.register_parametrization(
            module, weight, torch.nn.Identity(), unsafe=True
        )
        long(x)


def test_negated_views_take_the_long_way(taken):
    """A tensor whose memory holds the opposite of its value."""
    module = fastrnn.RNN(1, 1)
    x = torch.complex(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        assert torch.equal(module(x)[0], module(torch.full((1, 1, 1), -1.0))[0])
    assert taken == [False, True]


def test_dropout_takes_the_long_way_in_training(taken):
    module = fastrnn.LSTM(5, 7, 2, dropout=0.5)
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        module(x)
        module.eval()
        module(x)
    assert taken == [False, True]


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_features_change_no_bit(name, batch_first, taken):
    """Features and strides go the short way; what the kernels do not take as it is, does not."""
    module = getattr(fastrnn, name)(5, 7, num_layers=2, batch_first=batch_first)
    x = (
        torch.randn(4, 3, 5).transpose(0, 1)
        if batch_first
        else torch.randn(5, 4, 3).permute(1, 2, 0)
    )
    flags = torch.rand(x.shape[:2]) < 0.4
    lengths = torch.tensor([2, 4, 0][: x.size(0 if batch_first else 1)])

    def both(x, **asked) -> None:
        results = tree_leaves(module(x, **asked))
        with long_way():
            wanted = tree_leaves(module(x, **asked))
        for a, e in zip(results, wanted, strict=True):
            assert a is e is None or (torch.equal(a, e) and a.stride() == e.stride())

    with torch.no_grad():
        for asked in (
            {"reset": flags},
            {"lengths": lengths},
            {"reset": flags, "lengths": lengths, "return_gates": True},
            {"return_states": True, "detach_every": 2, "grad_clip": 0.1},
        ):
            taken.clear()
            both(x, **asked)
            assert taken == [True, False]
        taken.clear()
        both(x, lengths=lengths.int())
        both(x, reset=flags.as_subclass(Subclass))
        assert taken == [False] * 4
        for wrong in ({"grad_clip": -1.0}, {"reset": flags.int()}, {"lengths": lengths[:2]}):
            with pytest.raises((ValueError, RuntimeError)):
                module(x, **wrong)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@layers
def test_packed_input_changes_no_bit(name, bidirectional, enforce_sorted, taken):
    ours, theirs = pair(name, 5, 7, 2, bidirectional=bidirectional)
    lengths = [4, 2, 2, 1] if enforce_sorted else [2, 4, 1, 2]
    x = pack_padded_sequence(torch.randn(4, 4, 5), lengths, enforce_sorted=enforce_sorted)
    hx = state(name, 4 if bidirectional else 2, 4, 7)
    with torch.no_grad():
        for given in ((x,), (x, hx)):
            results = ours(*given)
            assert_same_results(results, theirs(*given))
            with long_way():
                wanted = ours(*given)
            for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
                assert a is e is None or torch.equal(a, e)
    assert taken == [True, False] * 2


def test_changes_through_data_are_seen(taken):
    module, x = fastrnn.LSTM(5, 7), torch.randn(1, 3, 5)
    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.data.mul_(3)
        module.weight_ih_l0.data.mul_(2)
        after = module(x)[0]
        with long_way():
            assert torch.equal(after, module(x)[0])
    assert not torch.equal(before, after)
    assert taken == [True, True, False]


def test_weights_outlive_the_call_that_reads_them(taken):
    """Another thread that replaces a parameter must not free what the kernel is reading."""
    module, x = fastrnn.LSTM(64, 256), torch.randn(1500, 32, 64)
    with torch.no_grad():
        wanted = module(x)[0]
    results, begun = [], threading.Event()

    def call() -> None:
        with torch.no_grad():
            begun.set()
            results.append(module(x)[0])

    weight = weakref.ref(module.weight_hh_l0)
    thread = threading.Thread(target=call)
    thread.start()
    begun.wait()
    while (
        sys.getrefcount(weight()) < 4 and thread.is_alive()
    ):  # dict, list, the call; and the count
        time.sleep(0.001)
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, torch.nn.Parameter(torch.zeros_like(parameter)))
    del parameter
    alive = weight() is not None
    thread.join()
    assert alive
    assert weight() is None
    assert torch.equal(results[0], wanted) and taken == [True, True]


def test_wrong_addresses_are_refused():
    """What the module never passes: the kernel reads nothing that does not fit."""
    short = direct._direct
    module, x = fastrnn.LSTM(5, 7), torch.randn(2, 3, 5)
    y, h, c = torch.empty(2, 3, 7), torch.empty(1, 3, 7), torch.empty(1, 3, 7)
    names, parameters = module._flat_weights_names, module._parameters

    def run(cell="lstm", x=x, sizes=None, h0=None, y=y, h=h, c=c, names=names, D=1) -> bool:
        kinds = "w_ih w_hh b_ih b_hh"
        return short.run(
            cell, kinds, D, x, sizes, h0, None, parameters, names, None, None, [y], h, c, []
        )

    assert run()
    assert not run(cell="sru")
    assert not run(x=torch.randn(2, 3, 6)) and not run(x=torch.randn(2, 4, 5))
    assert (
        not run(x=torch.randn(5))
        and not run(x=x.to(torch.float16))
        and not run(x=x.double())
        and not run(x=None)
    )
    assert not run(y=torch.empty(2, 3, 14)) and not run(y=torch.empty(2, 3, 6))
    assert not run(y=torch.empty(2, 3, 7, 1)) and not run(y=torch.empty(2, 3, 28))
    assert not run(h=torch.empty(0, 3, 7)) and not run(D=2) and not run(D=0)
    assert not run(c=None) and not run(c=torch.empty(1, 3, 8)) and not run(c=y)
    assert not run(names=names[:3]) and not run(names=names[::-1]) and not run(names=[])
    assert not run(h0=h)
    rows = {"x": torch.randn(5, 5), "y": torch.empty(5, 7)}
    assert run(**rows, sizes=torch.tensor([3, 1, 1])) and not run(**rows)
    for wrong in ([3, 1], [3, 2, 0], [3, 0, 2], [2, 3], [4, 1], [1, 1, 3], [], [5]):
        assert not run(**rows, sizes=torch.tensor(wrong, dtype=torch.int64))
    assert not run(**rows, sizes=torch.tensor([3, 2], dtype=torch.int32))
    assert not run(**rows, sizes=[3, 2]) and not run(sizes=torch.tensor([3, 3]))
    cell = {"x": x[0], "h": h[0], "c": c[0]}
    assert run(**cell, y=h[0]) and not run(**cell, y=torch.empty(3, 14))
