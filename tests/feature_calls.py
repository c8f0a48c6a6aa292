"""Calls that ask for reset, lengths, states and cut gradients, of modules and of the op."""

from __future__ import annotations

import contextlib

import pytest
import torch
from layers import names_of

import fastrnn
from fastrnn.dispatch import cpu

each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


@contextlib.contextmanager
def using(backend: str):
    """The backend; "cpu" is the ops, in plain PyTorch where no kernels are built."""
    not_built = cpu.not_built
    cpu.not_built = None
    try:
        with fastrnn.backend(backend):
            yield
    finally:
        cpu.not_built = not_built


FEATURES = {
    "reset": lambda T, N: {"reset": torch.arange(T * N).view(T, N) % 3 == 1},
    "lengths": lambda T, N: {"lengths": (torch.arange(N) * 2) % (T + 1)},
    "states": lambda T, N: {"return_states": True},
    "gates": lambda T, N: {"return_gates": True},
    "detach_every": lambda T, N: {"detach_every": 2},
    "grad_clip": lambda T, N: {"grad_clip": 0.05},
    "all": lambda T, N: {
        **FEATURES["reset"](T, N),
        **FEATURES["lengths"](T, N),
        "return_gates": True,
        "detach_every": 2,
        "grad_clip": 0.05,
    },
}
each_feature = pytest.mark.parametrize("feature", FEATURES)
CELLS = ["lstm", "lstm_proj", "gru", "rnn_tanh"]


def layer_arguments(
    name: str, D: int = 1, sizes: tuple[int, ...] = (4, 3, 2, 3), dtype: torch.dtype = torch.float64
) -> tuple:
    """The arguments of the op, with every feature that D directions allow; sizes: T, N, I, H."""
    T, N, I, H = sizes
    mode = name.removesuffix("_proj").upper()
    module = torch.nn.RNNBase(
        mode, I, H, bidirectional=D == 2, proj_size=2 if name == "lstm_proj" else 0
    ).to(dtype)
    h0 = torch.randn(D, N, module.proj_size or H, dtype=dtype)
    c0 = torch.randn(D, N, H, dtype=dtype) if mode == "LSTM" else None
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    x = torch.randn(T, N, I, dtype=dtype, requires_grad=True)
    reset = FEATURES["reset"](T, N)["reset"] if D == 1 else None
    lengths = (torch.arange(N) * 2 + T // 2) % (T + 1)
    args = (x, None, h0.requires_grad_(), c0 if c0 is None else c0.requires_grad_(), weights)
    return *args, mode.lower(), names_of(weights, True, D), reset, lengths, 2, 0.05
