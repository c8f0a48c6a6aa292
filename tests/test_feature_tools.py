"""reset, lengths, states and cut gradients under compilation, export, transforms and the ops."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from layers import layer, names_of, reference, reference_ops
from plain_loop import plain_loop
from test_features import each_backend, using
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, layers, state

import fastrnn

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


def differentiable(results) -> list[Tensor]:
    return [t for t in tree_leaves(results) if t is not None and t.requires_grad]


def gradients_of(results, module: torch.nn.Module) -> tuple[Tensor, ...]:
    loss = sum(t.square().sum() for t in differentiable(results))
    return torch.autograd.grad(loss, list(module.parameters()))


@pytest.mark.parametrize(
    ("name", "backend", "feature"),
    [("LSTM", "auto", feature) for feature in FEATURES]
    + [("GRU", "auto", "all"), ("RNN", "auto", "all"), ("LSTM", "reference", "all")],
)
def test_compile(name, backend, feature):
    torch._dynamo.reset()
    module = getattr(fastrnn, name)(4, 3, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, asked = torch.randn(5, 3, 4), FEATURES[feature](5, 3)
    with fastrnn.backend(backend):
        results, wanted = compiled(x, **asked), module(x, **asked)
        for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
            assert (a is None and e is None) or assert_matches(a, e) is None
        for a, e in zip(gradients_of(results, module), gradients_of(wanted, module), strict=True):
            assert_matches(a, e)


@each_feature
def test_export(feature):
    """For any T and N, with the features as arguments of the program."""
    module, asked = fastrnn.LSTM(4, 3, 2), FEATURES[feature](5, 3)
    T, N = torch.export.Dim("T"), torch.export.Dim("N")
    shapes = {"reset": {0: T, 1: N}, "lengths": {0: N}}
    dynamic = {"input": {0: T, 1: N}, **{k: shapes.get(k) for k in asked}}
    program = torch.export.export(module, (torch.randn(5, 3, 4),), asked, dynamic_shapes=dynamic)
    assert sum("fastrnn" in str(node.target) for node in program.graph.nodes) == 2
    for sizes in ((5, 3), (8, 2)):
        x, asked = torch.randn(*sizes, 4), FEATURES[feature](*sizes)
        results, wanted = program.module()(x, **asked), module(x, **asked)
        for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
            assert (a is None and e is None) or assert_matches(a, e) is None


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
    backward = (*grads, *saved, *needs, *args)
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
        *inputs, weights = function(*seeds, saved[0], *saved[3:], True, True, True, *call)
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
        function = [t for t in layer(*args, traced=traced) if t.requires_grad]
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
@layers
def test_gradients_of_one_result_alone(name, backend):
    """Of every step's c of one layer, say, when nothing else has a gradient."""
    module, x = getattr(fastrnn, name)(4, 3, 2, dtype=torch.float64), torch.randn(5, 2, 4).double()
    asked = {"lengths": torch.tensor([3, 5]), "return_states": True}
    with using("reference"):
        wanted = differentiable(module(x, **asked))
    with using(backend):
        results = differentiable(module(x, **asked))
    for result, target in zip(results, wanted, strict=True):
        seed, runs = torch.randn_like(target), []
        for t in (result, target):
            runs.append(
                torch.autograd.grad(
                    t, list(module.parameters()), seed, retain_graph=True, materialize_grads=True
                )
            )
        for a, e in zip(*runs, strict=True):
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


@layers
def test_transforms(name):
    """vmap over inputs, flags and lengths; per-sample gradients; forward mode."""
    module = getattr(fastrnn, name)(3, 2, dtype=torch.float64)
    x = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    reset, lengths = torch.rand(4, 5, 2) < 0.3, torch.randint(0, 6, (4, 2))
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def loss(parameters, x, reset, lengths):
        asked = {"reset": reset, "lengths": lengths, "return_states": True}
        asked |= {"detach_every": 2, "grad_clip": 0.05}
        _, final, states = functional_call(module, parameters, (x,), asked)
        return sum(t.sin().sum() for t in tree_leaves((final, states)) if t is not None)

    per_sample = torch.vmap(torch.func.grad(loss, (0, 1)), (None, 0, 0, 0))
    gradients, of_x = per_sample(parameters, x, reset, lengths)
    for k in range(4):
        x_k = x[k].clone().requires_grad_()
        value = loss(dict(module.named_parameters()), x_k, reset[k], lengths[k])
        wanted = torch.autograd.grad(value, [x_k, *module.parameters()])
        for a, e in zip([of_x[k], *(g[k] for g in gradients.values())], wanted, strict=True):
            assert_matches(a, e)

    tangent = torch.randn_like(x[0])

    def output(x, **asked):
        return module(x, lengths=lengths[0], reset=reset[0], **asked)[0]

    y, dy = torch.func.jvp(output, (x[0],), (tangent,))
    clipped, d_clipped = torch.func.jvp(lambda x: output(x, grad_clip=1e-3), (x[0],), (tangent,))
    assert_matches(clipped, y)
    assert_matches(d_clipped, dy)  # the forward derivative is that of the identity
    (of_x,) = torch.autograd.functional.vjp(output, x[0], torch.ones_like(y))[1:]
    assert_matches((of_x * tangent).sum(), dy.sum())


def test_low_precision():
    """bfloat16 is computed in float32; under autocast States have the dtype of the output."""
    for name in LAYERS:
        module, asked = getattr(fastrnn, name)(4, 3), FEATURES["all"](5, 3)
        x = torch.randn(5, 3, 4)
        wanted = tree_leaves(module.double()(x.double(), **asked))
        results = module.bfloat16()(x.bfloat16(), **asked)
        for a, e in zip(tree_leaves(results), wanted, strict=True):
            assert e is None or (a.dtype == torch.bfloat16 and assert_matches(a, e) is None)
        assert all(g.isfinite().all() for g in gradients_of(results, module))
        with torch.autocast("cpu", torch.bfloat16):
            output, _, states = module.float()(x, **asked)
        assert {t.dtype for t in tree_leaves(states) if t is not None} == {output.dtype}


def test_meta():
    module, asked = fastrnn.LSTM(4, 3, 2, bidirectional=True), FEATURES["lengths"](5, 3)
    asked["return_gates"] = True
    wanted = module(torch.randn(5, 3, 4), **asked)
    module, asked["lengths"] = module.to("meta"), asked["lengths"].to("meta")
    results = module(torch.randn(5, 3, 4, device="meta"), **asked)
    for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
        assert a.is_meta and a.shape == e.shape


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_step(name, batch_first):
    """Step by step the results of one call, with rows that begin anew."""
    module = getattr(fastrnn, name)(4, 3, 2, batch_first=batch_first)
    x, reset = torch.randn(5, 3, 4), torch.rand(5, 3) < 0.3
    hx = state(name, 2, 3, 3)
    form = (lambda t: t.transpose(0, 1)) if batch_first else (lambda t: t)
    output, final = module(form(x), hx, reset=form(reset))
    current = hx
    for t in range(5):
        y, current = module.step(x[t], current, reset[t])
        assert_matches(y, form(output)[t])
    for a, e in zip(tree_leaves(current), tree_leaves(final), strict=True):
        assert_matches(a, e)
    assert_matches(module.step(x[0])[0], form(module(form(x))[0])[0])


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
