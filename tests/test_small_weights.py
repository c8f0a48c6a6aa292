"""Streams of small weights against a plain loop that quantises as the documentation says.

The loop goes on from the stream's own states, so both round the same numbers at every step."""

import copy
import pickle
import threading

import pytest
import torch
from conftest import KERNELS, assert_matches
from torch import Tensor

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
ALL_INT8 = {"*": "int8"}


def whole_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers, as int64, and the scale of each row."""
    scale = weight.abs().amax(1) / 127
    return torch.nan_to_num(weight / scale[:, None]).round().long(), scale


def whole_activations(x: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Whole numbers as int64 and the scale of each row: units at the largest of a row."""
    largest = x.abs().amax(1)
    # Not units / largest, which torch makes a product with a reciprocal.
    factor = torch.where(largest > 0, torch.tensor(float(units)) / largest, 0.0)
    return (x * factor[:, None]).round().long(), largest / units


def product(x: Tensor, weight: Tensor, format: str | None, narrow: bool) -> Tensor:
    if format != "int8":
        kept = weight if format is None else weight.to(getattr(torch, format))
        return (x.double() @ kept.double().T).float()
    units = 127 if narrow else min(32767, (2**31 - 1) // (127 * weight.size(1)))
    (w, w_scale), (q, q_scale) = whole_weights(weight), whole_activations(x, units)
    sums = q @ w.T
    assert sums.abs().max() < 2**31
    return sums.float() * w_scale * q_scale[:, None]


def cell(module, x, u, h, c):
    if module.mode == "LSTM":
        i, f, g, o = (x + u).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if module.mode == "GRU":
        (x_r, x_z, x_n), (u_r, u_z, u_n) = x.chunk(3, 1), u.chunk(3, 1)
        z = (x_z + u_z).sigmoid()
        n = (x_n + (x_r + u_r).sigmoid() * u_n).tanh()
        return (1 - z) * n + z * h, None
    return ((x + u).relu() if module.mode == "RNN_RELU" else (x + u).tanh()), None


def stepped(stream: Streamer, module, frame: Tensor, formats, narrow=False):
    """(y, states) of the stream after a frame, and what the loop makes of each layer."""
    before = stream.state
    y = stream(frame).clone()
    after, x, wanted = stream.state, frame, []
    for k in range(module.num_layers):
        own = {
            n[: -len("_l0")]: w.detach() for n, w in module.named_parameters() if n[-1] == str(k)
        }
        h, c = (s[k] for s in before) if module.mode == "LSTM" else (before[k], None)
        parts = []
        for side, left in (("ih", x), ("hh", h)):
            part = product(left, own[f"weight_{side}"], formats(f"weight_{side}_l{k}"), narrow)
            parts.append(part + own.get(f"bias_{side}", torch.zeros(1)))
        h, c = cell(module, *parts, h, c)
        if module.proj_size:
            h = product(h, own["weight_hr"], formats(f"weight_hr_l{k}"), narrow)
        wanted.append((h, c))
        x = after[0][k] if module.mode == "LSTM" else after[k]
    return y, after, wanted


def assert_steps(module, batch: int, weights, activations=None, frames=None) -> None:
    def formats(name):
        if isinstance(weights, dict):
            return weights.get(name, weights.get("*"))
        return None if (weights, name) == ("int8", "weight_ih_l0") else weights

    stream = Streamer(module, batch, weights=weights, activations=activations)
    for frame in torch.randn(6, batch, module.input_size) if frames is None else frames:
        y, after, wanted = stepped(stream, module, frame, formats, activations == "int8")
        for k, (h, c) in enumerate(wanted):
            assert_matches(after[0][k] if c is not None else after[k], h, f"layer {k}")
            if c is not None:
                assert_matches(after[1][k], c, f"c of layer {k}")
        assert torch.equal(y, after[0][-1] if wanted[-1][1] is not None else after[-1])


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


@pytest.mark.parametrize("batch", [1, 3])
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


def error(module, x, **options) -> float:
    stream = Streamer(module, x.size(1), **options)
    got = torch.stack([stream(frame).clone() for frame in x])
    wanted = module(x)[0]
    return ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def test_errors_are_small():
    module, x = fastrnn.LSTM(64, 256), torch.randn(50, 1, 64)
    assert error(module, x, weights="float16") <= 3e-4
    assert error(module, x, weights="bfloat16") <= 2.5e-3
    assert error(module, x, weights="int8") <= 1e-2
    narrow = error(module, x, weights=ALL_INT8, activations="int8")
    assert error(module, x, weights=ALL_INT8) < narrow <= 2e-2


def test_streams_in_several_threads():
    module, x = fastrnn.LSTM(16, 96), torch.randn(200, 4, 1, 16)
    alone = Streamer(module, 4, weights="int8")
    expected = torch.stack([alone(frame.flatten(0, 1)).clone() for frame in x])
    got = torch.empty_like(expected)

    def drive(k):
        stream = Streamer(module, weights="int8")
        for t in range(len(x)):
            got[t, k] = stream(x[t, k])[0]

    threads = [threading.Thread(target=drive, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_refresh_rounds_again(weights):
    module, x = fastrnn.LSTM(4, 6), torch.randn(1, 4)
    stream = Streamer(module, weights=weights)
    before = stream(x).clone()
    with torch.no_grad():
        module.weight_hh_l0.mul_(5)
        module.weight_ih_l0.mul_(-3)
    stream.reset()
    assert torch.equal(stream(x), before)
    stream.reset()
    stream.refresh()
    assert torch.equal(stream(x), Streamer(module, weights=weights)(x))
    assert not torch.equal(stream(x), before)
    with torch.no_grad():
        module.weight_hh_l0[2, 3] = float("nan")
    with pytest.raises(ValueError, match="weight_hh_l0 has numbers beyond .* or NaN"):
        stream.refresh()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_keep_what_was_asked(copied):
    module, x = fastrnn.GRU(4, 6, num_layers=2), torch.randn(3, 2, 4)
    stream = Streamer(module, 2, weights=ALL_INT8, activations="int8")
    stream(x[0])
    other = copied(stream)
    wanted = [stream(frame).clone() for frame in x[1:]]
    assert all(torch.equal(other(frame), y) for frame, y in zip(x[1:], wanted, strict=True))
    said = (
        "Streamer(GRU(4, 6, num_layers=2), batch_size=2, weights={'*': 'int8'}, activations='int8')"
    )
    assert repr(other) == repr(stream) == said
    assert repr(Streamer(module, weights="int8")).endswith("batch_size=1, weights='int8')")


def test_all_floats_is_the_stream_of_floats():
    module, x = fastrnn.LSTM(4, 6), torch.randn(1, 4)
    wanted = Streamer(module)(x)
    assert torch.equal(Streamer(module, weights={"*": None})(x), wanted)
    assert torch.equal(
        Streamer(module.double(), weights={})(x.double()), Streamer(module)(x.double())
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int4"}, "weights must be None, 'float16', .* got 'int4'"),
        ({"weights": {"*": 8}}, "weights must be None, 'float16', .* got 8"),
        ({"weights": ["int8"]}, "weights must be None"),
        ({"weights": {"weight_ih_l7": "int8"}}, "has 'weight_ih_l7', the module has weight_ih_l0"),
        ({"weights": {"bias_ih_l0": "int8"}}, "has 'bias_ih_l0', the module has weight_ih_l0"),
        ({"weights": "int8", "activations": "int4"}, "activations must be None or 'int8'"),
        ({"activations": "int8"}, "with weights of int8, there are none"),
        ({"weights": "float16", "activations": "int8"}, "with weights of int8, there are none"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    module = fastrnn.LSTM(4, 6)
    with pytest.raises(ValueError, match=message):
        Streamer(module, **options)
    assert_steps(module, 1, "int8")


def test_modules_and_numbers_that_do_not_fit():
    module = fastrnn.LSTM(4, 6, num_layers=2)
    with pytest.raises(ValueError, match="a module in torch.float32, got torch.float64"):
        Streamer(copy.deepcopy(module).double(), weights="float16")
    with torch.no_grad():
        module.weight_hh_l1[2, 3] = -65520
    with pytest.raises(ValueError, match="weight_hh_l1 has numbers beyond 65504, or NaN: float16"):
        Streamer(module, weights="float16")
    assert_steps(module, 2, "bfloat16")
    with torch.no_grad():
        module.weight_hh_l1[2, 3] = 65504
    assert_steps(module, 2, "float16")
    with pytest.raises(ValueError, match="small weights are for LSTM, GRU and RNN, not for"):
        Streamer(fastrnn.Recurrent(fastrnn.zoo.LiGRU, 4, 6), weights="float16")
