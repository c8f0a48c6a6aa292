"""Tools of PyTorch around a module, and memory that is not torch's own: as with `torch.nn`."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from conftest import assert_matches
from torch import nn
from torch.nn.modules import module as hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves
from torch_pairs import assert_same_results, everything, example, gradients, pair

import fastrnn

OPTIMIZERS = {
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, fused=True),
    "adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
}


def step(module: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    tree_leaves(module(x))[0].square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@everything
def test_optimizers_and_an_average(name, kind):
    """In float64: Adam's first steps are as large for a tiny gradient as for any."""
    frames = [example(name, dtype=torch.float64) for _ in range(4)]
    results = []
    for module in pair(name, 4, 3, dtype=torch.float64):
        optimizer = OPTIMIZERS[kind](module.parameters())
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for x in frames:
            step(module, x, optimizer)
            average.update_parameters(module)
        results.append([*module.parameters(), *tree_leaves(average(frames[0]))])
    assert_same_results(*results)


@everything
def test_hooks_on_all_modules(name):
    x, seen = example(name).requires_grad_(), []
    handles = [
        hooks.register_module_forward_pre_hook(lambda m, given: seen.append(given)),
        hooks.register_module_forward_hook(lambda m, given, results: seen.append(results)),
        hooks.register_module_full_backward_pre_hook(lambda m, came: seen.append(came)),
        hooks.register_module_full_backward_hook(lambda m, goes, came: seen.append((goes, came))),
    ]
    try:
        results = []
        for module in pair(name, 4, 3):
            tree_leaves(module(x))[0].sum().backward()
            results.append(list(seen))
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    assert len(results[0]) == 4
    assert_same_results(*results)


def at_odd_address(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers three bytes behind an address of NumPy's."""
    memory = np.zeros(4 * tensor.numel() + 3, np.uint8)
    array = np.ndarray(tensor.shape, np.float32, memory, offset=3)
    array[...] = tensor.detach().numpy()
    assert array.ctypes.data % 4
    return torch.from_numpy(array)


@everything
def test_floats_at_odd_addresses(name):
    module, x = pair(name, 4, 3)[0], example(name)
    wanted = [*tree_leaves(module(x)), *gradients(lambda: module(x), list(module.parameters()))]
    for key, weight in list(module.named_parameters()):
        setattr(module, key, nn.Parameter(at_odd_address(weight)))
    moved = at_odd_address(x)
    found = [*tree_leaves(module(moved))]
    found += gradients(lambda: module(moved), list(module.parameters()))
    with torch.no_grad():
        found += tree_leaves(module(moved))
    for a, e in zip(found, [*wanted, *wanted], strict=False):
        assert_matches(a, e)
    if not name.endswith("Cell"):
        stream = fastrnn.Streamer(module, 3)
        assert_matches(stream(moved[0]), module(x[:1])[0][0])
        stream.reset()
        assert_matches(torch.tensor(stream(moved[0].numpy())), module(x[:1])[0][0])


@everything
def test_weights_that_are_mapped_from_a_file(name, tmp_path):
    module, other = pair(name, 4, 3)
    torch.save(module.state_dict(), tmp_path / "weights")
    saved = torch.load(tmp_path / "weights", mmap=True)
    x = torch.from_file(str(tmp_path / "x"), shared=True, size=60)[: example(name).numel()]
    x = x.uniform_().view(example(name).shape)
    module.load_state_dict(saved, assign=True)
    assert_same_results(module(x), other(x))
    with torch.no_grad():
        assert_same_results(module(x), other(x))


@everything
def test_executors_of_asyncio(name):
    module, frames = pair(name, 4, 3)[0], [example(name) for _ in range(12)]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return tree_leaves(module(x))[0].clone()

    async def all_at_once() -> list[torch.Tensor]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, run, x) for x in frames))

    for found, x in zip(asyncio.run(all_at_once()), frames, strict=True):
        assert torch.equal(found, run(x))
