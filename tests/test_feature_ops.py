"""reset, lengths, states and cut gradients of the ops: results, first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from feature_calls import CELLS, each_backend, layer_arguments, using
from layers import layer, reference, reference_ops
from plain_loop import plain_loop
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch_pairs import layers

import fastrnn


@pytest.mark.parametrize(("name", "D"), [*((name, 1) for name in CELLS), ("lstm_proj", 2)])
def test_opcheck(name, D):
    args = layer_arguments(name, D)
    torch.library.opcheck(torch.ops.fastrnn.layer_inference, args)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward, args)
    args = torch.utils._pytree.tree_map_only(Tensor, torch.detach, args)
    output, h_n, c_n, gates, cells, hidden = torch.ops.fastrnn.layer_forward(*args)
    grads = [torch.randn_like(t) if t.numel() else None for t in (output, h_n, c_n, cells)]
    saved = (output, gates, cells, hidden)
    needs = (True, True, True)
    backward = (*grads, None, *saved, *needs, *args)
    torch.library.opcheck(torch.ops.fastrnn.layer_backward, backward)


@pytest.mark.parametrize(
    ("D", "sizes", "dtype"),
    [
        (1, (12, 1, 5, 17), torch.float64),
        (2, (9, 33, 6, 63), torch.float32),
        (1, (7, 7, 3, 100), torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CELLS)
def test_ops_match_float64(name, D, sizes, dtype, isa):
    """Every result and gradient in sizes that fill registers, on every instruction set."""
    args = layer_arguments(name, D, sizes, dtype)
    args = torch.utils._pytree.tree_map_only(Tensor, torch.detach, args)
    wide = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, args
    )
    wanted = reference_ops.layer_forward(*wide)
    results = torch.ops.fastrnn.layer_forward(*args)
    for k, (a, e) in enumerate(zip(results, wanted, strict=True)):
        assert_matches(a, e, f"result {k}")
    for a, e in zip(torch.ops.fastrnn.layer_inference(*args), wanted, strict=False):
        assert_matches(a, e, "inference")
    grads = [torch.randn_like(results[k]) if results[k].numel() else None for k in (0, 1, 2, 4)]
    gradients = []
    for function, call, saved, seeds in (
        (torch.ops.fastrnn.layer_backward, args, results, grads),
        (
            reference_ops.layer_backward,
            wide,
            wanted,
            [g if g is None else g.double() for g in grads],
        ),
    ):
        *inputs, weights = function(*seeds, None, saved[0], *saved[3:], True, True, True, *call)
        gradients.append([*inputs, *weights])
    for k, (a, e) in enumerate(zip(*gradients, strict=True)):
        assert_matches(a, e, f"gradient {k}")


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_op_has_the_derivative_of_the_layer(name, traced):
    """Compiled graphs call the op, eager mode the Function, transforms the reference."""
    args = layer_arguments(name)
    inputs = [t for t in (args[0], args[2], args[3], *args[4]) if t is not None]
    with using("reference"):
        wanted = [t for t in layer(*args, traced=traced) if t.requires_grad]
    with using("cpu"):
        function = [t for t in layer(*args, traced=traced) if t is not None and t.requires_grad]
    op = torch.ops.fastrnn.layer_forward(*args)
    assert not op[3].requires_grad and not op[5].requires_grad
    op = [t for t in op[: 5 if traced else 3] if t.requires_grad and t.numel()]
    wanted = [t for t in wanted if t.numel()]
    function = [t for t in function if t.numel()]
    seeds = [torch.randn_like(t) for t in wanted]
    expected = torch.autograd.grad(wanted, inputs, seeds)
    for results in (function, op):
        for a, e in zip(torch.autograd.grad(results, inputs, seeds), expected, strict=True):
            assert_matches(a, e)


@each_backend
@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives(name, backend):
    *args, reset, lengths, _, _ = layer_arguments(name)
    c0, rest_of_call = args[3], args[5:]

    def function(x, h0, *rest):
        c, weights = (None, rest) if c0 is None else (rest[0], rest[1:])
        call = (x, None, h0, c, weights, *rest_of_call, reset, lengths)
        y, h_n, c_n, _, cells = layer(*call, traced=True)
        return (y, h_n, c_n, cells) if c0 is not None else (y, h_n)

    inputs = [t for t in (args[0], args[2], c0, *args[4]) if t is not None]
    with using(backend):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_backend
@layers
@pytest.mark.parametrize("limits", [{"detach_every": 2}, {"detach_every": 2, "grad_clip": 0.1}])
def test_second_derivatives_of_cut_gradients(name, limits, backend):
    """Which are no derivatives of the results: against the loop, with create_graph."""
    module = getattr(fastrnn, name)(3, 2, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    h0 = torch.zeros(1, 2, 2, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    with using(backend):
        ours = module(x, **limits)[0]
    loop = plain_loop(module, parameters, x, h0, h0 if name == "LSTM" else None, **limits)[0]
    inputs, seed, runs = [x, *parameters.values()], torch.randn_like(ours), []
    for output in (ours, loop):
        # clamped with one path back to the layer; the gradient of sin takes a second
        loss = (output if "grad_clip" in limits else output.sin()) * seed
        first = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        runs.append([*first, *torch.autograd.grad(penalty, inputs)])
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_reference_cuts_packed_gradients_too(name, D):
    """Packed rows as the same rows padded; only the modules ask for padded input."""
    *args, _, _, _, _ = layer_arguments(name, D)
    lengths = torch.tensor([4, 2, 1])
    packed = pack_padded_sequence(args[0], lengths)
    data, batch_sizes = packed.data, packed.batch_sizes
    inputs = [t for t in (args[0], args[2], args[3], *args[4]) if t is not None]
    runs = []
    for x, sizes, of_rows in ((data, batch_sizes, None), (args[0], None, lengths)):
        results = reference.layer(x, sizes, *args[2:], None, of_rows, 2, 0.05)
        final = [t for t in results[1:] if t.numel()]
        rows = results[0].square().sum() + sum(t.sin().sum() for t in final)
        runs.append([*final, *torch.autograd.grad(rows, inputs)])
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)
