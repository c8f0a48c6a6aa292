"""Autocast on the CPU: the dtypes of torch.nn, and errors that are no larger than torch.nn's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import KERNELS, assert_matches
from feature_calls import FEATURES
from project import ROOT
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import CELLS, LAYERS, cells, example, layers, pair, state

import fastrnn
from fastrnn import autocast, functional
from fastrnn.call import Call
from fastrnn.dispatch import cpu

FORMS = ({}, {"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}, {"bias": False})
LOW = (torch.bfloat16, torch.float16)
# What x and hx come in; None is no hx.
GIVEN = tuple(itertools.product((torch.float32, *LOW), (None, torch.float32, torch.bfloat16)))
onednn = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="torch's LSTM needs AVX-512"
)


@pytest.fixture
def in_bfloat16(monkeypatch):
    """Calls of any size are computed in bfloat16, whatever the CPU multiplies."""
    monkeypatch.setattr(autocast, "_FEW_ROWS", 0)
    monkeypatch.setattr(autocast, "_FEW_PRODUCTS", 0)
    monkeypatch.setattr(cpu, "MULTIPLIES_BFLOAT16", True)


def leaves(results) -> list[torch.Tensor]:
    return [t for t in tree_leaves(results) if t is not None and t.is_floating_point()]


def dtypes(call) -> list[torch.dtype] | str:
    """Those of the results; or how torch.nn fails where its kernels lack a dtype."""
    try:
        return [t.dtype for t in leaves(call())]
    except RuntimeError as error:
        assert "primitive descriptor" in str(error) or "autocast::prioritize" in str(error)
        return "torch.nn fails"


def shapes_of_state(module) -> tuple[int, int, int]:
    D = 2 if module.bidirectional else 1
    return module.num_layers * D, 3, module.proj_size or module.hidden_size


@onednn
@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("packed", [False, True])
@layers
def test_dtypes_of_layers(name, packed, low, monkeypatch):
    for form, large, given, grad in itertools.product(FORMS, (0, 1), GIVEN, (True, False)):
        if "proj_size" in form and name != "LSTM":
            continue
        monkeypatch.setattr(autocast, "_FEW_ROWS", 0 if large else 32)
        monkeypatch.setattr(autocast, "_FEW_PRODUCTS", 0 if large else 4_000_000)
        modules = pair(name, 4, 3, **form)
        x, hx = example(name).to(given[0]), None
        if given[1] is not None:
            hx = state(name, *shapes_of_state(modules[0]), c_width=3, dtype=given[1])
        x = pack_padded_sequence(x, torch.tensor([5, 4, 1])) if packed else x
        with torch.set_grad_enabled(grad), torch.autocast("cpu", low):
            ours, wanted = (dtypes(lambda m=m, x=x, hx=hx: m(x, hx)) for m in modules)
        assert wanted in (ours, "torch.nn fails"), (form, large, given, grad)
        assert ours != "torch.nn fails"


@cells
def test_dtypes_of_cells(name):
    for low, (dtype, of_hx) in itertools.product(LOW, GIVEN):
        x, hx = example(name).to(dtype), None
        if of_hx is not None:
            hx = state(name, 3, 3, dtype=of_hx)
        with torch.autocast("cpu", low):
            results = [leaves(m(x, hx)) for m in pair(name, 4, 3)]
        for actual, wanted in zip(*results, strict=True):
            assert actual.dtype == wanted.dtype, (low, dtype, of_hx)
            assert_matches(actual.bfloat16(), wanted)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_float64_stays(name):
    ours, theirs = pair(name, 4, 3, dtype=torch.float64)
    x = example(name, dtype=torch.float64)
    wanted = ours(x)
    for low in LOW:
        with torch.autocast("cpu", low):
            results, of_torch = ours(x), theirs(x)
        for actual, alone, their in zip(*map(leaves, (results, wanted, of_torch)), strict=True):
            assert actual.dtype == their.dtype == torch.float64
            assert_matches(actual, alone)


def test_what_is_computed_in_bfloat16(monkeypatch):
    """Only what gains by it: many rows, much to multiply, and a CPU that multiplies bfloat16."""
    monkeypatch.setattr(cpu, "MULTIPLIES_BFLOAT16", True)

    def computed(T, N, H, low=torch.bfloat16):
        weights = [torch.empty(4 * H, H), torch.empty(4 * H, H)]
        h = torch.empty(1, N, H)
        call = Call(torch.empty(T, N, H), None, h, h, weights, "lstm", "w_ih w_hh")
        return autocast.computed_on_cpu(call, low)

    assert computed(100, 4, 64) is torch.bfloat16
    assert computed(100, 4, 64, torch.float16) is torch.float32
    assert computed(1, 32, 512) is torch.float32
    assert computed(100, 4, 16) is torch.float32
    assert computed(4, 9, 512) is torch.bfloat16
    monkeypatch.setattr(cpu, "MULTIPLIES_BFLOAT16", False)
    assert computed(100, 4, 64) is torch.float32


def test_the_sets_that_multiply_bfloat16():
    """Those whose kernels of bfloat16 are their own."""
    sources = (ROOT / "csrc" / "cpu").glob("isa_*.cpp")
    own = {file.stem.removeprefix("isa_") for file in sources if "with_bf16(" in file.read_text()}
    assert own == set(cpu.OF_BFLOAT16)
    if KERNELS is not None:
        assert (KERNELS.isa() in own) == cpu.MULTIPLIES_BFLOAT16


@pytest.mark.parametrize("low", LOW)
@layers
def test_small_calls_and_float16_are_computed_in_float32(name, low):
    module, x = getattr(fastrnn, name)(4, 3, 2), example(name)
    wanted = module(x)
    with torch.autocast("cpu", low):
        results = module(x)
    for actual, value in zip(leaves(results), leaves(wanted), strict=True):
        assert torch.equal(actual, value.to(actual.dtype))


@layers
def test_large_calls_are_those_of_a_bfloat16_module(name, in_bfloat16):
    module, x = getattr(fastrnn, name)(4, 3, 2, dropout=0.5), example(name)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        results = module(x)
        sum(t.float().square().sum() for t in leaves(results)).backward()
    gradients = [p.grad for p in module.parameters()]
    module.zero_grad()
    torch.manual_seed(1)
    wanted = module.bfloat16()(x.bfloat16())
    sum(t.float().square().sum() for t in leaves(wanted)).backward()
    for actual, value in zip(leaves(results), leaves(wanted), strict=True):
        assert torch.equal(actual.bfloat16(), value)
    for grad, p in zip(gradients, module.parameters(), strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, p.grad.float())


@layers
def test_features(name, in_bfloat16):
    """reset, lengths and the states of every step, as of a bfloat16 module; c as wide as c_n."""
    for form in ({}, {"proj_size": 2}) if name == "LSTM" else ({},):
        module, asked = getattr(fastrnn, name)(4, 3, **form), FEATURES["all"](5, 3)
        x = example(name)
        with torch.autocast("cpu", torch.bfloat16):
            output, final, states = module(x, **asked)
            stepped, _ = module.step(x[0], reset=asked["reset"][0])
        assert states.h[0].dtype == states.gates[0].dtype == output.dtype == stepped.dtype
        if name == "LSTM":
            assert states.c[0].dtype == final[1].dtype
            assert (output.dtype == final[1].dtype) == (not form)
        wanted = module.bfloat16()(x.bfloat16(), **asked)
        for actual, value in zip(leaves((output, final, states)), leaves(wanted), strict=True):
            assert torch.equal(actual.bfloat16(), value)


def test_streamer_is_not_cast():
    module, x = fastrnn.GRU(4, 3), torch.randn(1, 4)
    wanted = fastrnn.Streamer(module)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fastrnn.Streamer(module)(x), wanted)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_functions_and_a_compiled_step(name, in_bfloat16):
    mode = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}[name]
    module, x = getattr(fastrnn, mode)(4, 3), torch.randn(6, 2, 4)
    hx = state(mode, 1, 2, 3)
    run = torch.compile(lambda: module(x, hx), backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = leaves(module(x, hx))
        results = getattr(functional, name)(x, hx, list(module.parameters()))
        compiled = leaves(run())
    for a, b, c in zip(wanted, leaves(results), compiled, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and a.dtype == b.dtype == c.dtype


def _errors(module, x, hx, low: torch.dtype | None, seed: int) -> dict[str, torch.Tensor]:
    """Results and gradients by name, of a loss with random weights."""
    hx = [t.detach().requires_grad_() for t in hx]
    data = (x.data if isinstance(x, PackedSequence) else x).detach().requires_grad_()
    given = PackedSequence(data, x.batch_sizes) if isinstance(x, PackedSequence) else data
    with torch.autocast("cpu", low, enabled=low is not None):
        results = leaves(module(given, tuple(hx) if len(hx) == 2 else hx[0]))
    results = [r for r in results if r.is_floating_point()]
    torch.manual_seed(seed)
    loss = sum((r.double() * torch.randn(r.shape, dtype=torch.float64)).sum() for r in results)
    grads = torch.autograd.grad(loss, [data, *hx, *module.parameters()])
    names = [f"result {k}" for k in range(len(results))] + ["x", "h0", "c0"][: 1 + len(hx)]
    names += [key for key, _ in module.named_parameters()]
    return dict(zip(names, [*results, *grads], strict=True))


@onednn
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *itertools.product(LAYERS, ({}, {"num_layers": 2, "bidirectional": True})),
        ("LSTM", {"proj_size": 32}),
    ],
)
def test_errors_are_no_larger_than_those_of_torch(name, form, packed, in_bfloat16):
    """Against float64: maximum and root of the mean square, in the mean over all; none far more.

    torch.nn rounds to bfloat16 in other places. Rounding is chance: of one tensor either may be
    more. torch.nn keeps the gradient of a GRU's h0, and of a packed LSTM's c0, in float32.
    """
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        ours, theirs = (getattr(library, name)(64, 96, **form) for library in (fastrnn, nn))
        ours.load_state_dict(theirs.state_dict())
        wide = getattr(nn, name)(64, 96, **form).double()
        wide.load_state_dict(theirs.state_dict())
        x = torch.randn(40, 3, 64)
        hx = state(name, *shapes_of_state(ours), c_width=96)
        hx = hx if isinstance(hx, tuple) else (hx,)
        if packed:
            x = pack_padded_sequence(x, torch.tensor([40, 25, 11]))
        exact = _errors(wide, x.to(torch.float64), [t.double() for t in hx], None, seed)
        actual, their = (_errors(m, x, hx, torch.bfloat16, seed) for m in (ours, theirs))
        for key, value in exact.items():
            assert actual[key].dtype == their[key].dtype
            mine, torchs = ((each[key] - value).detach().abs() for each in (actual, their))
            ratios.append(mine.max() / torchs.max())
            ratios.append(mine.square().mean().sqrt() / torchs.square().mean().sqrt())
            assert ratios[-1] < 1.6, key
    assert math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)) < 1
