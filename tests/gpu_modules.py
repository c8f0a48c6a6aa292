"""Modules on CUDA tensors, and their results and gradients in float64 on the CPU."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from conftest import assert_matches
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn

# Skipped only where torch has no CUDA GPU; there, a backend that cannot run is a failure.
needs_gpu = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA GPU here"),
    pytest.mark.usefixtures("exact_products"),
]

DEVICE = "cuda"
BACKENDS = ["auto", "cuda", "triton", "cudnn", "reference"]
OURS = ["cuda", "triton"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
KINDS = {
    "LSTM": ("LSTM", {}),
    "LSTM-proj": ("LSTM", {"proj_size": 9}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
    "RNN-relu": ("RNN", {"nonlinearity": "relu"}),
}
FORMS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "packed": {"bidirectional": True, "bias": False},
}
I, H = 6, 33


def skip_unsupported(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels have no float64")


def tensors(results) -> list[Tensor]:
    return [t for t in tree_leaves(results) if torch.is_tensor(t) and t.is_floating_point()]


def module_of(kind: str, dtype: torch.dtype = torch.float32, **form) -> torch.nn.Module:
    """On the GPU; its weights are numbers of `dtype`."""
    name, more = KINDS[kind]
    module = getattr(fastrnn, name)(I, H, **form, **more)
    if kind == "RNN-relu":
        # The derivative jumps at 0, where rounding may choose either side: the first feature, 1 or
        # the first unit of the layer before, drives every unit clearly on or off.
        with torch.no_grad():
            for weight in module.parameters():
                weight *= 0.1
                if weight.dim() == 2 and len(weight) == H and weight.size(1) != H:
                    weight[:, 0] = 3 * weight[:, 0].sign()
                    weight[0, 0] = 3
    return module.to(dtype).to(DEVICE)


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """The same in float64 on the CPU."""
    return copy.deepcopy(module).cpu().double()


def run(module, x, hx=None, train: bool = True, rounded=None, **options) -> list[Tensor]:
    """Results, and unless told otherwise the gradients of the input and of every parameter, for
    gradients of all results that are the same on every device; `rounded` to a dtype or to that of
    the results."""
    packed = isinstance(x, PackedSequence)
    data = (x.data if packed else x).detach().requires_grad_(train)
    with contextlib.nullcontext() if train else torch.no_grad():
        results = tensors(module(x._replace(data=data) if packed else data, hx, **options))
    if not train:
        return results
    generator = torch.Generator().manual_seed(2)
    seeds = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    pairs = [(r, s.to(rounded or r.dtype).to(r)) for r, s in zip(results, seeds, strict=True)]
    outputs, seeds = zip(*((r, s) for r, s in pairs if r.requires_grad), strict=True)
    return [*results, *torch.autograd.grad(outputs, [data, *module.parameters()], seeds)]


def on_cpu(value):
    """Tensors in float64 on the CPU."""
    return tree_map_only(
        Tensor, lambda t: (t.double() if t.is_floating_point() else t).cpu(), value
    )


def example(form: str, dtype: torch.dtype, T: int = 7, N: int = 5):
    sizes = [(n, I) for n in (3, T, 1, 5)] if form == "packed" else [(T, N, I)]
    rows = [torch.randn(size).to(dtype).to(DEVICE) for size in sizes]
    for row in rows:
        row[..., 0] = 1
    return pack_sequence(rows, enforce_sorted=False) if form == "packed" else rows[0]


def expected(module, x, hx=None, **options) -> list[Tensor]:
    """What `run` gives in float64 on the CPU."""
    wide = PackedSequence(*map(on_cpu, x)) if isinstance(x, PackedSequence) else on_cpu(x)
    dtype = next(module.parameters()).dtype
    return run(twin(module), wide, on_cpu(hx), rounded=dtype, **on_cpu(options))


def assert_all_match(actual: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(actual) == len(wanted)
    for k, (a, e) in enumerate(zip(actual, wanted, strict=True)):
        assert_matches(a.cpu(), e, f"result {k}")
