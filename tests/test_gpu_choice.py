"""Which backend runs CUDA tensors, and what those say that cannot."""

from __future__ import annotations

import pytest
import torch
from gpu_modules import (
    BACKENDS,
    DEVICE,
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
)

import fastrnn
from fastrnn import dispatch
from fastrnn.call import Call
from fastrnn.dispatch import cuda, cudnn, gpu, triton
from fastrnn.table import weight_names

pytestmark = needs_gpu


def call_of(cell: str, x: torch.Tensor, h0: torch.Tensor) -> Call:
    """As much of a call as the choice looks at."""
    return Call(x, None, h0, None, [], cell, weight_names(True, False))


def test_auto_is_not_slower_than_torch_nn_by_construction():
    """It makes the same calls: parameters lie as cuDNN wants them, and a stack is one call."""
    for name in ("LSTM", "GRU", "RNN"):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(I, H, num_layers=2, device=DEVICE)
        ours = getattr(fastrnn, name)(I, H, num_layers=2, device=DEVICE)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(6, 4, I, device=DEVICE)
        assert_all_match(run(ours, x), on_cpu(run(theirs, x)))
        base = ours.weight_ih_l0.untyped_storage().data_ptr()
        assert all(p.untyped_storage().data_ptr() == base for p in ours.parameters())
        assert dispatch.choose(call_of(name.lower(), x, x)) is cudnn


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_auto_takes_what_was_faster(cell):
    """Where it was measured: on a GPU of compute capability 9 with compiled kernels."""
    module = getattr(fastrnn, cell)(I, 128, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(50, 3, I).bfloat16().to(DEVICE)
    hopper = torch.cuda.get_device_capability()[0] == 9
    h0 = x.new_zeros(1, 3, 128)
    assert dispatch.choose(call_of(cell.lower(), x, h0)) is (cuda if hopper else cudnn)
    assert_all_match(run(module, x), expected(module, x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors(backend):
    module = module_of("LSTM")
    x = torch.randn(3, 2, I, device=DEVICE)
    with fastrnn.backend(backend):
        with pytest.raises(RuntimeError, match="on the same device|tensors are on cpu; move them"):
            module(x.cpu())
        with pytest.raises(RuntimeError, match="on the same device"):
            module(x, (torch.zeros(1, 2, H), torch.zeros(1, 2, H, device=DEVICE)))
        with pytest.raises(RuntimeError, match="same device|tensors are on cpu"):
            module.cpu()(x.cpu(), (torch.zeros(1, 2, H, device=DEVICE), torch.zeros(1, 2, H)))


@pytest.mark.parametrize("backend", OURS)
def test_a_gpu_that_is_too_old(backend, monkeypatch):
    module, x = module_of("GRU"), example("plain", torch.float32)
    monkeypatch.setattr(gpu, "capability", lambda _: (7, 5))
    with (
        fastrnn.backend(backend),
        pytest.raises(RuntimeError, match=rf"'{backend}' cannot run: .*\(7, 5\)"),
    ):
        module(x)
    module(x)  # "auto" goes on


def test_everything_can_run_here():
    """On a machine that `make gpu` is meant for nothing is missing."""
    assert cuda.status() is None and triton.status() is None
    assert set(fastrnn.backends().values()) == {"usable"}
