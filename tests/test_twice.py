"""Derivatives of a backward call in closed form, against the reference, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import assert_matches
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn.call import Call
from fastrnn.dispatch import reference
from fastrnn.dispatch.reference import direction, twice
from fastrnn.dispatch.reference.steps import plus
from fastrnn.request import over_time
from fastrnn.results import Cotangents, Gradients, Needs, Saved
from fastrnn.table import CELLS, weight_names, weight_shapes

T, N, I, H = 5, 3, 2, 4
FEATURES = {
    "": {},
    "lengths": {"lengths": torch.tensor([5, 0, 3])},
    "reset": {"reset": torch.rand(T, N, generator=torch.Generator().manual_seed(0)) < 0.3},
    "detach_every": {"detach_every": 2},
    "grad_clip": {"grad_clip": 0.4},
    "packed": {"batch_sizes": torch.tensor([3, 3, 2, 1, 1])},
}
FEATURES["all"] = {k: v for each in [*FEATURES.values()][:5] for k, v in each.items()}
FEATURES["packed, cut"] = FEATURES["packed"] | {"detach_every": 2, "grad_clip": 0.4}


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Of two steps, as if the planes were large."""
    monkeypatch.setattr(direction, "_AT_ONCE", 2 * N * H)


@pytest.fixture
def no_reference(monkeypatch):
    """The reference must not run."""

    def fail(*_):
        raise AssertionError("the reference ran")

    for name in ("run", "differentiable_gradients"):
        monkeypatch.setattr(reference, name, fail)


def made(cell: str, D: int, features: dict, bias: bool = True, projected: bool = False) -> Call:
    kind, P = CELLS[cell], 3 if projected else H
    names, shapes = weight_names(bias, projected), weight_shapes(CELLS[cell], I, H, P)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    sizes = features.get("batch_sizes")
    input = random(T, N, I) if sizes is None else random(int(sizes.sum()), I)
    weights = [random(*shapes[name]) for _ in range(D) for name in names.split()]
    c0 = random(D, N, H) if kind.has_c else None
    call = Call(input, None, random(D, N, P), c0, weights, cell, names)
    return call._replace(**features)


def flat(call: Call, found: Gradients) -> list[torch.Tensor | None]:
    return [found.input, found.h0, *([] if call.c0 is None else [found.c0]), *found.weights]


@pytest.mark.parametrize(
    "features, D",
    [(name, D) for name in FEATURES for D in (1, 2) if D == 1 or "reset" not in FEATURES[name]],
)
@pytest.mark.parametrize("cell", [*CELLS, "lstm projected", "gru without biases"])
def test_closed_form(cell, D, features, monkeypatch):
    """Of several that arrive and several directions, also of all steps at once."""
    name, *variant = cell.split()
    variant = {"bias": "without" not in variant, "projected": "projected" in variant}
    call = made(name, D, FEATURES[features], **variant)
    results = reference.run(call, True)
    saved = over_time(call, Saved(results.output, *results[3:]))
    came = [torch.randn_like(r).requires_grad_() for r in results[:3] if r.numel()]
    came = [*came, None][:3]
    generator = torch.Generator().manual_seed(1)
    for k in range(5):
        some = [came[0], None, None] if k == 0 else [None, *came[1:]] if k == 1 else came
        cotangents = Cotangents(*some, None)
        found = flat(call, reference.differentiable_gradients(call, cotangents))
        there = torch.rand(len(found), generator=generator) < 0.6
        ways = [
            torch.randn_like(g) if k > 3 or t else None for g, t in zip(found, there, strict=True)
        ]
        pairs = [
            (g, way)
            for g, way in zip(found, ways, strict=True)
            if way is not None and g.requires_grad
        ]
        inputs = [*call.tensors(), *(each for each in some if each is not None)]
        wanted = [torch.zeros_like(each) for each in inputs]
        if pairs:
            own, seeds = zip(*pairs, strict=True)
            wanted = torch.autograd.grad(own, inputs, seeds, materialize_grads=True)
        given = call.with_tensors(ways)
        if k == 4:
            monkeypatch.setattr(direction, "_AT_ONCE", 1 << 20)
        with torch.no_grad():
            derivation = twice.Derivation(call, cotangents, saved)
            first = derivation.first(Needs(True, True, True))
            directions = Gradients(given.input, given.h0, given.c0, given.weights)
            for _ in range(2):  # the second time as the first
                of_call, of_came = derivation.second(directions)
            if twice.joins(call):
                rest = partial_and_rest(derivation, directions, saved)
                for a, w in zip(tree_leaves(rest), tree_leaves((of_call, of_came)), strict=True):
                    assert w is None or assert_matches(a, w) is None
        for a, w in zip(flat(call, first), found, strict=True):
            assert_matches(a, w.detach())
        of_came = [a for a, each in zip(of_came, some, strict=False) if each is not None]
        for a, w in zip([*flat(call, of_call), *of_came], wanted, strict=True):
            assert_matches(a, w)


def partial_and_rest(derivation, directions: Gradients, saved: Saved) -> tuple:
    """What `second` gives, by `partial` and a backward of what that leaves."""
    of_call, of_came, output = derivation.partial(directions)
    call = derivation.call
    rest = twice.Derivation(call, Cotangents(output, None, None, None), saved)
    rest = rest.first(Needs(True, True, True))
    each = [plus(a, b) for a, b in zip(flat(call, of_call), flat(call, rest), strict=True)]
    sums = call.with_tensors(each)
    return Gradients(sums.input, sums.h0, sums.c0, sums.weights), of_came


