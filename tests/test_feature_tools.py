"""reset, lengths, states and cut gradients under compilation, export, transforms and `step`."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from feature_calls import FEATURES, each_backend, each_feature, using
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, layers, state

import fastrnn


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
