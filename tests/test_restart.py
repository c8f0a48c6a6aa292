"""`reset_state`: rows that begin anew from given states, against a loop over steps in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import KERNELS
from direct_ways import long_way
from feature_calls import FEATURES, each_backend, using
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_pairs import layers, pair, state

import fastrnn
from fastrnn import functional

T, N, I, H = 7, 4, 3, 5
FORMS = ({}, {"num_layers": 2}, {"proj_size": 2})


def one(parts: list[Tensor]):
    """(h, c), or h alone."""
    return tuple(parts) if len(parts) == 2 else parts[0]


def parts_of(hx) -> list[Tensor]:
    return list(hx) if isinstance(hx, tuple) else [hx]


def given(name: str, form: dict, steps: bool = False) -> list[Tensor]:
    """A state of each row, or with `steps` of each step and row."""
    sizes = (*[T] * steps, form.get("num_layers", 1), N, form.get("proj_size", H))
    hx = state(name, *sizes, c_width=H, dtype=torch.float64)
    return [each.requires_grad_() for each in parts_of(hx)]


def loop(module, x, hx, reset, begins, lengths=None, detach_every=None) -> list[Tensor]:
    """[output, h_n, ...] of torch.nn's module, one step at a time."""
    outputs, now = [], hx
    for t in range(T):
        live = torch.ones(1, N, 1, dtype=torch.bool)
        if lengths is not None:
            live = (lengths > t).view(1, N, 1)
        if detach_every and t and t % detach_every == 0:
            now = [torch.where(live, each.detach(), each) for each in now]
        here = [each[t] if each.dim() == 4 else each for each in begins]
        masked = reset[t].view(1, N, 1)
        before = [torch.where(masked, new, old) for new, old in zip(here, now, strict=True)]
        output, after = module(x[t : t + 1], one(before))
        now = [torch.where(live, a, b) for a, b in zip(parts_of(after), now, strict=True)]
        outputs.append(torch.where(live, output, 0))
    return [torch.cat(outputs), *now]


def assert_same_with_gradients(results, wanted, leaves, parameters, other) -> None:
    seeds = [torch.randn_like(each) for each in wanted]
    for a, e in zip(results, wanted, strict=True):
        torch.testing.assert_close(a, e)
    options = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(results, [*leaves, *parameters], seeds, **options)
    expected = torch.autograd.grad(wanted, [*leaves, *other], seeds, **options)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@each_backend
@pytest.mark.parametrize("batch_first", [False, True])
@layers
def test_a_loop(name, batch_first, backend):
    """Every result and gradient; resets nowhere, here and there, everywhere."""
    turned = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    cases = itertools.product(FORMS, (False, True), (0.0, 0.3, 1.0), (None, 3), (False, True))
    for form, steps, density, every, ragged in cases:
        if "proj_size" in form and name != "LSTM":
            continue
        ours, theirs = pair(name, I, H, dtype=torch.float64, **form)
        ours.batch_first = batch_first
        x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
        reset, hx, begins = torch.rand(T, N) < density, given(name, form), given(name, form, steps)
        lengths = torch.tensor([T, 0, 3, 5]) if ragged else None
        asked = {"lengths": lengths, "detach_every": every}
        with using(backend):
            output, final = ours(
                turned(x), one(hx), reset=turned(reset), reset_state=one(begins), **asked
            )
        wanted = loop(theirs, x, hx, reset, begins, **asked)
        assert_same_with_gradients(
            [turned(output), *parts_of(final)],
            wanted,
            [x, *hx, *begins],
            ours.parameters(),
            theirs.parameters(),
        )


