"""The modules under transforms, compilation, another backend and autocast, against eager calls."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import assert_matches
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import (
    CELLS,
    LAYERS,
    assert_same_results,
    everything,
    example,
    gradients,
    layers,
    pair,
    state,
)

import fastrnn


@everything
def test_vmap_and_per_sample_gradients(name):
    module = getattr(fastrnn, name)(4, 3, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    x = torch.stack([example(name, dtype=torch.float64) for _ in range(3)])

    def call(parameters, x):
        return tree_leaves(torch.func.functional_call(module, parameters, (x,)))

    def loss(parameters, x):
        return sum(t.square().sum() for t in call(parameters, x))

    batched = torch.vmap(call, (None, 0))(parameters, x)
    gradients = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    ensemble = {k: torch.stack([p, 2 * p, -p]).detach() for k, p in parameters.items()}
    of_ensemble = torch.vmap(call)(ensemble, x)
    for k in range(3):
        for a, e in zip(batched, call(parameters, x[k]), strict=True):
            assert_matches(a[k], e)
        wanted = torch.autograd.grad(loss(parameters, x[k]), list(parameters.values()))
        for a, e in zip(gradients.values(), wanted, strict=True):
            assert_matches(a[k], e)
        member = {key: p[k] for key, p in ensemble.items()}
        for a, e in zip(of_ensemble, call(member, x[k]), strict=True):
            assert_matches(a[k], e)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "padded") for name in LAYERS + CELLS]
    + [(name, form) for name in LAYERS for form in ("sorted", "unsorted")],
)
def test_compile(name, form):
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True}
    module, x = getattr(fastrnn, name)(4, 3, **options), example(name)
    if form != "padded":
        lengths = [5, 3, 2] if form == "sorted" else [2, 5, 3]
        x = pack_padded_sequence(x, lengths, enforce_sorted=form == "sorted")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_results(compiled(x), module(x))
    runs = []
    for call in (compiled, module):
        floats = [t for t in tree_leaves(call(x)) if t is not None and t.requires_grad]
        runs.append(torch.autograd.grad(sum(t.sum() for t in floats), list(module.parameters())))
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_compile_of_transforms(name):
    """An op by itself would fail under vmap and grad, and give zero under jvp."""
    module = getattr(fastrnn, name)(4, 3, dtype=torch.float64)
    x = example(name, T=2, dtype=torch.float64)

    def loss(x):
        return module(x)[0].square().sum()

    def halved(x):
        parameters = {k: p / 2 for k, p in module.named_parameters()}
        return torch.func.functional_call(module, parameters, (x,))

    for function in (
        torch.func.grad(loss),
        torch.vmap(lambda row: module(row)[0], 1),
        lambda x: torch.func.jvp(loss, (x,), (torch.ones_like(x),)),
        halved,
    ):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same_results(compiled(x), function(x))


@everything
def test_reference_backend(name):
    module = getattr(fastrnn, name)(4, 3)
    x = example(name)
    with fastrnn.backend("reference"):
        wanted = module(x)
    assert_same_results(module(x), wanted)


@pytest.mark.parametrize("way", ["auto", "reference"])
def test_a_default_device_changes_no_call(way):
    """What a call makes for itself is where its tensors are, or on the CPU."""
    lstm, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    state = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    reset, lengths = torch.tensor([[False, True]] * 5), torch.tensor([5, 3])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)

    def results() -> list[torch.Tensor]:
        with fastrnn.backend(way):
            return [
                lstm(packed)[0].data,
                lstm(x, reset=reset, reset_state=state)[0],
                lstm(x, reset=reset, reset_state=state, lengths=lengths)[0],
                lstm(x, reset=reset.tolist(), lengths=lengths.tolist(), detach_every=2)[0],
            ]

    wanted = results()
    torch.set_default_device("meta")
    try:
        found = results()
    finally:
        torch.set_default_device(None)
    assert all(map(torch.equal, found, wanted))


@layers
def test_training_on_what_inference_mode_made(name):
    """As from a frozen encoder. `torch.nn` takes it with the batch first, which it copies."""
    ours = getattr(fastrnn, name)(5, 8, batch_first=True)
    theirs = getattr(torch.nn, name)(5, 8, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        features = torch.randn(4, 7, 5)
    for module in (ours, theirs):
        module(features)[0].sum().backward()
    for a, e in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_matches(a.grad, e.grad)


@pytest.mark.parametrize("which", ["x", "h", "c", "xhc"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", [*LAYERS, "LSTMCell", "GRUCell"])
def test_any_tensor_of_inference_mode(name, frozen, which):
    """torch.nn takes those that its backward does not read, as the h of a frozen GRU."""
    ours, theirs = pair(name, 4, 3)
    with torch.inference_mode():
        hx = state(name, 3, 3) if name in CELLS else state(name, 1, 3, 3)
        made = dict(zip("xhc", [example(name), *tree_leaves(hx)], strict=False))
    free = {key: each.clone().requires_grad_() for key, each in made.items()}
    mixed = {key: made[key] if key in which else each for key, each in free.items()}
    leaves = [free[key] for key in free if key not in which]
    results = []
    for module, (x, *states) in ((ours, mixed.values()), (theirs, free.values())):
        module.requires_grad_(not frozen)
        parameters = [*leaves, *([] if frozen else module.parameters())]
        call = partial(module, x, tuple(states) if "LSTM" in name else states[0])
        results.append([call(), gradients(call, parameters) if parameters else []])
    assert_same_results(*results)


def test_masks_and_lengths_of_inference_mode():
    """As those of a rollout. The packed sequence is of data of its own."""
    gru, x = fastrnn.GRU(4, 3), torch.randn(5, 2, 4)
    with torch.inference_mode():
        reset, lengths = torch.rand(5, 2) < 0.3, torch.tensor([3, 5])
        batch_sizes = pack_padded_sequence(x, [5, 3]).batch_sizes
    for call in (
        lambda each: gru(x, reset=each(reset))[0],
        lambda each: gru(x, lengths=each(lengths))[0],
        lambda each: gru(PackedSequence(x.flatten(0, 1)[:8], each(batch_sizes)))[0].data,
    ):
        found, wanted = (
            gradients(partial(call, each), list(gru.parameters())) for each in (lambda t: t, copied)
        )
        assert all(map(torch.equal, found, wanted))


def copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def test_an_error_that_inference_mode_has_no_part_in():
    gru = fastrnn.GRU(4, 3)
    with torch.inference_mode():
        x = torch.randn(5, 2, 4)
    gru.weight_hh_l0 = torch.nn.Parameter(torch.randn(9, 4))
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have shape"):
        gru(x)
    with pytest.raises(RuntimeError, match="weight_hh_l0 must have shape"):
        gru(x.clone())
