"""reset, lengths, states, truncated and clipped gradients, against loops written out in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from feature_calls import each_backend, using
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import plain_loop
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, layers, state

import fastrnn


@st.composite
def scenarios(draw) -> dict:
    """A module, the form of its input, and any features that go together."""
    name = draw(st.sampled_from(LAYERS))
    hidden = draw(st.integers(1, 9))
    kwargs = {
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if name == "RNN":
        kwargs["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if name == "LSTM" and hidden > 1:
        kwargs["proj_size"] = draw(st.integers(0, hidden - 1))
    T, N = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    batched = draw(st.integers(0, 4)) > 0
    N = N if batched else 1
    flags = st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=T, max_size=T)
    reset = None if kwargs["bidirectional"] else draw(st.none() | flags)
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N))
    return {
        "name": name,
        "args": (draw(st.integers(1, 6)), hidden),
        "kwargs": kwargs,
        "sizes": (T, N),
        "batched": batched,
        "reset": None if reset is None else torch.tensor(reset),
        "lengths": torch.tensor(lengths) if batched and lengths is not None else None,
        "detach_every": draw(st.none() | st.integers(1, T + 1)),
        "grad_clip": draw(st.none() | st.sampled_from([1e-3, 0.05, 0.5, 1e3])),
        "dtype": draw(st.sampled_from([torch.float64, torch.float64, torch.float32])),
        "hx": draw(st.booleans()),
        "gates": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@each_backend
@settings(max_examples=100, deadline=None, derandomize=True)
@given(scenario=scenarios())
def test_equals_a_plain_loop(backend, scenario):
    """Every result, and every gradient from gradients of all results at once."""
    kwargs, (T, N), batched = scenario["kwargs"], scenario["sizes"], scenario["batched"]
    dtype, reset, lengths = scenario["dtype"], scenario["reset"], scenario["lengths"]
    limits = {key: scenario[key] for key in ("detach_every", "grad_clip")}
    torch.manual_seed(scenario["seed"])
    module = getattr(fastrnn, scenario["name"])(*scenario["args"], **kwargs, dtype=dtype)
    x = torch.randn(T, N, scenario["args"][0], dtype=dtype)
    count = kwargs["num_layers"] * (2 if kwargs["bidirectional"] else 1)
    hx = [torch.randn(count, N, module.proj_size or module.hidden_size, dtype=dtype)]
    if module.mode == "LSTM":
        hx.append(torch.randn(count, N, module.hidden_size, dtype=dtype))
    if not scenario["hx"]:
        hx = [torch.zeros_like(s) for s in hx]

    wide = [t.double().requires_grad_() for t in (x, *hx, *module.parameters())]
    names = [name for name, _ in module.named_parameters()]
    h0, c0 = wide[1], wide[2] if len(hx) == 2 else None
    parameters = dict(zip(names, wide[1 + len(hx) :], strict=True))
    y, h_n, c_n, *states = plain_loop(module, parameters, wide[0], h0, c0, reset, lengths, **limits)
    wanted = [y, h_n, *([] if c_n is None else [c_n]), *states[0], *states[1]]
    cotangents = [torch.randn_like(t) for t in wanted]
    attached = [pair for pair in zip(wanted, cotangents, strict=True) if pair[0].requires_grad]
    wanted_gradients = [None] * len(wide)
    if attached:  # nothing is, where every length is 0
        wanted_gradients = torch.autograd.grad(
            [t for t, _ in attached], wide, [g for _, g in attached], allow_unused=True
        )

    def user(t: Tensor, batch_dim: int = 1) -> Tensor:
        """From (T, N, ...) to the user's form; the batch of a final state stays where it is."""
        if not batched:
            return t.squeeze(batch_dim)
        return t.transpose(0, 1) if kwargs["batch_first"] and batch_dim == 1 else t

    x, *hx = leaves = [t.requires_grad_() for t in (x, *hx)]
    start = [s if batched else s.squeeze(1) for s in hx]
    with using(backend):
        result = module(
            user(x),
            None if not scenario["hx"] else tuple(start) if len(hx) == 2 else start[0],
            reset=None if reset is None else user(reset),
            lengths=lengths,
            return_states=True,
            return_gates=scenario["gates"],
            **limits,
        )
    output, final, got = result
    assert isinstance(got, fastrnn.States)
    floats = [output, *tree_leaves(final), *got.h, *(got.c or ())]
    assert (got.c is None) == (len(hx) == 1)
    finals = range(1, 1 + len(hx))
    shaped = [
        (t if batched else t.squeeze(1)) if k in finals else user(t) for k, t in enumerate(wanted)
    ]
    for k, (a, e) in enumerate(zip(floats, shaped, strict=True)):
        assert a.dtype == dtype
        assert_matches(a, e, f"result {k}")
    assert (got.gates is not None) == scenario["gates"]
    for a, e in zip(got.gates or (), states[2] if scenario["gates"] else (), strict=True):
        assert not a.requires_grad
        assert_matches(a, user(e), "gates")

    seeds = [
        ((t if batched else t.squeeze(1)) if k in finals else user(t)).to(dtype)
        for k, t in enumerate(cotangents)
    ]
    inputs = [*leaves, *module.parameters()] if scenario["hx"] else [x, *module.parameters()]
    skip = [] if scenario["hx"] else list(finals)
    gradients = torch.autograd.grad(floats, inputs, seeds, allow_unused=True)
    expected = [g for k, g in enumerate(wanted_gradients) if k not in skip]
    labels = ["input", *(["h0", "c0"][: len(hx)] if scenario["hx"] else []), *names]
    for label, a, e, t in zip(labels, gradients, expected, inputs, strict=True):
        zeros = torch.zeros_like(t)
        assert_matches(zeros if a is None else a, zeros if e is None else e, f"gradient of {label}")


