"""The reference is torch.nn in float64, and what it saves is what the cells are made of."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import KERNELS, assert_matches
from layers import names_of, reference, reference_ops
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.dispatch.reference import definition
from fastrnn.table import CELLS

T, N, I, H = 6, 4, 5, 7
LAYERS = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm_proj": (torch.nn.LSTM, {"proj_size": 3}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}
VARIANTS = list(itertools.product(LAYERS, (1, 2), (False, True), (False, True)))
each_variant = pytest.mark.parametrize(("name", "D", "packed", "bias"), VARIANTS)


def build(name: str, D: int, packed: bool, bias: bool) -> tuple:
    """A layer of torch.nn, its input and hx, and the arguments of the reference for the same."""
    kind, options = LAYERS[name]
    options = {**options, "bias": bias, "bidirectional": D == 2, "dtype": torch.float64}
    module = kind(I, H, **options)
    input = torch.randn(T, N, I, dtype=torch.float64)
    if packed:
        input = pack_padded_sequence(input, [T, 4, 4, 1])
        input = PackedSequence(input.data.requires_grad_(), input.batch_sizes)
    else:
        input.requires_grad_()
    data, batch_sizes = (input.data, input.batch_sizes) if packed else (input, None)
    h0 = torch.randn(D, N, module.proj_size or H, dtype=torch.float64, requires_grad=True)
    cell = name.removesuffix("_proj")
    c0 = None
    if cell == "lstm":
        c0 = torch.randn(D, N, H, dtype=torch.float64, requires_grad=True)
    hx = h0 if c0 is None else (h0, c0)
    weights = list(module.parameters())
    names = names_of(weights, bias, D)
    return module, input, hx, (data, batch_sizes, h0, c0, weights, cell, names)


def results_of(module: torch.nn.Module, input, hx) -> list[Tensor]:
    output, state = module(input, hx)
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(state if isinstance(state, tuple) else (state,))]


@each_variant
def test_equals_torch(name, D, packed, bias):
    module, input, hx, args = build(name, D, packed, bias)
    wanted = results_of(module, input, hx)
    results = reference.layer(*args)
    for actual, value in zip(results, wanted, strict=False):
        assert_matches(actual, value)
    assert (results[2].shape == (0,)) == (args[3] is None)
    for actual, value in zip(reference_ops.layer_inference(*args), results, strict=True):
        assert torch.equal(actual, value)
        assert not actual.requires_grad

    inputs = [t for t in (*args[:4], *args[4]) if t is not None and t.requires_grad]
    grads = [torch.randn_like(r) for r in wanted]
    actual = torch.autograd.grad(results[: len(grads)], inputs, grads)
    gradients = torch.autograd.grad(wanted, inputs, grads)
    for a, e in zip(actual, gradients, strict=True):
        assert_matches(a, e)

    saved = reference_ops.layer_forward(*args)
    grads = grads if len(grads) == 3 else [*grads, None]
    grad_input, grad_h0, grad_c0, grad_weights = reference_ops.layer_backward(
        *grads, None, None, saved[0], *saved[3:], True, True, True, *args
    )
    states = [grad_h0] if args[3] is None else [grad_h0, grad_c0]
    for a, e in zip([grad_input, *states, *grad_weights], gradients, strict=True):
        assert_matches(a, e)
    if args[3] is None:
        assert grad_c0.shape == (0,)


def stepped(rows: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, ...]:
    """(D, rows, ...) as one tensor (D, n_t, ...) for each time step."""
    return rows.split([N] * T if batch_sizes is None else batch_sizes.tolist(), 1)


@each_variant
def test_saves_the_planes_of_each_step(name, D, packed, bias):
    """gates, cells and hidden, row by row, satisfy the equations of the cell."""
    _, _, _, args = build(name, D, packed, bias)
    input, batch_sizes, h0, c0, weights, cell, _ = args
    output, _, _, gates, cells, hidden = reference_ops.layer_forward(*args)
    kind = CELLS[cell]
    rows = output.numel() // output.size(-1)
    assert gates.shape == (D, rows, kind.saved, H)
    assert cells.shape == ((D, rows, H) if kind.has_c else (0,))
    assert hidden.shape == ((D, rows, H) if name == "lstm_proj" else (0,))

    output = output.view(rows, D, -1).transpose(0, 1)
    if cell == "lstm":
        _, _, _, o = gates.unbind(2)
        h = o * cells.tanh()
        if name == "lstm_proj":
            assert_matches(hidden, h)
            h = torch.stack([h[d] @ weights[(d + 1) * len(weights) // D - 1].T for d in range(D)])
        assert_matches(output, h)
    elif cell == "gru":
        # n and q of a step come from its h, which the step before it left in the output
        outputs = stepped(output, batch_sizes)
        k = len(weights) // D
        for d, (t, planes) in itertools.product(range(D), enumerate(stepped(gates, batch_sizes))):
            r, z, n, q = planes[d].unbind(1)
            before = t + 1 if d else t - 1
            h = h0[d, : len(r)].clone()
            if 0 <= before < T:
                known = outputs[before][d, : len(r)]
                h[: len(known)] = known
            assert_matches(outputs[t][d], (1 - z) * n + z * h)
            w_hn, b_hn = weights[d * k + 1][2 * H :], weights[d * k + 3][2 * H :] if bias else None
            assert_matches(q, F.linear(h, w_hn, b_hn))
            assert ((r > 0) & (r < 1) & (z > 0) & (z < 1) & (n.abs() < 1)).all()


def test_cells_are_described():
    assert list(CELLS) == list(definition.STEPS)
    for name, cell in CELLS.items():
        x, h = torch.randn(2, cell.gates * H), torch.randn(2, H)
        c = torch.randn(2, H) if cell.has_c else None
        u = x if cell.split else None
        h_next, c_next, saved = definition.STEPS[name](x, u, h, c)
        assert h_next.shape == h.shape, name
        assert (c_next is not None) == cell.has_c
        assert [plane.shape for plane in saved] == [h.shape] * cell.saved


@pytest.mark.skipif(KERNELS is None, reason="nothing is compiled")
def test_cells_are_those_of_the_kernels():
    assert [tuple(cell)[:7] for cell in CELLS.values()] == KERNELS.cells()


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    _, _, _, (input, batch_sizes, h0, c0, weights, cell, names) = build(name, 2, True, True)

    def layer(input, h0, *weights):
        results = reference.layer(input, batch_sizes, h0, c0, weights, cell, names)
        return results[: 2 + (c0 is not None)]

    assert torch.autograd.gradcheck(
        layer, (input, h0, *weights), check_forward_ad=True, fast_mode=True
    )


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_second_derivatives_where_one_input_is_made_of_another(name):
    """The initial state is made of the input, and one weight serves twice: no way counts double."""
    ours, theirs = (
        getattr(library, name)(5, 5, bias=False).double() for library in (fastrnn, torch.nn)
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (ours, theirs):
        h = x.mean(0, keepdim=True).tanh()
        hx = (h, h * 2) if name == "LSTM" else h
        weights = dict(module.named_parameters())
        weights["weight_hh_l0"] = weights["weight_ih_l0"] * 1
        y, _ = torch.func.functional_call(module, weights, (x, hx))
        (grad,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        penalty = grad.square().sum() + y.sum()
        found.append(torch.autograd.grad(penalty, (x, module.weight_ih_l0)))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_second_derivatives_of_results_that_depend_on_nothing(name):
    """Where every step detaches, the last state depends on none of what has a gradient."""
    module, x = getattr(fastrnn, name)(4, 5).requires_grad_(False), torch.randn(3, 2, 4)
    h = torch.randn(1, 2, 5, requires_grad=True)
    for every, zero in ((1, True), (3, False)):
        _, state = module(x, (h, h) if name == "LSTM" else h, detach_every=every)
        last = state[0] if name == "LSTM" else state
        (plain,) = torch.autograd.grad(last.sum(), h, retain_graph=True)
        (grad,) = torch.autograd.grad(last.sum(), h, create_graph=True)
        assert_matches(grad, plain)
        assert bool((grad == 0).all()) is zero
