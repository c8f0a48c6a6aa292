"""Streams of small weights against a plain loop that quantises as the documentation says."""

import pytest
import torch
from conftest import KERNELS, assert_matches
from small_weight_steps import ALL_INT8, assert_steps, product, stepped

import fastrnn
from fastrnn import Streamer

pytestmark = pytest.mark.skipif(KERNELS is None, reason="a stream of small weights is compiled")

MODULES = [
    (fastrnn.LSTM, {"num_layers": 2}),
    (fastrnn.LSTM, {"proj_size": 5, "num_layers": 2}),
    (fastrnn.LSTM, {"bias": False}),
    (fastrnn.GRU, {"num_layers": 3}),
    (fastrnn.RNN, {}),
    (fastrnn.RNN, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    "weights, activations",
    [
        ("float16", None),
        ("bfloat16", None),
        ("int8", None),
        (ALL_INT8, "int8"),
        ({"weight_hh_l0": "int8", "weight_ih_l0": "float16"}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind, options", MODULES)
def test_steps(isa, kind, options, weights, activations, batch):
    assert_steps(kind(7, 19, **options), batch, weights, activations)


@pytest.mark.parametrize("weights", ["float16", "bfloat16", ALL_INT8], ids=str)
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("I, H", [(70, 131), (64, 128), (33, 257)])
def test_sizes(isa, I, H, batch, weights):
    assert_steps(fastrnn.GRU(I, H), batch, weights)


@pytest.mark.parametrize("batch", [1, 3, 21])  # of AMX 21 are a tile and five rows, or two tiles
@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("I, H", [(3, 5), (67, 37), (1100, 16), (5, 529)])
@pytest.mark.parametrize("most", [False, True])
def test_integer_products_have_the_same_bits_everywhere(isa, I, H, activations, batch, most):
    """A sum of products of whole numbers is exact, and a unit that is linear shows it: also where
    all are as large as can be, of one sign."""
    module = fastrnn.RNN(I, H, nonlinearity="relu")
    x, h = torch.randn(batch, I), 3 * torch.randn(1, batch, H)
    if most:
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(0.25)
            module.weight_hh_l0[0] = -0.25
        x, h = torch.full_like(x, 2.0), torch.full_like(h, -3.0)
        x[0] = 7
    stream = Streamer(module, batch, weights=ALL_INT8, activations=activations)
    stream.load_state(h)
    part = [
        product(left, weight.detach(), "int8", activations == "int8") + bias.detach()
        for left, weight, bias in (
            (x, module.weight_ih_l0, module.bias_ih_l0),
            (h[0], module.weight_hh_l0, module.bias_hh_l0),
        )
    ]
    assert torch.equal(stream(x), (part[0] + part[1]).relu())


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_halves_are_exact(isa, format):
    """Every finite half, times one, is itself: also those below the normal numbers of float16."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, format))
    numbers = bits.float()
    tiny = numbers.abs() < torch.finfo(torch.float32).tiny  # count as zero, as everywhere
    numbers = torch.where(numbers.isfinite() & ~tiny, numbers, 0.0).view(-1, 256)
    module = fastrnn.RNN(256, 256, nonlinearity="relu", bias=False)
    with torch.no_grad():
        module.weight_ih_l0.copy_(numbers)
    stream = Streamer(module, 1, weights={"weight_ih_l0": format})
    for i in range(0, 256, 15):
        for sign in (-1, 1):
            stream.reset()
            one = torch.zeros(1, 256)
            one[0, i] = sign
            assert torch.equal(stream(one)[0], (sign * numbers[:, i]).relu())


@pytest.mark.parametrize("weights", ["float16", ALL_INT8], ids=str)
def test_rows_do_not_depend_on_their_batch(isa, weights):
    module, x = fastrnn.LSTM(21, 70), torch.randn(3, 7, 21)
    whole = Streamer(module, 7, weights=weights)
    got = torch.stack([whole(frame).clone() for frame in x])
    for n in range(7):
        alone = Streamer(module, 1, weights=weights)
        for t in range(3):
            assert torch.equal(alone(x[t, n : n + 1])[0], got[t, n])


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(isa, value, activations):
    module, x = fastrnn.LSTM(9, 20, num_layers=2), torch.randn(3, 4, 9)
    good = Streamer(module, 4, weights=ALL_INT8, activations=activations)
    bad = Streamer(module, 4, weights=ALL_INT8, activations=activations)
    wrong = x.clone()
    wrong[0, 2, 5] = value
    others = [0, 1, 3]
    for frame, other in zip(x, wrong, strict=True):
        wanted, got = good(frame), bad(other)
        assert torch.equal(got[others], wanted[others]) and got[2].isnan().all()
    bad.reset([2])
    good.reset([2])
    assert torch.equal(bad(x[0]), good(x[0]))


def test_an_infinite_input_that_float_takes(isa):
    """The first layer's W_ih is in float by default, and a gate knows infinity."""
    module, x = fastrnn.LSTM(3, 8), torch.tensor([[1.0, float("inf"), 2.0]])
    wanted = module(x[None])[0][0]
    assert wanted.isfinite().all()
    assert_matches(Streamer(module, weights="int8")(x), wanted)


def test_states_beyond_one_and_rows_of_zeros(isa):
    module = fastrnn.GRU(12, 24)
    with torch.no_grad():
        module.weight_hh_l0[3] = 0
        module.weight_ih_l0[5] = 1e-37
    x = torch.stack([torch.zeros(2, 12), 1e-38 * torch.ones(2, 12), torch.randn(2, 12) * 1e30])
    stream = Streamer(module, 2, weights=ALL_INT8)
    stream.load_state(50 * torch.randn(1, 2, 24))
    for frame in x:
        _, after, wanted = stepped(stream, module, frame, lambda _: "int8")
        assert_matches(after[0], wanted[0][0])