@each_backend
@layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_those_of_a_packed_sequence(name, bidirectional, backend):
    options = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    options |= {"proj_size": 2} if name == "LSTM" else {}
    ours, theirs = getattr(fastrnn, name)(4, 3, **options), getattr(torch.nn, name)(4, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    D = 2 if bidirectional else 1
    hx = state(name, 2 * D, 5, options.get("proj_size", 3), c_width=3, dtype=torch.float64)
    for lengths in ([6, 6, 6, 6, 6], [2, 6, 1, 4, 4], [3, 1, 2, 2, 1]):
        lengths = torch.tensor(lengths)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, final = theirs(packed, hx)
        wanted = [pad_packed_sequence(output, total_length=6)[0], *tree_leaves(final)]
        with using(backend):
            results = tree_leaves(ours(x, hx, lengths=lengths))
        cotangents = [torch.randn_like(t) for t in wanted]
        for a, e in zip(results, wanted, strict=True):
            assert_matches(a, e)
        runs = [
            torch.autograd.grad(floats, list(module.parameters()), cotangents)
            for floats, module in ((results, ours), (wanted, theirs))
        ]
        for a, e in zip(*runs, strict=True):
            assert_matches(a, e)


@each_backend
@layers
def test_states_are_those_of_a_loop_of_cells(name, backend):
    module = getattr(fastrnn, name)(4, 3, 2, dtype=torch.float64)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    with using(backend), torch.no_grad():
        _, _, states = module(x, return_states=True)
        _, _, more = module(x, return_gates=True)
    assert states.gates is None and len(more.gates) == 2
    below = x
    for layer in range(2):
        cell = getattr(torch.nn, f"{name}Cell")(below.size(-1), 3, dtype=torch.float64)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, kind).data = getattr(module, f"{kind}_l{layer}").data
        hx, seen = None, []
        for x_t in below:
            hx = cell(x_t, hx)
            seen.append(hx if name == "LSTM" else (hx,))
        for each in (states, more):
            assert_matches(each.h[layer][:, :, 0], torch.stack([s[0] for s in seen]))
            if name == "LSTM":
                assert_matches(each.c[layer][:, :, 0], torch.stack([s[1] for s in seen]))
        below = states.h[layer][:, :, 0]