@pytest.mark.parametrize("feature", [*FEATURES, "nothing"])
@layers
def test_zeros_are_what_reset_does_alone(name, feature):
    """With every other feature, and in the states and gates of every step."""
    for form, batch_first in itertools.product(FORMS, (False, True)):
        if "proj_size" in form and name != "LSTM":
            continue
        module = getattr(fastrnn, name)(I, H, batch_first=batch_first, dtype=torch.float64, **form)
        asked = FEATURES.get(feature, lambda T, N: {})(T, N)
        asked["reset"] = torch.rand(T, N) < 0.3
        x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
        if batch_first:
            x, asked["reset"] = x.transpose(0, 1), asked["reset"].t()
        hx = given(name, form)
        begins = one([torch.zeros_like(each) for each in hx])
        results, wanted = (
            [t for t in tree_leaves(module(x, one(hx), **asked, **more)) if t is not None]
            for more in ({"reset_state": begins}, {})
        )
        differ = [k for k, t in enumerate(wanted) if t.requires_grad]
        assert differ == [k for k, t in enumerate(results) if t.requires_grad]
        for a, e in zip(results, wanted, strict=True):
            torch.testing.assert_close(a, e)
        parameters = list(module.parameters())
        results, wanted = ([each[k] for k in differ] for each in (results, wanted))
        assert_same_with_gradients(results, wanted, [x, *hx], parameters, parameters)


@layers
def test_without_gradients_in_functions_and_unbatched(name):
    ours, theirs = pair(name, I, H, dtype=torch.float64)
    x, reset = torch.randn(T, N, I, dtype=torch.float64), torch.rand(T, N) < 0.3
    hx, begins = given(name, {}), given(name, {}, steps=True)
    wanted = loop(theirs, x, hx, reset, begins)
    cell = "rnn_tanh" if name == "RNN" else name.lower()
    function = getattr(functional, cell)
    with torch.no_grad():
        output, final = ours(x, one(hx), reset=reset.tolist(), reset_state=one(begins))
    weights = list(ours.parameters())
    results = function(x, one(hx), weights, reset=reset, reset_state=one(begins))
    for a, b, e in zip((output, *parts_of(final)), results, wanted, strict=True):
        torch.testing.assert_close(a, e)
        torch.testing.assert_close(b, e)
    row = [each[:, 1] for each in hx], [each[:, :, 1] for each in begins]
    alone = ours(x[:, 1], one(row[0]), reset=reset[:, 1], reset_state=one(row[1]))
    for a, e in zip((alone[0], *parts_of(alone[1])), wanted, strict=True):
        torch.testing.assert_close(a, e[:, 1])


@layers
def test_step(name):
    module = getattr(fastrnn, name)(I, H, 2, dtype=torch.float64)
    x, reset = torch.randn(T, N, I, dtype=torch.float64), torch.rand(T, N) < 0.3
    form = {"num_layers": 2}
    hx, begins = given(name, form), given(name, form)
    output, final = module(x, one(hx), reset=reset, reset_state=one(begins))
    now = one(hx)
    for t in range(T):
        y, now = module.step(x[t], now, reset[t], one(begins))
        torch.testing.assert_close(y, output[t])
    for a, e in zip(parts_of(now), parts_of(final), strict=True):
        torch.testing.assert_close(a, e)


def test_states_of_a_function_in_another_order():
    """A step without gradients: the recurrent state is not the first."""

    def step(g, s, p):
        c = torch.sigmoid(g.f) * s.c + torch.tanh(g.z)
        return c, torch.tanh(c)

    layer = fastrnn.Recurrent(fastrnn.Cell(step, gates="f z", states="c h", recurrent="h"), I, H)
    x, reset = torch.randn(1, N, I), torch.tensor([True, False] * N)[:N]
    hx, begins = (tuple(torch.randn(2, 1, N, H)) for _ in range(2))
    start = tuple(torch.where(reset[:, None], b, a) for a, b in zip(hx, begins, strict=True))
    with torch.no_grad():
        found, wanted = layer.step(x[0], hx, reset, begins), layer.step(x[0], start)
    for a, e in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_step_without_gradients_goes_the_short_way(name, batch_first, taken):
    module = getattr(fastrnn, name)(I, H, 2, batch_first=batch_first)
    x, reset = torch.randn(T, N, I), torch.rand(T, N) < 0.3
    hx, begins = ([each.float() for each in given(name, {"num_layers": 2})] for _ in range(2))
    now = one(hx)
    with torch.no_grad():
        for t in range(T):
            results = tree_leaves(module.step(x[t], now, reset[t], one(begins)))
            with long_way():
                y, now = module.step(x[t], now, reset[t], one(begins))
            assert all(map(torch.equal, results, tree_leaves((y, now))))
        assert taken[::2] == [True] * T
        # Several steps, states of each step, a mask of numbers and gradients go the long way.
        turned = x.transpose(0, 1) if batch_first else x
        flags = reset.t() if batch_first else reset
        module(turned, one(hx), reset=flags, reset_state=one(begins))
        for mask, new in ((reset[0].tolist(), begins), (reset[0], [each[None] for each in begins])):
            module.step(x[0], one(hx), mask, one(new))
        wrong = one([each[:, :1] for each in hx])  # which would broadcast to the batch
        with pytest.raises(RuntimeError, match="must be|Expected"):
            module.step(x[0], wrong, reset[0], wrong)
    module.step(x[0], one(hx), reset[0], one(begins))
    assert taken[-5:] == [False, True, False, False, False]


