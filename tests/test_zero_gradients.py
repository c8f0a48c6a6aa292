"""Steps whose derivatives are all zero, which backward leaves out of its products: with a loss on
one step, on a final state, cut by `detach_every`. No result depends on it, NaNs included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import KERNELS, assert_matches
from layers import reference_ops
from op_cases import DTYPES, Case, arguments, assert_gradients, converted
from test_threads import threads
from torch import Tensor, nn

import fastrnn

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")
OPS = torch.ops.fastrnn
CELLS = ["lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu"]
LOSSES = ["last", "middle", "h_n", "c_n", "nothing"]


def cotangents(case: Case, results: tuple, batch_sizes: Tensor | None, loss: str) -> list:
    """Gradients of output, h_n and c_n, with zeros for all that `loss` does not read."""
    output, h_n, c_n = results[:3]
    grads = [torch.zeros_like(output), torch.zeros_like(h_n)]
    grads.append(torch.zeros_like(c_n) if c_n.numel() else None)
    if loss in ("h_n", "c_n"):
        chosen = grads[1 + (loss == "c_n" and case.cell.startswith("lstm"))]
        chosen.copy_(torch.randn(chosen.shape, dtype=torch.float64))
    if loss in ("last", "middle"):
        rows = torch.full((case.T,), case.N) if batch_sizes is None else batch_sizes
        ends = rows.cumsum(0).tolist()
        step = case.T - 1 if loss == "last" else case.T // 2
        flat = grads[0].view(-1, output.shape[-1])
        flat[ends[step] - rows[step] : ends[step]] = torch.randn(
            int(rows[step]), output.shape[-1], dtype=torch.float64
        ).to(output.dtype)
    return grads


def backward(function, args: tuple, results: tuple, grads: list, *limits) -> tuple:
    """A layer_backward with what belongs to one forward call; limits: reset and what follows it."""
    output, _, _, *saved = results
    return function(*grads, None, None, output, *saved, True, True, True, *args, *limits)


def flat(gradients: tuple) -> list[Tensor]:
    return [*gradients[:3], *gradients[3]]


@pytest.mark.parametrize("loss", ["middle", "c_n"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype, packed", list(zip(DTYPES, (False, True, True), strict=True)))
def test_matches_float64(cell, loss, dtype, packed, isa):
    """Chunks of several steps, so that some are skipped as a whole; limits of the gradient."""
    case = Case(cell, T=61, N=11, D=2, packed=packed, dtype=dtype)
    args = arguments(case)
    results = OPS.layer_forward(*args)
    wide = converted(args, torch.float64)
    exact = reference_ops.layer_forward(*wide)
    grads = cotangents(case, results, args[1], loss)
    wide_grads = [None if g is None else g.double() for g in grads]
    for limits in ((), (None, None, 7, 0.0), (None, None, 0, 0.01)):
        wanted = backward(reference_ops.layer_backward, wide, exact, wide_grads, *limits)
        assert_gradients(backward(OPS.layer_backward, args, results, grads, *limits), wanted)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_and_resets_match_float64(cell, loss, isa):
    case = Case(cell, T=40, N=9, D=1)
    args = arguments(case)
    reset = torch.rand(case.T, case.N) < 0.1
    lengths = torch.randint(0, case.T + 1, (case.N,))
    for limits in ((reset, None, 0, 0.0), (None, lengths, 0, 0.0), (reset, lengths, 9, 0.1)):
        results = OPS.layer_forward(*args, *limits)
        wanted = reference_ops.layer_forward(*args, *limits)
        grads = cotangents(case, results, None, loss)
        actual = backward(OPS.layer_backward, args, results, grads, *limits)
        assert_gradients(
            actual, backward(reference_ops.layer_backward, args, wanted, grads, *limits)
        )


SHAPES = [
    Case(T=61, N=11, I=6, H=17),
    Case(T=61, N=11, I=6, H=17, packed=True),
    Case(T=280, N=1, I=3, H=330),  # units shared by threads
    Case(T=5, N=300, I=3, H=20),  # chunks of one step
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_bit_depends_on_it(cell, loss, shape, dtype):
    """With an infinite number in the last column of the input no step can be left out; of the
    results only the gradient of that column's weights differs. On any number of threads."""
    case = replace(shape, cell=cell, dtype=dtype)
    args = arguments(case)
    results = OPS.layer_forward(*args)
    grads = cotangents(case, results, args[1], loss)
    with threads(1):
        wanted = backward(OPS.layer_backward, args, results, grads)
    input = args[0].clone()
    input[..., -1] = torch.inf
    of_w_ih = {3 + k * (len(args[4]) // 2) for k in range(2)}
    for count in (1, 2, 6):
        with threads(count):
            skipped = backward(OPS.layer_backward, args, results, grads)
            whole = backward(OPS.layer_backward, (input, *args[1:]), results, grads)
        for k, (w, a, b) in enumerate(zip(*map(flat, (wanted, skipped, whole)), strict=True)):
            assert torch.equal(a, w)
            if k in of_w_ih:
                assert not b[:, -1].isfinite().any()
                a, b = a[:, :-1], b[:, :-1]
            assert torch.equal(a, b)


@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("N, H, count", [(8, 17, 2), (1, 330, 3)], ids=["rows", "units"])
def test_zero_times_what_is_not_finite_is_nan(cell, poison, N, H, count, isa):
    """Everything that backward multiplies with derivatives, of which there are none: NaNs are where
    they are if infinite numbers in the last column of the input keep every step."""
    case = Case(cell, T=40, N=N, I=5, H=H, D=1, dtype=torch.float32)
    args = arguments(case)
    input, batch_sizes, h0, c0, weights, *rest = args
    output, h_n, c_n, *saved = OPS.layer_forward(*args)
    grads = cotangents(case, (output, h_n, c_n), None, "nothing")

    def gradients(swap, input: Tensor) -> list[Tensor]:
        some = (input, batch_sizes, swap(h0), swap(c0), [swap(w) for w in weights], *rest)
        results = (swap(output), h_n, c_n, *map(swap, saved))
        with threads(count):
            return flat(backward(OPS.layer_backward, some, results, grads))

    assert not any(g.count_nonzero() for g in gradients(lambda t: t, input))
    for target in (input, output, h0, c0, *weights, *saved):
        if target is None or not target.numel() or target.dim() == 1:
            continue
        changed = target.clone()
        rows = changed.view(-1, changed.shape[-1])
        rows[len(rows) * 3 // 4, 0] = poison

        def swap(tensor, target=target, changed=changed):
            return changed if tensor is target else tensor

        whole = swap(input).clone()
        whole[..., -1] = torch.inf
        actual, wanted = gradients(swap, swap(input)), gradients(swap, whole)
        assert any(g.isnan().any() for g in actual)
        actual[3], wanted[3] = actual[3][:, :-1], wanted[3][:, :-1]
        for a, w in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, w, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_nans_are_those_of_torch(cell):
    """Infinite input after the only step of the loss: gates are finite, and 0 inf is NaN."""
    theirs = getattr(nn, cell)(4, 6)
    ours = getattr(fastrnn, cell)(4, 6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(30, 2, 4)
    x[20, 1, 2] = torch.inf
    for module in (ours, theirs):
        module(x)[0][9].sum().backward()
    for a, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_matches(a.grad, w.grad)
    assert ours.weight_ih_l0.grad[:, 2].isnan().all()


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_long_sequences_with_a_loss_on_the_last_output(cell):
    """The gradient fades away; torch.nn has denormal numbers where we have zeros."""
    theirs = getattr(nn, cell)(4, 20)
    ours = getattr(fastrnn, cell)(4, 20)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(500, 3, 4)
    inputs = []
    for module in (ours, theirs):
        inputs.append(x.clone().requires_grad_())
        module(inputs[-1])[0][-1].sum().backward()
    for a, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_matches(a.grad, w.grad)
    actual, wanted = (i.grad for i in inputs)
    assert_matches(actual, wanted)
    assert not actual[:100].count_nonzero() and actual[-1].count_nonzero()
