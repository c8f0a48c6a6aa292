"""The bits of a layer on a CPU: whatever is saved or computed together, in every instruction set.

tests/cpp/test_bits.cpp asks the same of all compilers.
"""

import pytest
import torch
from conftest import KERNELS
from torch import Tensor

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="no compiled kernels")
CELLS = ("LSTM", "GRU", "RNN")
T, N, I, H = 9, 9, 5, 37  # all numbers of rows in a tile; units that fill no register
# Of I and H. From 8 rows on, in float32 and float64, the small ones go through lanes of rows.
SIZES = [(I, H), (3, 1), (16, 2), (5, 4), (1, 7)]


def results(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output, final states and all gradients."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    y, state = module(x)
    states = state if isinstance(state, tuple) else (state,)
    y.square().sum().backward()
    return [y, *states, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", SIZES)
def test_bits_depend_on_no_other_row_and_on_nothing_saved(
    isa: str, size: tuple[int, int], cell: str, dtype: torch.dtype
):
    module = getattr(fastrnn, cell)(*size).to(dtype)
    x = torch.randn(T, N, size[0]).to(dtype)
    whole = module(x)[0]
    for rows in range(1, N + 1):
        saved = module(x[:, :rows])[0]
        with torch.no_grad():
            assert torch.equal(module(x[:, :rows])[0], saved)
        assert torch.equal(saved, whole[:, :rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_a_row_depend_on_no_other(
    isa: str, size: tuple[int, int], cell: str, dtype: torch.dtype
):
    """Of two directions: the number of rows decides which of them comes first to a step."""
    module = getattr(fastrnn, cell)(*size, bidirectional=True).to(dtype)
    x = torch.randn(T, 64, size[0]).to(dtype)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(module(x)[0].float().sin().sum(), x)[0]

    whole = gradient(x)
    for rows in (2, 13, 40):
        assert torch.equal(gradient(x[:, :rows]), whole[:, :rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_sets_that_multiply_and_add_at_once_agree(cell: str, dtype: torch.dtype):
    module = getattr(fastrnn, cell)(I, H, bidirectional=True).to(dtype)
    x = torch.randn(T, N, I, dtype=dtype)
    before = KERNELS.isa()
    found = []
    try:
        for name in KERNELS.cpu_features():
            KERNELS.set_isa(name)
            if name != "portable":
                found.append(results(module, x))
    finally:
        KERNELS.set_isa(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