@layers
def test_where_values_cannot_be_read(name):
    """A graph of torch.compile, vmap and meta tensors; with lengths and all states."""
    module = getattr(fastrnn, name)(I, H, dtype=torch.float64)
    x, lengths = torch.randn(T, N, I, dtype=torch.float64), torch.tensor([T, 0, 3, 5])
    resets = torch.rand(2, T, N) < 0.3
    hx = one([each.detach() for each in given(name, {})])
    begins = one([each.detach() for each in given(name, {}, steps=True)])

    def call(reset, begins=begins):
        asked = {"lengths": lengths, "return_states": True, "detach_every": 3}
        results = module(x, hx, reset=reset, reset_state=begins, **asked)
        return [each for each in tree_leaves(results) if each is not None]

    wanted = [call(reset) for reset in resets]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(resets[0])
    mapped = torch.func.vmap(call)(resets)
    for k, value in enumerate(wanted[0]):
        torch.testing.assert_close(compiled[k], value)
        torch.testing.assert_close(mapped[k], torch.stack([value, wanted[1][k]]))
    module.to("meta")
    x, lengths, hx, begins = (torch.utils._pytree.tree_map(lambda t: t.to("meta"), each)
                              for each in (x, lengths, hx, begins))  # fmt: skip
    shapes = [each.shape for each in call(resets[0].to("meta"), begins)]
    assert shapes == [each.shape for each in wanted[0]]


@layers
def test_under_autocast(name):
    """The dtypes of a call with `reset` alone."""
    module, x = getattr(fastrnn, name)(I, H), torch.randn(T, N, I)
    reset = torch.rand(T, N) < 0.3
    begins = one([torch.zeros(1, N, H) for _ in given(name, {})])
    with torch.autocast("cpu", torch.bfloat16):
        results = tree_leaves(module(x, reset=reset, reset_state=begins))
        wanted = tree_leaves(module(x, reset=reset))
    for a, e in zip(results, wanted, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e)


@layers
def test_errors(name):
    module, x = getattr(fastrnn, name)(I, H), torch.randn(T, N, I)
    reset, begins = torch.zeros(T, N, dtype=torch.bool), state(name, 1, N, H)
    wrong = parts_of(begins)
    pairs = [
        (ValueError, "reset_state: expected", one(wrong[:1] * (3 - len(wrong)))),
        (RuntimeError, "Expected reset_state size", one([each[:, 1:] for each in wrong])),
        (RuntimeError, "Expected reset_state size", one([each[None] for each in wrong])),
        (RuntimeError, "must have the same dtype", one([each.double() for each in wrong])),
        (RuntimeError, "on the same device", one([each.to("meta") for each in wrong])),
    ]
    for error, message, bad in pairs:
        with pytest.raises(error, match=message):
            module(x, reset=reset, reset_state=bad)
    with pytest.raises(ValueError, match="needs reset"):
        module(x, reset_state=begins)
    for lengths in ([1, 2, 3, T + 1], [1, 2, 3, -1]):
        with pytest.raises(RuntimeError, match="lengths must be between 0 and"):
            module(x, reset=reset, reset_state=begins, lengths=lengths)
    with pytest.raises(RuntimeError, match="larger than 0"):
        module(x[:0], reset=reset[:0], reset_state=begins)
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])
    with pytest.raises(ValueError, match="need padded input"):
        module(packed, reset=reset, reset_state=begins)
    assert torch.equal(module(x, reset=reset, reset_state=begins)[0], module(x)[0])