MODULES = {
    "LSTM": {"proj_size": 2, "num_layers": 2},
    "GRU": {"bidirectional": True, "bias": False},
    "RNN": {"nonlinearity": "relu", "batch_first": True},
    "RNN, tanh": {"num_layers": 2, "bidirectional": True},
}
modules = pytest.mark.parametrize("name", MODULES)


def kind_of(name: str) -> str:
    return name.partition(",")[0]


def module_of(name: str) -> fastrnn.modules.RNNBase:
    return getattr(fastrnn, kind_of(name))(I, H, dtype=torch.float64, **MODULES[name])


@modules
@pytest.mark.parametrize("packed", [False, True])
def test_modules_take_it(name, packed, no_reference):
    """Against torch.nn: gradients of what all gradients are, of every tensor."""
    ours = module_of(name)
    theirs = getattr(torch.nn, kind_of(name))(I, H, dtype=torch.float64, **MODULES[name])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(N, N, I, dtype=torch.float64, requires_grad=True)
    runs = []
    for module in (ours, theirs):
        inputs = [x, *module.parameters()]
        given = pack_padded_sequence(x, [3, 2, 1], module.batch_first) if packed else x
        output, _ = module(given)
        output = output.data if packed else output
        first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(penalty, inputs, retain_graph=True)
        both = torch.autograd.grad(penalty + output.cos().sum(), inputs, retain_graph=True)
        alone = torch.autograd.grad(output.cos().sum(), inputs)
        runs.append([*first, *second, *both, *alone])
    for a, w in zip(*runs, strict=True):
        assert_matches(a, w)


@modules
def test_third_derivatives(name):
    """Those go through the reference, of every tensor."""
    module, x = module_of(name), torch.randn(2, 2, I, dtype=torch.float64, requires_grad=True)
    inputs = (x, *module.parameters())

    def slopes(*inputs):
        names = [name for name, _ in module.named_parameters()]
        p = dict(zip(names, inputs[1:], strict=True))
        value = functional_call(module, p, (inputs[0],))[0].sin().sum()
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), inputs, create_graph=True)

    assert torch.autograd.gradcheck(slopes, inputs, fast_mode=True)


@modules
def test_an_output_changed_in_place(name):
    """Between the two backwards, and before them: the layer is computed again."""
    module, x = module_of(name), torch.randn(2, 2, I, dtype=torch.float64, requires_grad=True)
    runs = []
    for early, late in itertools.product([False, True], repeat=2):
        output, _ = module(x)
        value = output.sum()
        if early:
            output.data.zero_(), output.add_(1)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        if late:
            output.data.zero_(), output.add_(1)
        runs.append([slope, *torch.autograd.grad(slope.square().sum(), [x, *module.parameters()])])
    for run in runs[1:]:
        for a, w in zip(run, runs[0], strict=True):
            assert_matches(a, w)


@modules
def test_transforms_take_it(name, no_reference):
    """Derivatives of `grad`, and second derivatives by `jacrev`, of each of several inputs."""
    module = module_of(name)
    p = {key: value.detach() for key, value in module.named_parameters()}
    x = torch.randn(3, 2, 1, I, dtype=torch.float64)

    def number(p, x):
        return functional_call(module, p, (x,))[0].sin().sum()

    def penalty(p, x):
        return grad(number, 1)(p, x).square().sum()

    found = vmap(grad(penalty), (None, 0))(p, x)
    seconds = vmap(jacrev(jacrev(number, 1), 1), (None, 0))(p, x)
    for k in range(3):
        own = x[k].clone().requires_grad_()
        value = module(own)[0].sin().sum()
        (slope,) = torch.autograd.grad(value, own, create_graph=True)
        wanted = torch.autograd.grad(
            slope.square().sum(), [*module.parameters()], retain_graph=True, materialize_grads=True
        )
        for a, w in zip(found.values(), wanted, strict=True):
            assert_matches(a[k], w)
        rows = [torch.autograd.grad(s, own, retain_graph=True)[0] for s in slope.flatten()]
        assert_matches(seconds[k], torch.stack(rows).view(seconds[k].shape))


@modules
def test_a_freed_graph_keeps_no_coefficients(name):
    module, x = getattr(fastrnn, kind_of(name))(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    found = []
    for retain in ([False], [True, True, False]):
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        for again in retain:
            loss = gradient.square().sum()
            found += torch.autograd.grad(loss, x, retain_graph=again)
            assert gradient.grad_fn.request.derivation is None
    (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    every = torch.ones(1, *x.shape)
    torch.autograd.grad(gradient, x, every, is_grads_batched=True)  # by the reference
    assert gradient.grad_fn.request.derivation is None
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found)


@modules
def test_many_directions_at_once(name):
    """`vectorize` gives a backward many of them; hessian goes forwards over reverse."""
    module = module_of(name)
    x = torch.randn(2, 1, I, dtype=torch.float64)

    def number(x):
        return module(x)[0].sin().sum()

    plain = torch.autograd.functional.hessian(number, x)
    assert_matches(torch.autograd.functional.hessian(number, x, vectorize=True), plain)
    assert_matches(hessian(number)(x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Computed in float32, and rounded."""
    module = fastrnn.GRU(I, H)
    x = torch.randn(T, N, I).to(dtype).float()
    for p in module.parameters():
        p.data = p.data.to(dtype).float()
    runs = []
    for kind in (torch.float32, dtype):
        module.to(kind)
        own = x.to(kind).requires_grad_()
        (slope,) = torch.autograd.grad(module(own)[0].sum(), own, create_graph=True)
        runs.append(torch.autograd.grad(slope.square().sum(), [own, *module.parameters()]))
    for a, w in zip(runs[1], runs[0], strict=True):
        assert a.dtype is dtype
        assert (a.float() - w).norm() < 0.05 * w.norm() + 1e-4