@each_backend
@layers
def test_chunks_and_episodes(name, backend):
    """detach_every is a training loop that carries a detached state; reset, a call for each."""
    module = getattr(fastrnn, name)(4, 3, 2, dtype=torch.float64)
    theirs = getattr(torch.nn, name)(4, 3, 2, dtype=torch.float64)
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    starts = torch.zeros(7, 2, dtype=torch.bool)
    starts[[0, 3, 6]] = True
    for options, carried in (({"detach_every": 3}, True), ({"reset": starts}, False)):
        with using(backend):
            output, _ = module(x, **options)
        hx, outputs = None, []
        for chunk in x.split(3):
            part, final = theirs(chunk, hx)
            outputs.append(part)
            if carried:
                hx = tuple(s.detach() for s in final) if name == "LSTM" else final.detach()
        wanted, seed = torch.cat(outputs), torch.randn_like(output)
        assert_matches(output, wanted)
        runs = [
            torch.autograd.grad(y, list(m.parameters()), seed)
            for y, m in ((output, module), (wanted, theirs))
        ]
        for a, e in zip(*runs, strict=True):
            assert_matches(a, e)


@each_backend
@layers
def test_padding_does_not_leak(name, backend):
    """NaN, inf and garbage behind a length, in results and in gradients; rows of length 0."""
    module = getattr(fastrnn, name)(4, 3, 2, bidirectional=True)
    lengths = torch.tensor([3, 0, 5, 1])
    padding = torch.arange(5)[:, None] >= lengths
    clean = torch.randn(5, 4, 4).masked_fill(padding[..., None], 0)
    hx = state(name, 4, 4, 3)
    runs = []
    for value in (0.0, float("nan"), float("inf"), 1e30):
        x = clean.masked_fill(padding[..., None], value).requires_grad_()
        with using(backend):
            output, final, states = module(x, hx, lengths=lengths, return_gates=True)
        assert (output[padding] == 0).all()
        assert all((t[padding] == 0).all() for t in tree_leaves(states) if t is not None)
        for end, start in zip(tree_leaves(final), tree_leaves(hx), strict=True):
            assert torch.equal(end[:, 1], start[:, 1])
        floats = [output, *tree_leaves(final), *states.h, *(states.c or ())]
        loss = sum(t.square().sum() for t in floats)
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        assert (gradients[0][padding] == 0).all()
        runs.append([*floats, *gradients])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    assert all(t.isfinite().all() for t in runs[0])


@each_backend
@layers
def test_all_lengths_zero(name, backend):
    module, x = getattr(fastrnn, name)(4, 3, bidirectional=True), torch.randn(5, 2, 4)
    hx = [s.requires_grad_() for s in tree_leaves(state(name, 2, 2, 3))]
    with using(backend):
        result = module(x, tuple(hx) if name == "LSTM" else hx[0], lengths=torch.zeros(2).long())
    output, *final = tree_leaves(result)
    assert (output == 0).all() and all(map(torch.equal, final, hx))
    gradients = torch.autograd.grad(sum(s.sum() for s in final), [*hx, *module.parameters()])
    assert all((g == 1).all() for g in gradients[: len(hx)])
    assert all((g == 0).all() for g in gradients[len(hx) :])


@each_backend
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_any_integer_dtype_and_stride(dtype, backend):
    module, x = fastrnn.GRU(4, 3, batch_first=True), torch.randn(3, 5, 4)
    reset = torch.rand(3, 5) < 0.3
    wanted = module(x, lengths=torch.tensor([2, 0, 5]), reset=reset)[0]
    strided = torch.tensor([[2, 0, 5], [9, 9, 9]], dtype=dtype).t().contiguous().t()[0]
    with using(backend):
        output = module(x, lengths=strided, reset=reset.t().contiguous().t())[0]
    assert_matches(output, wanted)


def test_unused_features_change_nothing():
    for name in LAYERS:
        module, x = getattr(fastrnn, name)(4, 3, 2), torch.randn(5, 2, 4)
        plain = module(x)
        result = module(
            x,
            reset=None,
            lengths=None,
            return_states=False,
            return_gates=False,
            detach_every=None,
            grad_clip=None,
        )
        assert type(result) is tuple and len(result) == 2
        assert all(map(torch.equal, tree_leaves(result), tree_leaves(plain)))
        every = module(x, lengths=torch.full((2,), 5), reset=torch.zeros(5, 2, dtype=torch.bool))
        for a, e in zip(tree_leaves(every), tree_leaves(plain), strict=True):
            assert_matches(a, e)
