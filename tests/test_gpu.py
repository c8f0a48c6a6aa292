"""The modules on CUDA tensors against float64 on the CPU: every backend, kind, form and dtype."""

from __future__ import annotations

import pytest
import torch
from gpu_modules import (
    BACKENDS,
    DEVICE,
    DTYPES,
    FORMS,
    KINDS,
    OURS,
    H,
    I,
    assert_all_match,
    example,
    expected,
    module_of,
    needs_gpu,
    on_cpu,
    run,
    skip_unsupported,
    tensors,
    twin,
)
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fastrnn

pytestmark = needs_gpu


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, kind, form, dtype):
    skip_unsupported(backend, dtype)
    module, x = module_of(kind, dtype, **FORMS[form]), example(form, dtype)
    wanted = expected(module, x)
    with fastrnn.backend(backend):
        actual = run(module, x)
        assert_all_match(actual, wanted)
        count = len(run(module, x, train=False))
        assert_all_match(run(module, x, train=False), wanted[:count])
    assert all(t.dtype == dtype and t.is_cuda for t in actual)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("backend", OURS)
def test_tf32_is_obeyed(backend, tf32):
    """Without it no product of 10 bits is to be seen in the result."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    module, x = module_of("GRU"), torch.randn(3, 64, I, device=DEVICE)
    wanted = run(twin(module), on_cpu(x), train=False)[0]
    with fastrnn.backend(backend):
        output = run(module, x, train=False)[0]
    error = (output.cpu() - wanted).abs().max().item()
    assert error < (2e-3 if tf32 else 2e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("backend", ["auto", *OURS, "reference"])
def test_features(backend, kind):
    module, x = module_of(kind, num_layers=2), torch.randn(6, 4, I, device=DEVICE)
    lengths = torch.tensor([6, 0, 3, 1])
    reset = torch.rand(6, 4) < 0.3
    for options in (
        {"lengths": lengths, "return_states": True, "return_gates": True},
        {"reset": reset, "detach_every": 2, "grad_clip": 0.01},
    ):
        there = tree_map_only(Tensor, lambda t: t.to(DEVICE), options)
        wanted = expected(module, x, **options)
        with fastrnn.backend(backend):
            assert_all_match(run(module, x, **there), wanted)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cells(backend, kind):
    cell, x = getattr(fastrnn, kind)(I, H, device=DEVICE), torch.randn(5, I, device=DEVICE)
    wanted = expected(cell, x)
    with fastrnn.backend(backend):
        assert_all_match(run(cell, x), wanted)


@pytest.mark.parametrize("kind", ["LSTM-proj", "GRU"])
@pytest.mark.parametrize("backend", OURS)
def test_results_repeat_and_rows_are_their_own(backend, kind):
    module, x = module_of(kind, torch.bfloat16), torch.randn(9, 40, I).bfloat16().to(DEVICE)
    with fastrnn.backend(backend):
        first, second = run(module, x), run(module, x)
        assert all(map(torch.equal, first, second))
        parts = [run(module, x[:, rows], train=False)[0] for rows in (slice(0, 3), slice(3, 40))]
    assert torch.equal(torch.cat(parts, 1), first[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend, kind):
    module, x = module_of(kind), torch.randn(6, 4, I, device=DEVICE)
    wanted = expected(module, x)
    for dtype in (torch.float16, torch.bfloat16):
        with fastrnn.backend(backend), torch.autocast(DEVICE, dtype):
            results = tensors(module(x))
        assert {t.dtype for t in results} == {dtype}
        assert_all_match(results, wanted[: len(results)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_eval_mode(backend):
    module, x = module_of("LSTM", num_layers=2, dropout=0.5).eval(), example("plain", torch.float32)
    wanted = expected(module, x)
    with fastrnn.backend(backend):
        assert_all_match(run(module, x), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", KINDS)
def test_small_layers(kind, dtype):
    """Every kernel of ours once: what compute-sanitizer watches."""
    with fastrnn.backend("cuda"):
        for form in ("stack", "packed"):
            run(module_of(kind, dtype, **FORMS[form]), example(form, dtype, T=3, N=17))
