"""Per-sample gradients by the expanded weights of `torch.nn.utils`: those of torch.nn.

Their `__torch_function__` knows torch's own recurrent functions alone. On float32 input without
gradients an LSTM of torch.nn goes on to oneDNN, which it does not know: float64 is tested.
"""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from torch.func import functional_call, grad
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import example, layers, pair, state

N = 3
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}]


def per_sample(module, *inputs) -> list[torch.Tensor]:
    batch_first = module.batch_first
    call = call_for_per_sample_grads(
        module, batch_size=N, loss_reduction="sum", batch_first=batch_first
    )
    leaves = tree_leaves(call(*inputs))
    results = [each for each in leaves if each is not None and each.requires_grad]
    sum(each.sin().sum() for each in results).backward()
    found = [p.grad_sample for p in module.parameters()]
    for p in module.parameters():
        p.grad_sample = None
    return [*results, *found]


@layers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["padded", "with hx", "sorted", "unsorted"])
def test_they_are_those_of_torch(name, options, form):
    modules = pair(name, 4, 3, **options, dtype=torch.float64)
    x = example(name, dtype=torch.float64)
    hx = state(name, len(modules[0]._flat_weights) // 4, N, 3, dtype=torch.float64)
    inputs = (x.transpose(0, 1) if options else x,)
    if form == "with hx":
        inputs = (*inputs, hx)
    elif form != "padded":
        lengths = [5, 3, 2] if form == "sorted" else [2, 5, 3]
        inputs = (pack_padded_sequence(x, lengths, enforce_sorted=form == "sorted"), hx)
    for a, e in zip(*(per_sample(module, *inputs) for module in modules), strict=True):
        assert_matches(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_they_are_the_gradients_of_each_sample(dtype):
    """One sample at a time, and before and after an ordinary call."""
    module, _ = pair("GRU", 4, 3, dtype=dtype)
    x = example("GRU", dtype=dtype)
    before = module(x)[0]
    y, _, *found = per_sample(module, x)
    assert_matches(y, before)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, x):
        return sum(each.sin().sum() for each in functional_call(module, parameters, (x,)))

    for k in range(N):
        wanted = grad(loss)(parameters, x[:, k : k + 1])
        for a, e in zip(found, wanted.values(), strict=True):
            assert_matches(a[k], e)
    assert torch.equal(module(x)[0], before)


@layers
def test_what_only_ours_can_do_raises(name, good):
    module, theirs = pair(name, 4, 3)
    call = call_for_per_sample_grads(module, batch_size=N, batch_first=False)
    with pytest.raises(
        RuntimeError, match="return_states cannot be used here: .* expanded weights"
    ):
        call(example(name), return_states=True)
    good((name, module, theirs))
