"""Layers of float32 whose products are of numbers rounded to bfloat16, where torch allows that.

test_float32_parts.py has who is asked. tests/cpp/test_parts_layers.cpp has the kernels beside the
definition.
"""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, layers, pair, state

import fastrnn
from bench import jobs
from fastrnn.dispatch import cpu

mkldnn = torch.backends.mkldnn
pytestmark = pytest.mark.skipif(
    KERNELS is None or KERNELS.isa() == "amx" or not KERNELS.has_parts(),
    reason="the CPU gains nothing from products of bfloat16",
)


@pytest.fixture(autouse=True)
def rounding():
    """The kernels as they are by default, and torch told that they may round."""
    before = KERNELS.in_parts()
    cpu.set_in_parts("where faster")
    mkldnn.rnn.fp32_precision = "bf16"
    yield
    mkldnn.rnn.fp32_precision = "none"
    cpu.set_in_parts(before)


def share(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The error as a share of what is wanted, both as the root of the mean square."""
    wanted = wanted.detach().double()
    return ((found.detach().double() - wanted).norm() / wanted.norm()).item()


def results(module, x, hx, weigh) -> list[torch.Tensor]:
    """The output, the final state, and the gradients of the input, the states and the weights."""
    x = x.detach().requires_grad_()
    hx = [each.detach().requires_grad_() for each in tree_leaves(hx)]
    output, last = module(x, tuple(hx) if len(hx) > 1 else hx[0])
    given = [output, *tree_leaves(last)]
    loss = sum((each * weigh(each)).sum() for each in given)
    return [*given, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])]


def weigh(each: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, each.numel()).view(each.shape).to(each.dtype)


def names_with(*forms: str) -> list[tuple[str, str]]:
    return [(n, form) for n in LAYERS for form in forms if form != "projected" or n == "LSTM"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "form"), names_with("", "bidirectional", "projected", "batch first", "no bias")
)
def test_all_results_are_of_products_of_bfloat16(name, form, threads, one_thread):
    torch.set_num_threads(threads)
    special = {
        "bidirectional": {"bidirectional": True},
        "projected": {"proj_size": 51},
        "batch first": {"batch_first": True},
        "no bias": {"bias": False},
    }.get(form, {})
    ours, theirs = pair(name, 37, 101, 2, **special)
    theirs = theirs.double()
    x = torch.randn((19, 23, 37) if form == "batch first" else (23, 19, 37))
    planes = 2 * (1 + (form == "bidirectional"))
    hx = state(name, planes, 19, 51 if form == "projected" else 101, c_width=101)
    double = [each.double() for each in tree_leaves(hx)]
    found = results(ours, x, hx, weigh)
    wanted = results(theirs, x.double(), double, weigh)
    for a, b in zip(found, wanted, strict=True):
        assert 2**-14 < share(a, b) < 2**-6.5
    with torch.no_grad():
        assert torch.equal(ours(x, hx)[0], found[0])
    mkldnn.rnn.fp32_precision = "none"
    for a, b in zip(results(ours, x, hx, weigh), wanted, strict=True):
        assert share(a, b) < 1e-5


@layers
def test_a_row_depends_on_no_other(name):
    module, x = getattr(fastrnn, name)(40, 70), torch.randn(30, 9, 40)
    with torch.no_grad():
        whole = module(x)[0]
        for n in (0, 4, 8):
            assert torch.equal(module(x[:, n : n + 1].contiguous())[0], whole[:, n : n + 1])
    assert share(whole, module.double()(x.double())[0]) > 2**-12


LEAST = ((15, 1, False), (16, 1, True), (5, 3, False), (4, 4, True), (1, 32, False))


@pytest.mark.parametrize(("name", "form"), names_with("", "bidirectional", "projected"))
def test_the_same_bits_with_gradients_and_without(name, form):
    """About the least call that may round, which both ways must tell alike."""
    special = {"bidirectional": {"bidirectional": True}, "projected": {"proj_size": 64}}
    module = getattr(fastrnn, name)(12, 96 if form == "projected" else 64, **special.get(form, {}))
    for T, N, rounds in LEAST:
        x = torch.randn(T, N, 12)
        rows = pack_padded_sequence(x, [T] * N)
        mkldnn.rnn.fp32_precision = "bf16"
        recorded = module(x)[0].detach(), module(rows)[0].data.detach()
        with torch.no_grad():
            found = module(x)[0], module(rows)[0].data
            mkldnn.rnn.fp32_precision = "none"
            exact = module(x)[0]
        assert torch.equal(found[0], recorded[0]) and torch.equal(found[1], recorded[1])
        assert torch.equal(found[0].flatten(0, 1), found[1])
        assert torch.equal(found[0], exact) != rounds


@layers
def test_packed_lengths_and_resets(name):
    module, x = getattr(fastrnn, name)(40, 70), torch.randn(30, 5, 40)
    lengths, reset = torch.tensor([30, 17, 3, 30, 8]), torch.rand(30, 5) < 0.2
    rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
    with torch.no_grad():
        rounded = module(x, lengths=lengths)[0], module(rows)[0].data, module(x, reset=reset)[0]
        module, x = module.double(), x.double()
        rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
        wanted = module(x, lengths=lengths)[0], module(rows)[0].data, module(x, reset=reset)[0]
    for a, b in zip(rounded, wanted, strict=True):
        assert 2**-12 < share(a, b) < 2**-7


@layers
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.4e38])
def test_a_number_without_a_bfloat16(name, value):
    """The output is then that of float32, bit for bit, and gradients are finite where those are."""
    module, x = getattr(fastrnn, name)(40, 70), torch.randn(30, 5, 40)
    for tensor in (x, module.weight_ih_l0, module.weight_hh_l0):
        numbers = tensor.detach().view(-1)
        before, numbers[77] = numbers[77].item(), value
        found = []
        for told in ("bf16", "none"):
            mkldnn.rnn.fp32_precision = told
            output = module(x)[0]
            found.append([output, *torch.autograd.grad(output.sum(), module.parameters())])
        (rounded, *gradients), (exact, *wanted) = found
        assert torch.equal(rounded.nan_to_num(1.5), exact.nan_to_num(1.5))
        for a, b in zip(gradients, wanted, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite())
        numbers[77] = before


@layers
def test_per_sample_gradients(name):
    module, x = getattr(fastrnn, name)(24, 64), torch.randn(6, 20, 24)
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    mkldnn.rnn.fp32_precision = "none"
    exact = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for key, wanted in exact.items():
        assert 0 < share(each[key], wanted) < 2**-6


@layers
def test_a_penalty(name):
    """Second derivatives take the same products as the first."""
    module = getattr(fastrnn, name)(24, 64)
    x = torch.randn(6, 20, 24, requires_grad=True)

    def gradients():
        (first,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), module.parameters())]

    rounded = gradients()
    mkldnn.rnn.fp32_precision = "none"
    for a, b in zip(rounded, gradients(), strict=True):
        assert share(a, b) < 2**-5


def test_other_precisions_and_dtypes_stay(monkeypatch):
    lstm, x = fastrnn.LSTM(24, 64), torch.randn(20, 6, 24)
    with torch.no_grad():
        mkldnn.rnn.fp32_precision = "none"
        exact, double = lstm(x)[0], lstm.double()(x.double())[0]
        lstm.float()
        mkldnn.rnn.fp32_precision = "tf32"
        assert torch.equal(lstm(x)[0], exact)
        mkldnn.rnn.fp32_precision = "bf16"
        assert not torch.equal(lstm(x)[0], exact)
        assert torch.equal(lstm.double()(x.double())[0], double)
        lstm.float()
        cpu.set_in_parts("never")
        assert torch.equal(lstm(x)[0], exact)


def test_compiled_and_through_the_dispatcher():
    lstm, x = fastrnn.LSTM(24, 64), torch.randn(20, 6, 24)
    with torch.no_grad():
        rounded = lstm(x)[0]
        compiled = torch.compile(lstm, backend="aot_eager")
        for few in (x, x[:2, :3]):  # the second is too small to round
            assert torch.equal(compiled(few)[0], lstm(few)[0])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert torch.equal(lstm(x)[0], rounded)


def test_the_contenders():
    mkldnn.rnn.fp32_precision = "none"
    for name in ("fastrnn", "torch.nn"):
        with jobs.find("layer", f"{name} rounded").around():
            assert cpu.allowed() == 1
        assert cpu.allowed() == 3
