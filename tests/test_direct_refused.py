"""Which calls without gradients do not take the short way: watched ones, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS
from direct_ways import Subclass
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_pairs import CELLS, everything, layers

import fastrnn
from fastrnn.call import Call
from fastrnn.dispatch import cpu

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


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
        "dispatch": Dispatch,
        "function": Function,
        "device": lambda: torch.device("cpu"),
        "dual": torch.autograd.forward_ad.dual_level,
        "profiler": torch.profiler.profile,
        "reference": lambda: fastrnn.backend("reference"),
    }[name]()


CONTEXTS = ("dispatch", "function", "device", "dual", "profiler", "reference")


@pytest.mark.parametrize("context", CONTEXTS)
@everything
@pytest.mark.parametrize("records", [False, True])
def test_watched_calls_take_the_long_way(name, context, records, taken):
    module = getattr(fastrnn, name)(5, 7)
    x = torch.randn(3, 5) if name in CELLS else torch.randn(2, 3, 5)
    with torch.set_grad_enabled(records), inside(context) as entered:
        module(x)
        assert True not in taken
    if context == "dispatch":
        assert entered.seen
    if context == "profiler":
        names = {event.key for event in entered.key_averages()}
        assert any("fastrnn::" in key or "rnn_tanh_cell" in key for key in names)
    with torch.no_grad():
        module(x)
    assert taken[-1]


@everything
def test_autocast_takes_few_rows_the_short_way(name, taken):
    module, refused = getattr(fastrnn, name)(5, 7), []
    with torch.autocast("cpu"):
        for rows in (1, 32, 33):
            x = torch.randn(rows, 5) if name in CELLS else torch.randn(1, rows, 5)
            wanted = tree_leaves(module(x))
            with torch.no_grad():
                results = tree_leaves(module(x))
            for a, e in zip(results, wanted, strict=True):
                assert a.dtype == e.dtype
                torch.testing.assert_close(a, e, atol=0.02, rtol=0.02)
            refused += [rows] * (not taken[-1] if taken else True)
    assert refused == [33]


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


class BatchFirst(fastrnn.GRU):
    batch_first = property(lambda self: True, lambda self, value: None)


def test_attributes_of_a_class_count():
    """As those of a module do, which stand in its dict."""
    module, x = BatchFirst(5, 7), torch.randn(6, 3, 5)
    with torch.no_grad():
        short = module(x)
    for a, e in zip(short, module(x), strict=True):
        assert a.shape == e.shape and torch.allclose(a, e, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("without", ["bias", "bias_ih", "bias_hh"])
def test_a_cell_has_the_biases_that_are_there(name, without):
    """Whatever its attribute `bias` says since it was made."""
    cell, x = getattr(fastrnn, name)(5, 7), torch.randn(3, 5)
    setattr(cell, without, False if without == "bias" else None)
    with torch.no_grad():
        short = tree_leaves(cell(x))
    for a, e in zip(short, tree_leaves(cell(x)), strict=True):
        assert torch.allclose(a, e, atol=1e-6)


@everything
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_input_is_refused_alike(name, layout):
    is_cell = name in CELLS
    module, x = getattr(fastrnn, name)(5, 7), torch.randn(3, 5) if is_cell else torch.randn(2, 3, 5)
    x = getattr(x, layout)()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="must be a dense"):
            module(x)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["reset", "lengths"])
def test_sparse_features_are_refused_alike(name, grad):
    gru, x = fastrnn.GRU(5, 7), torch.randn(6, 3, 5)
    given = {"reset": torch.zeros(6, 3, dtype=torch.bool), "lengths": torch.tensor([6, 2, 1])}
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=f"{name} must be a dense"):
        gru(x, **{name: given[name].to_sparse()})


def test_dropout_takes_the_long_way_in_training(taken):
    module = fastrnn.LSTM(5, 7, 2, dropout=0.5)
    x = torch.randn(2, 3, 5)
    with torch.no_grad():
        module(x)
        module.eval()
        module(x)
    assert taken == [False, True]


def test_wrong_addresses_are_refused():
    """What the module never passes: the kernel reads nothing that does not fit."""
    short = cpu.direct
    module, x = fastrnn.LSTM(5, 7), torch.randn(2, 3, 5)
    y, h, c = torch.empty(2, 3, 7), torch.empty(1, 3, 7), torch.empty(1, 3, 7)
    names, parameters = module._flat_weights_names, module._parameters

    def run(cell="lstm", x=x, sizes=None, h0=None, y=y, h=h, c=c, names=names, D=1) -> bool:
        kinds = "w_ih w_hh b_ih b_hh"
        call = x, sizes, h0, None, names, cell, kinds, None, None
        return short.run(call, D, parameters, (y,), h, c, ())

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


def test_backward_refuses_what_does_not_fit():
    """The kernels write and read nothing: the caller takes the op, which says what is wrong."""
    module, x = fastrnn.LSTM(5, 7), torch.randn(2, 3, 5)
    h = c = torch.zeros(1, 3, 7)
    call = Call(x, None, h, c, module._flat_weights, "lstm", "w_ih w_hh b_ih b_hh")
    with torch.no_grad():
        output, _, _, *kept = cpu.run(call, True)
    dy = torch.randn_like(output)
    room = [torch.full_like(t, 7.0) for t in (x, h, c)]
    weights = [torch.full_like(w, 7.0) for w in module._flat_weights]

    def run(dy=dy, d_h=None, output=output, gates=kept[0], cells=kept[1], dx=room[0], dw=weights):
        saved = output, gates, cells, kept[2]
        return cpu.direct.run_backward(
            call, (dy, d_h, None, None, None), saved, (dx, room[1], room[2], dw)
        )

    assert not run(dy=dy[1:]) and not run(dy=dy.double()) and not run(dy=dy.transpose(0, 1))
    assert not run(dy=dy._neg_view()) and not run(d_h=torch.randn(2, 3, 7))
    assert not run(output=None) and not run(gates=None) and not run(cells=None)
    assert not run(gates=kept[0][..., 1:]) and not run(cells=kept[1].bfloat16())
    assert not run(dx=x[1:]) and not run(dx=x.double()) and not run(dx=dy)
    assert not run(dw=weights[:3]) and not run(dw=weights[::-1]) and not run(dw=iter(weights))
    for k in range(4):
        assert not run(dw=[*weights[:k], None, *weights[k + 1 :]])
    assert all((t == 7.0).all() for t in (*room, *weights))
    assert run() and not any((t == 7.0).any() for t in (*room, *weights))
    assert run(dx=None, dw=[]) and run(dy=None, d_h=torch.randn(1, 3, 7))


MADE = {
    "stacked": lambda: fastrnn.LSTM(5, 7, num_layers=2),
    "two directions": lambda: fastrnn.LSTM(5, 7, bidirectional=True),
    "projected": lambda: fastrnn.LSTM(5, 7, num_layers=2, proj_size=3),
    "GRU": lambda: fastrnn.GRU(5, 7, num_layers=2),
    "peephole": lambda: fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 5, 7, num_layers=2),
    "sLSTM": lambda: fastrnn.Recurrent(fastrnn.zoo.SLSTM, 5, 7, num_layers=2),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("planes", [0, 1, 3])
def test_no_state_may_have_another_number_of_planes(made, planes):
    """The kernels would read memory past its end."""
    module, x = MADE[made](), torch.randn(4, 3, 5)
    with torch.no_grad():
        good = module(x)[1]
        states = good if isinstance(good, tuple) else (good,)
        for k, state in enumerate(states):
            wrong = [*states[:k], state.new_zeros(planes, *state.shape[1:]), *states[k + 1 :]]
            wrong = tuple(wrong) if isinstance(good, tuple) else wrong[0]
            with pytest.raises(RuntimeError, match="Expected|state"):
                module(x, wrong)
            if not module.bidirectional:
                with pytest.raises(RuntimeError, match="Expected|state"):
                    module.step(x[0], wrong)
