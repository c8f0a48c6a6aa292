"""What a call that does not fit raises, against torch.nn."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch_pairs import (
    assert_same_error,
    assert_same_results,
    cells,
    example,
    layers,
    pair,
    state,
)

import fastrnn


@layers
def test_errors_of_the_call(name):
    def check(x, hx=None, **kwargs) -> None:
        assert_same_error(lambda library: getattr(library, name)(4, 3, **kwargs)(x, hx))

    x = torch.randn(5, 2, 4)
    for wrong in (x[0, 0], x[None], torch.randn(()), x.double(), x.long(), x[..., :3], x[:0]):
        check(wrong)
    check(x[:, :0], batch_first=True)
    check(x.transpose(0, 1)[:, :0], batch_first=True)
    for shape in ((2, 3), (1, 2, 1, 3), (1, 3, 3), (1, 2, 4), (2, 2, 3), (1, 0, 3)):
        check(x, state(name, *shape))
        check(x, state(name, *shape), bidirectional=True, num_layers=2, batch_first=True)
    for shape in ((3,), (1, 2, 3), (2, 3), (1, 4)):
        check(x[0], state(name, *shape))
    if name == "LSTM":
        check(x, state(name, 1, 2, 3), proj_size=2)
        check(x, state(name, 1, 2, 2, c_width=4), proj_size=2)
        check(x, torch.randn(1, 2, 3))
        check(x, (torch.randn(1, 2, 3),))
        check(x, (torch.randn(1, 2, 3),) * 3)
    else:
        check(x, (torch.randn(1, 2, 3),) * 2)
    check([1.0])
    check(None)


@layers
def test_mixed_dtypes_and_devices(name):
    """torch.nn raises RuntimeError too, with messages of the kernels it happens to call."""
    module = getattr(fastrnn, name)(4, 3)
    x, hx = example(name), state(name, 1, 3, 3)
    double, meta = [
        tuple(s.to(to) for s in hx) if name == "LSTM" else hx.to(to)
        for to in (torch.float64, "meta")
    ]
    both = "must have the same dtype, but got torch.float32 and torch.float64 of"
    with pytest.raises(RuntimeError, match=f"{both} h0"):
        module(x, double)
    if name == "LSTM":
        with pytest.raises(RuntimeError, match=f"{both} c0"):
            module(x, (hx[0], double[1]))
    for args in ((x, meta), (x.to("meta"), hx), (x.to("meta"),)):
        with pytest.raises(RuntimeError, match="to be on the same device"):
            module(*args)
    module.bias_hh_l0 = torch.nn.Parameter(module.bias_hh_l0.double())
    with pytest.raises(RuntimeError, match=f"{both} bias_hh_l0$"):
        module(x)
    deep = getattr(fastrnn, name)(4, 3, 3, bidirectional=True)
    deep.weight_hh_l2_reverse = torch.nn.Parameter(deep.weight_hh_l2_reverse.double())
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(RuntimeError, match=f"{both} weight_hh_l2_reverse$"),
        ):
            deep(x)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]
MIXED = [
    (one, c, way)
    for one, c, way in product(DTYPES[:4], DTYPES, ["eager", "compiled", "autocast"])
    if one is not c and (way != "autocast" or torch.float64 in (one, c))  # it casts all others
]


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("dtype, of_c, way", MIXED, ids=str)
def test_a_c_of_another_dtype(dtype, of_c, way, unbatched):
    """An LSTMCell of torch.nn computes it. Of all other mixes it raises RuntimeError, too."""
    ours, theirs = (cell.to(dtype) for cell in pair("LSTMCell", 4, 3))
    if way == "compiled":
        torch.compiler.reset()
        ours = torch.compile(ours, backend="eager", fullgraph=True)
    h, c = torch.randn(2, 3).to(dtype), torch.randn(2, 3).to(of_c)
    given = [each[0] if unbatched else each for each in (torch.randn(2, 4).to(dtype), h, c)]
    for grad in (True, False):
        results = []
        for cell in (ours, theirs):
            leaves = [each.clone().requires_grad_(grad) for each in given[:2]]
            with (
                torch.set_grad_enabled(grad),
                torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"),
            ):
                states = cell(leaves[0], (leaves[1], given[2]))
            if grad:
                states[0].float().sum().backward()
            results.append((states, [each.grad for each in leaves]))
        assert [each.dtype for each in results[0][0]] == [each.dtype for each in results[1][0]]
        assert_same_results(*results)


@layers
def test_weights_of_a_wrong_shape(name):
    x = example(name)
    for weight in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        for cut in (slice(1, None), slice(0, 0)):
            module = getattr(fastrnn, name)(4, 3)
            setattr(module, weight, torch.nn.Parameter(getattr(module, weight)[cut].detach()))
            with pytest.raises(RuntimeError):
                module(x)


@layers
def test_packed_errors(name):
    x = torch.randn(5, 2, 4)
    packed = pack_padded_sequence(x, [3, 5], enforce_sorted=False)
    module = getattr(fastrnn, name)(4, 3)
    type_of = RuntimeError if name == "LSTM" else ValueError  # of torch.nn
    with pytest.raises(type_of, match="does not match weight dtype"):
        module(packed.double())
    with pytest.raises(RuntimeError, match="must be equal to input_size. Expected 5, got 4"):
        getattr(fastrnn, name)(5, 3)(packed)
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        module(PackedSequence(x, packed.batch_sizes))
    # torch.nn permutes first, and takes the hx of a batch that is too large
    for shape in ((1, 3, 3), (1, 1, 3), (1, 2, 4), (2, 2, 3), (2, 3)):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module(packed, state(name, *shape))
    for sizes in ([1, 2, 2, 2, 1], [2, 2, 2, 2, 2, -2], [2, 2, 2, 1]):
        with pytest.raises(RuntimeError):
            module(PackedSequence(packed.data, torch.tensor(sizes)))
    with pytest.raises(RuntimeError):
        module(PackedSequence(packed.data, packed.batch_sizes.int()))
    if name == "LSTM":
        with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
            module(packed, (torch.randn(1, 2, 3),) * 3)


@cells
def test_errors_of_cells(name):
    def check(x, hx=None) -> None:
        assert_same_error(lambda library: getattr(library, name)(4, 3)(x, hx))

    x = torch.randn(2, 4)
    for wrong in (x[None], torch.randn(()), x[:, :3], x[0, :3]):
        check(wrong)
    for shape in ((2, 4), (1, 3), (3, 3), (2, 2, 3), ()):
        check(x, state(name, *shape) if shape else state(name, 1, 2, 3))
    check(x[0], state(name, 4))
    if name == "LSTMCell":
        check(x, (torch.randn(2, 3),))
        check(x, (torch.randn(2, 3),) * 3)
        check(x, (torch.randn(2, 3), torch.randn(2, 4)))
    module = getattr(fastrnn, name)(4, 3)
    for args in ((x, state(name, 3)), (x[0], state(name, 1, 3))):
        with pytest.raises(RuntimeError, match="should also be"):
            module(*args)
    for args in ((x.double(),), (x, state(name, 2, 3, dtype=torch.float64))):
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            module(*args)


def test_unknown_nonlinearity_of_a_cell():
    assert_same_error(lambda library: library.RNNCell(4, 3, nonlinearity="selu")(torch.randn(2, 4)))


def test_one_tensor_is_no_state_of_an_lstm_cell():
    for library in (fastrnn, torch.nn):
        cell = library.LSTMCell(3, 4)
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(TypeError, match="hx.* must be"):
                cell(torch.randn(2, 3), torch.randn(2, 4))
            assert cell(torch.randn(2, 3))[0].shape == (2, 4)
