"""The modules against torch.nn: results and gradients, packed sequences, bfloat16."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import assert_matches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_leaves
from torch_pairs import LAYERS, assert_same_results, cells, example, layers, pair, state

import fastrnn

# Results

sizes = st.integers(1, 4)


@st.composite
def scenarios(draw) -> dict:
    """Options and sizes of a module and its call."""
    name = draw(st.sampled_from(LAYERS))
    hidden = draw(st.integers(1, 9))
    kwargs = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "bidirectional": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float64, torch.float64, torch.float32])),
    }
    if name == "RNN":
        kwargs["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if name == "LSTM" and hidden > 1:
        kwargs["proj_size"] = draw(st.integers(0, hidden - 1))
    form = draw(st.sampled_from(["padded", "unbatched", "sorted", "unsorted"]))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    if form == "sorted":
        lengths.sort(reverse=True)
    return {
        "name": name,
        "args": (draw(st.integers(1, 9)), hidden),
        "kwargs": kwargs,
        "form": form,
        "lengths": lengths,
        "batch": draw(st.integers(0, 5)),
        "hx": draw(st.booleans()),
        "training": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scenarios())
def test_equals_torch(scenario):
    name, (I, H), kwargs = scenario["name"], scenario["args"], scenario["kwargs"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dropout option")
        ours, theirs = pair(name, I, H, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(scenario["seed"])
    dtype, form, lengths = kwargs["dtype"], scenario["form"], scenario["lengths"]
    N = scenario["batch"] if form == "padded" else len(lengths)
    T = max(lengths)
    shape = (T, I) if form == "unbatched" else (N, T, I) if kwargs["batch_first"] else (T, N, I)
    input = torch.randn(shape, dtype=dtype)
    count = kwargs["num_layers"] * (2 if kwargs["bidirectional"] else 1)
    batch = () if form == "unbatched" else (N,)
    width = kwargs.get("proj_size") or H
    hx = state(name, count, *batch, width, c_width=H, dtype=dtype) if scenario["hx"] else None

    runs = []
    for module in (ours, theirs):
        module.train(scenario["training"])
        inputs = [t.clone().requires_grad_() for t in (input, *tree_leaves(hx)) if t is not None]
        x, *states = inputs
        if form in ("sorted", "unsorted"):
            x = pack_padded_sequence(x, lengths, kwargs["batch_first"], form == "sorted")
        args = () if hx is None else (tuple(states) if name == "LSTM" else states[0],)
        torch.manual_seed(scenario["seed"])
        results = module(x, *args)
        floats = [t for t in tree_leaves(results) if t is not None and t.requires_grad]
        cotangents = [torch.linspace(-1, 1, t.numel(), dtype=dtype).view_as(t) for t in floats]
        gradients = torch.autograd.grad(floats, [*inputs, *module.parameters()], cotangents)
        runs.append((results, gradients))
    (results, gradients), (wanted, wanted_gradients) = runs
    assert_same_results(results, wanted)
    names = [*["input", "h0", "c0"][: len(inputs)], *dict(ours.named_parameters())]
    for parameter, a, e in zip(names, gradients, wanted_gradients, strict=True):
        assert_matches(a, e, f"gradient of {parameter}")


@cells
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_equal_torch(name, bias, dtype):
    options = [{}, {"nonlinearity": "relu"}] if name == "RNNCell" else [{}]
    for kwargs in options:
        ours, theirs = pair(name, 4, 3, bias, dtype=dtype, **kwargs)
        x = example(name, dtype=dtype)
        hx = state(name, 3, 3, dtype=dtype)
        one = tuple(s[0] for s in hx) if isinstance(hx, tuple) else hx[0]
        for args in ((x,), (x, hx), (x[0],), (x[0], one), (x[:0],), (x.t().contiguous().t(), hx)):
            floats = assert_same_results(ours(*args), theirs(*args))
            wanted = tree_leaves(theirs(*args))
            gradients = [
                torch.autograd.grad(sum(t.square().sum() for t in run), list(module.parameters()))
                for run, module in ((floats, ours), (wanted, theirs))
            ]
            for a, e in zip(*gradients, strict=True):
                assert_matches(a, e)
    for sizes in ((4, 0), (0, 3)):
        ours, theirs = pair(name, *sizes)
        assert_same_results(ours(torch.randn(2, sizes[0])), theirs(torch.randn(2, sizes[0])))


@layers
def test_every_form_of_hx(name):
    ours, theirs = pair(name, 4, 3, 2, bidirectional=True)
    x = example(name)
    for h in (
        torch.randn(4, 1, 3).expand(4, 3, 3),
        torch.randn(4, 3, 6)[..., ::2],
        torch.randn(3, 3, 4).permute(2, 0, 1),
        torch.randn(()).expand(4, 3, 3),
    ):
        forms = [(h, h), [h, 2 * h]] if name == "LSTM" else [h]
        for hx in forms:
            assert_same_results(ours(x, hx), theirs(x, hx))
    packed = pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False)
    forms = [(h, h), [h, 2 * h]] if name == "LSTM" else [h]
    for hx in forms:
        assert_same_results(ours(packed, hx), theirs(packed, hx))


@layers
def test_inputs_of_any_strides(name):
    ours, theirs = pair(name, 4, 3)
    for x in (
        torch.randn(5, 3, 8)[..., ::2],
        torch.randn(4, 3, 5).permute(2, 1, 0),
        torch.randn(1, 1, 4).expand(5, 3, 4),
        torch.randn(9, 3, 4)[::2],
    ):
        assert_same_results(ours(x), theirs(x))


@layers
def test_layout_of_the_output(name):
    x = torch.randn(3, 5, 4)
    ours, theirs = pair(name, 4, 3, batch_first=True)
    assert ours(x)[0].stride() == theirs(x)[0].stride() == (3, 9, 1)
    output, final = ours(x[:, -1:])
    assert tree_leaves(final)[0].data_ptr() != output.data_ptr()


@layers
def test_nan_and_inf_give_torchs_results(name):
    ours, theirs = pair(name, 4, 3, bidirectional=True)
    for value in (float("nan"), float("inf"), -float("inf")):
        x = example(name)
        x[2, 1, 0] = value
        assert_same_results(ours(x), theirs(x))


# PackedSequence


@layers
def test_packed_sequences(name):
    ours, theirs = pair(name, 4, 3, 2, bidirectional=True)
    sequences = [torch.randn(t, 4) for t in (2, 5, 1, 5)]
    for packed in (
        pack_sequence(sequences, enforce_sorted=False),
        pack_sequence(sorted(sequences, key=len, reverse=True)),
        pack_sequence(sequences[:1]),
    ):
        N = len(packed.unsorted_indices) if packed.unsorted_indices is not None else None
        N = N or int(packed.batch_sizes[0])
        for hx in (None, state(name, 4, N, 3)):
            output, final = ours(packed, hx)
            assert isinstance(output, PackedSequence)
            assert output.batch_sizes is packed.batch_sizes
            assert output.sorted_indices is packed.sorted_indices
            assert output.unsorted_indices is packed.unsorted_indices
            assert_same_results((output, final), theirs(packed, hx))


@layers
def test_packed_rows_equal_each_sequence_alone(name):
    module = getattr(fastrnn, name)(4, 3, bidirectional=True)
    sequences = [torch.randn(t, 4) for t in (2, 5, 1, 5)]
    output, final = module(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(output)
    for k, sequence in enumerate(sequences):
        alone, alone_final = module(sequence)
        assert lengths[k] == len(sequence)
        assert_matches(padded[: len(sequence), k], alone)
        for a, e in zip(tree_leaves(final), tree_leaves(alone_final), strict=True):
            assert_matches(a[:, k], e)


def test_public_names():
    for name in fastrnn.__all__:
        assert hasattr(fastrnn, name)
    for name in LAYERS:
        assert isinstance(getattr(fastrnn, name)(4, 3), torch.nn.RNNBase)


# bfloat16


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("LSTM", {"proj_size": 20}), ("GRU", {}), ("RNN", {}), ("RNN", {"bias": False})],
)
def test_bfloat16_is_as_precise_as_torch(name, options, D, isa):
    """Errors against float64, in the mean, of the output and every gradient.

    torch rounds at every operation on most CPUs. Where it does not, one unit in the last place is
    what two roundings of everything come to.
    """
    options = {"bidirectional": D == 2, "dtype": torch.bfloat16, **options}
    ours, theirs = pair(name, 33, 65, **options)
    exact = getattr(torch.nn, name)(33, 65, **options).double()
    exact.load_state_dict(theirs.state_dict())
    x = torch.randn(50, 7, 33).bfloat16()

    def results(module, dtype) -> list[torch.Tensor]:
        given = x.detach().to(dtype).requires_grad_()
        output, _ = module(given)
        seed = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, generator=seed).bfloat16().to(dtype))
        return [output, given.grad, *(p.grad for p in module.parameters())]

    try:
        peer = results(theirs, torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"torch.nn in bfloat16: {error}")
    wanted = results(exact, torch.float64)
    for a, b, e in zip(results(ours, torch.bfloat16), peer, wanted, strict=True):
        error, peers_error = ((t.double() - e).norm() / e.norm() for t in (a, b))
        assert error <= max(peers_error, 2**-8)
