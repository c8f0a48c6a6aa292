"""The modules against torch.nn: construction, parameters, results, errors, everyday tools."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from conftest import assert_matches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_leaves

import fastrnn

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
layers = pytest.mark.parametrize("name", LAYERS)
cells = pytest.mark.parametrize("name", CELLS)
everything = pytest.mark.parametrize("name", LAYERS + CELLS)


def pair(name: str, *args, **kwargs) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and torch's module, made from the same seed."""
    modules = []
    for library in (fastrnn, torch.nn):
        torch.manual_seed(0)
        modules.append(getattr(library, name)(*args, **kwargs))
    return modules[0], modules[1]


def example(name: str, T: int = 5, N: int = 3, I: int = 4, dtype=torch.float32) -> Tensor:
    return torch.randn(N, I, dtype=dtype) if name in CELLS else torch.randn(T, N, I, dtype=dtype)


def state(name: str, *shape: int, c_width: int | None = None, dtype=torch.float32):
    """A random hx of `name`: for LSTM a pair, whose c has its own width if projected."""
    h = torch.randn(shape, dtype=dtype)
    c_shape = (*shape[:-1], c_width or shape[-1])
    return (h, torch.randn(c_shape, dtype=dtype)) if name.startswith("LSTM") else h


def assert_same_results(ours, theirs) -> list[Tensor]:
    """Equal nests of tensors, in the same containers. Returns our tensors."""
    for a, e in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert (a is None) == (e is None)
        if e is not None and e.is_floating_point():
            assert_matches(a, e)
        elif e is not None:
            assert torch.equal(a, e)
    assert type(ours) is type(theirs)
    return [t for t in tree_leaves(ours) if t is not None and t.is_floating_point()]


def outcome(call, library):
    """What `call(library)` raised, as (type, message), or its result."""
    try:
        return call(library)
    except Exception as error:
        return type(error), str(error)


def assert_same_error(call) -> None:
    ours, theirs = outcome(call, fastrnn), outcome(call, torch.nn)
    assert isinstance(theirs, tuple) and isinstance(theirs[0], type), "torch.nn raised nothing"
    assert ours == theirs


# Construction

CONSTRUCTIONS = [
    ("LSTM", (4, 3, 2, False, True, 0.5, True, 2), {}),
    ("LSTM", (4, 3, 1, True, False, 0.0, False, 0, "cpu", torch.float64), {}),
    ("LSTM", (4, 3), {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    ("LSTM", (True, 3), {}),
    ("GRU", (4, 3, 2, False, True, 0.5, True), {}),
    ("GRU", (4,), {"hidden_size": 3, "dtype": torch.float64, "device": "cpu"}),
    ("RNN", (4, 3, 2, "relu", False, True, 0.5, True), {}),
    ("RNN", (4, 3), {"nonlinearity": "relu", "num_layers": 2}),
    ("RNNBase", ("LSTM", 4, 3, 1, True, False, 0.0, False, 2), {}),
    ("RNNBase", ("RNN_RELU", 4, 3), {}),
    ("LSTMCell", (4, 3, False, "cpu", torch.float64), {}),
    ("GRUCell", (4, 3), {"bias": False}),
    ("RNNCell", (4, 3, False, "relu", "cpu", torch.float64), {}),
    ("RNNCell", (4, 3, True, "tanh"), {}),
    ("GRUCell", (4, 0), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CONSTRUCTIONS)
def test_construction(name, args, kwargs):
    ours, theirs = pair(name, *args, **kwargs)
    assert repr(ours) == repr(theirs)
    skip = {"_flat_weights", "_flat_weight_refs", "_parameters"}
    attributes = {k: v for k, v in vars(theirs).items() if k not in skip}
    assert {k: v for k, v in vars(ours).items() if k not in skip} == attributes
    assert ours.__constants__ == theirs.__constants__
    for a, e in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a[0] == e[0]
        assert a[1].dtype == e[1].dtype and torch.equal(a[1], e[1])
    assert ours._parameters.keys() == theirs._parameters.keys()
    if "Cell" not in name:
        assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
        assert list(map(id, ours._flat_weights)) == list(map(id, ours.parameters()))
        assert ours.flatten_parameters() is None
    torch.manual_seed(1)
    ours.reset_parameters()
    torch.manual_seed(1)
    theirs.reset_parameters()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((4, 3), {"dropout": "a"}),
        ((4, 3), {"dropout": True}),
        ((4, 3), {"dropout": 1.5}),
        ((4, 3), {"dropout": -0.1}),
        ((4, 3), {"bias": 1}),
        ((4, 3), {"batch_first": 1}),
        ((4.0, 3), {}),
        ((4, "3"), {}),
        ((0, 3), {}),
        ((4, 0), {}),
        ((4, -1), {}),
        ((4, 3), {"num_layers": 0}),
        ((4, 3), {"proj_size": 0.5, "bias": None}),
        ((4, 3), {"dtype": torch.int32}),
        ((4, 3), {"device": "nowhere"}),
    ],
)
@layers
def test_constructor_errors(name, args, kwargs):
    assert_same_error(lambda library: getattr(library, name)(*args, **kwargs))


def test_proj_size_errors():
    for size in (-1, 3, 4):
        assert_same_error(lambda library: library.LSTM(4, 3, proj_size=size))  # noqa: B023
    for name in ("GRU", "RNN"):
        for size in (0, 2):
            assert_same_error(lambda library: getattr(library, name)(4, 3, proj_size=size))  # noqa: B023
    # torch.nn takes it by position and builds a projection that it does not use
    for name, args in (("GRU", (1, True)), ("RNN", (1, "tanh", True))):
        with pytest.raises(ValueError, match="only supported for LSTM"):
            getattr(fastrnn, name)(4, 3, *args, False, 0.0, False, 2)
        assert getattr(fastrnn, name)(4, 3, *args, False, 0.0, False, "meta").weight_ih_l0.is_meta


def test_other_constructor_errors():
    assert_same_error(lambda library: library.RNN(2, 3, 1, True))
    assert_same_error(lambda library: library.RNN(2, 3, nonlinearity="selu"))
    assert_same_error(lambda library: library.RNNBase("ELMAN", 2, 3))
    for name in LAYERS:
        for args, kwargs in (((), {}), ((4, 3), {"depth": 2})):
            with pytest.raises(TypeError):
                getattr(fastrnn, name)(*args, **kwargs)


@layers
def test_dropout_warning(name):
    seen = []
    for library in (fastrnn, torch.nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(library, name)(4, 3, dropout=0.5)
        seen.append([(w.category, str(w.message)) for w in caught])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


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


# Errors of the call


@layers
def test_errors_of_the_call(name):
    def check(x, hx=None, **kwargs) -> None:
        assert_same_error(lambda library: getattr(library, name)(4, 3, **kwargs)(x, hx))

    x = torch.randn(5, 2, 4)
    for wrong in (x[0, 0], x[None], torch.randn(()), x.double(), x.long(), x[..., :3], x[:0]):
        check(wrong)
    check(x[:, :0], batch_first=True)
    check(x.transpose(0, 1)[:, :0], batch_first=True)
    for shape in ((2, 3), (1, 2, 1, 3), (1, 3, 3), (1, 2, 4), (2, 2, 3), (1, 0, 3)):
        check(x, state(name, *shape))
        check(x, state(name, *shape), bidirectional=True, num_layers=2, batch_first=True)
    for shape in ((3,), (1, 2, 3), (2, 3), (1, 4)):
        check(x[0], state(name, *shape))
    if name == "LSTM":
        check(x, state(name, 1, 2, 3), proj_size=2)
        check(x, state(name, 1, 2, 2, c_width=4), proj_size=2)
        check(x, torch.randn(1, 2, 3))
        check(x, (torch.randn(1, 2, 3),))
        check(x, (torch.randn(1, 2, 3),) * 3)
    else:
        check(x, (torch.randn(1, 2, 3),) * 2)
    check([1.0])
    check(None)


@layers
def test_mixed_dtypes_and_devices(name):
    """torch.nn raises RuntimeError too, with messages of the kernels it happens to call."""
    module = getattr(fastrnn, name)(4, 3)
    x, hx = example(name), state(name, 1, 3, 3)
    double, meta = [
        tuple(s.to(to) for s in hx) if name == "LSTM" else hx.to(to)
        for to in (torch.float64, "meta")
    ]
    with pytest.raises(RuntimeError, match="must have the same dtype, but got torch.float32 and"):
        module(x, double)
    for args in ((x, meta), (x.to("meta"), hx), (x.to("meta"),)):
        with pytest.raises(RuntimeError, match="to be on the same device"):
            module(*args)
    module.bias_hh_l0 = torch.nn.Parameter(module.bias_hh_l0.double())
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        module(x)


@layers
def test_weights_of_a_wrong_shape(name):
    x = example(name)
    for weight in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        for cut in (slice(1, None), slice(0, 0)):
            module = getattr(fastrnn, name)(4, 3)
            setattr(module, weight, torch.nn.Parameter(getattr(module, weight)[cut].detach()))
            with pytest.raises(RuntimeError):
                module(x)


@layers
def test_packed_errors(name):
    x = torch.randn(5, 2, 4)
    packed = pack_padded_sequence(x, [3, 5], enforce_sorted=False)
    module = getattr(fastrnn, name)(4, 3)
    type_of = RuntimeError if name == "LSTM" else ValueError  # of torch.nn
    with pytest.raises(type_of, match="does not match weight dtype"):
        module(packed.double())
    with pytest.raises(RuntimeError, match="must be equal to input_size. Expected 5, got 4"):
        getattr(fastrnn, name)(5, 3)(packed)
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        module(PackedSequence(x, packed.batch_sizes))
    # torch.nn permutes first, and takes the hx of a batch that is too large
    for shape in ((1, 3, 3), (1, 1, 3), (1, 2, 4), (2, 2, 3), (2, 3)):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module(packed, state(name, *shape))
    for sizes in ([1, 2, 2, 2, 1], [2, 2, 2, 2, 2, -2], [2, 2, 2, 1]):
        with pytest.raises(RuntimeError):
            module(PackedSequence(packed.data, torch.tensor(sizes)))
    with pytest.raises(RuntimeError):
        module(PackedSequence(packed.data, packed.batch_sizes.int()))
    if name == "LSTM":
        with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
            module(packed, (torch.randn(1, 2, 3),) * 3)


@cells
def test_errors_of_cells(name):
    def check(x, hx=None) -> None:
        assert_same_error(lambda library: getattr(library, name)(4, 3)(x, hx))

    x = torch.randn(2, 4)
    for wrong in (x[None], torch.randn(()), x[:, :3], x[0, :3]):
        check(wrong)
    for shape in ((2, 4), (1, 3), (3, 3), (2, 2, 3), ()):
        check(x, state(name, *shape) if shape else state(name, 1, 2, 3))
    check(x[0], state(name, 4))
    if name == "LSTMCell":
        check(x, (torch.randn(2, 3),))
        check(x, (torch.randn(2, 3),) * 3)
        check(x, (torch.randn(2, 3), torch.randn(2, 4)))
    module = getattr(fastrnn, name)(4, 3)
    for args in ((x, state(name, 3)), (x[0], state(name, 1, 3))):
        with pytest.raises(RuntimeError, match="should also be"):
            module(*args)
    for args in ((x.double(),), (x, state(name, 2, 3, dtype=torch.float64))):
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            module(*args)


def test_unknown_nonlinearity_of_a_cell():
    assert_same_error(lambda library: library.RNNCell(4, 3, nonlinearity="selu")(torch.randn(2, 4)))


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


# Parameters and the tools that handle them


@everything
def test_state_dict_goes_both_ways(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(0.5)
    ours.load_state_dict(theirs.state_dict())
    assert_same_results(ours(x), theirs(x))
    with torch.no_grad():
        for p in ours.parameters():
            p.neg_()
    theirs.load_state_dict(ours.state_dict())
    assert_same_results(ours(x), theirs(x))
    replaced = {k: 2 * v for k, v in ours.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(replaced, assign=True)
    assert_same_results(ours(x), theirs(x))


@everything
def test_copies(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    wanted = ours(x)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(saved, weights_only=False),
    ):
        for p in ours.parameters():
            assert all(p is not q for q in copied.parameters())
        assert_same_results(copied(x), wanted)
        with torch.no_grad():
            for p in copied.parameters():
                p.zero_()
        assert all(not t.any() for t in tree_leaves(copied(x)))
    assert_same_results(ours(x), wanted)
    assert_same_results(ours.double()(x.double()), theirs.double()(x.double()))


def test_pickles_from_before_proj_size():
    module = fastrnn.GRU(4, 3)
    old = module.__getstate__()
    del old["proj_size"]
    restored = fastrnn.GRU.__new__(fastrnn.GRU)
    restored.__setstate__(old)
    assert restored.proj_size == 0
    x = torch.randn(5, 2, 4)
    assert_same_results(restored(x), module(x))


@everything
def test_meta_device(name):
    with torch.device("meta"):
        ours = getattr(fastrnn, name)(4, 3)
    wanted = getattr(torch.nn, name)(4, 3, device="meta")(example(name).to("meta"))
    results = ours(example(name).to("meta"))
    for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
        assert a.is_meta and a.shape == e.shape
    ours.to_empty(device="cpu")
    _, theirs = pair(name, 4, 3)
    ours.load_state_dict(theirs.state_dict())
    x = example(name)
    assert_same_results(ours(x), theirs(x))


@everything
def test_functional_call(name):
    ours, theirs = pair(name, 4, 3)
    x = example(name)
    before = ours(x)
    changed = {k: (2 * v).detach().requires_grad_() for k, v in ours.named_parameters()}
    runs = []
    for module in (ours, theirs):
        results = torch.func.functional_call(module, changed, (x,))
        loss = tree_leaves(results)[0].sum()
        runs.append((results, torch.autograd.grad(loss, list(changed.values()))))
    assert_same_results(*runs)
    assert_same_results(ours(x), before)


@everything
@pytest.mark.parametrize("tool", ["weight_norm", "orthogonal", "prune"])
def test_parametrizations(name, tool):
    suffix = "" if name in CELLS else "_l0"
    runs = []
    x = example(name)
    for module in pair(name, 4, 3):
        torch.manual_seed(1)  # orthogonal draws a basis
        for weight in (f"weight_ih{suffix}", f"weight_hh{suffix}"):
            if tool == "weight_norm":
                parametrizations.weight_norm(module, weight)
            elif tool == "orthogonal":
                parametrizations.orthogonal(module, weight)
            else:
                prune.l1_unstructured(module, weight, amount=0.5)
        runs.append([])
        for _ in range(2):  # the weights of the second call are not those of the first
            results = module(x)
            module.zero_grad()
            tree_leaves(results)[0].square().sum().backward()
            assert all(p.grad is not None for p in module.parameters())
            runs[-1] += [*tree_leaves(results), *(p.grad for p in module.parameters())]
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.1)
        if tool == "weight_norm":
            parametrize.remove_parametrizations(module, f"weight_ih{suffix}")
            runs[-1] += tree_leaves(module(x))
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_deleted_weights(name):
    """As weight-drop recipes do: delete the parameter, then set a tensor at every call."""
    runs = []
    x = example(name)
    for module in pair(name, 4, 3):
        raw = module.weight_hh_l0
        del module.weight_hh_l0
        results = [module(x)]
        module.weight_hh_l0 = raw * 0.5
        results.append(module(x))
        tree_leaves(results[-1])[0].sum().backward()
        runs.append([*tree_leaves(results), raw.grad])
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_replaced_weights(name):
    ours, theirs = pair(name, 4, 3, 2)
    x = example(name)
    for module in (ours, theirs):
        module.weight_ih_l1 = torch.nn.Parameter(torch.ones_like(module.weight_ih_l1))
        module._parameters["bias_hh_l0"] = torch.nn.Parameter(torch.ones_like(module.bias_hh_l0))
    assert_same_results(ours(x), theirs(x))
    replica = ours._replicate_for_data_parallel()
    assert replica._flat_weights is not ours._flat_weights


@everything
def test_frozen_parameters(name):
    """Whatever requires grad gets one, and nothing else."""
    ours, theirs = pair(name, 4, 3)
    for k in range(len(list(ours.parameters()))):
        x = example(name)
        runs = []
        for module in (ours, theirs):
            for j, p in enumerate(module.parameters()):
                p.requires_grad_(j == k)
                p.grad = None
            sum(t.sum() for t in tree_leaves(module(x))).backward()
            runs.append([p.grad for p in module.parameters()])
        assert [g is None for g in runs[0]] == [g is None for g in runs[1]]
        assert_matches(runs[0][k], runs[1][k])
    for module in (ours, theirs):
        module.requires_grad_(False)
    x.requires_grad_()
    gradients = [torch.autograd.grad(tree_leaves(m(x))[0].sum(), x)[0] for m in (ours, theirs)]
    assert_matches(*gradients)


@layers
def test_backward_in_eval_mode(name):
    ours, theirs = pair(name, 4, 3, 2, dropout=0.5)
    x = example(name)
    gradients = [
        torch.autograd.grad(tree_leaves(m.eval()(x))[0].sum(), list(m.parameters()))
        for m in (ours, theirs)
    ]
    for a, e in zip(*gradients, strict=True):
        assert_matches(a, e)


# Transforms, compilation, backends


@everything
def test_vmap_and_per_sample_gradients(name):
    module = getattr(fastrnn, name)(4, 3, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    x = torch.stack([example(name, dtype=torch.float64) for _ in range(3)])

    def call(parameters, x):
        return tree_leaves(torch.func.functional_call(module, parameters, (x,)))

    def loss(parameters, x):
        return sum(t.square().sum() for t in call(parameters, x))

    batched = torch.vmap(call, (None, 0))(parameters, x)
    gradients = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    ensemble = {k: torch.stack([p, 2 * p, -p]).detach() for k, p in parameters.items()}
    of_ensemble = torch.vmap(call)(ensemble, x)
    for k in range(3):
        for a, e in zip(batched, call(parameters, x[k]), strict=True):
            assert_matches(a[k], e)
        wanted = torch.autograd.grad(loss(parameters, x[k]), list(parameters.values()))
        for a, e in zip(gradients.values(), wanted, strict=True):
            assert_matches(a[k], e)
        member = {key: p[k] for key, p in ensemble.items()}
        for a, e in zip(of_ensemble, call(member, x[k]), strict=True):
            assert_matches(a[k], e)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "padded") for name in LAYERS + CELLS]
    + [(name, form) for name in LAYERS for form in ("sorted", "unsorted")],
)
def test_compile(name, form):
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True}
    module, x = getattr(fastrnn, name)(4, 3, **options), example(name)
    if form != "padded":
        lengths = [5, 3, 2] if form == "sorted" else [2, 5, 3]
        x = pack_padded_sequence(x, lengths, enforce_sorted=form == "sorted")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_results(compiled(x), module(x))
    runs = []
    for call in (compiled, module):
        floats = [t for t in tree_leaves(call(x)) if t is not None and t.requires_grad]
        runs.append(torch.autograd.grad(sum(t.sum() for t in floats), list(module.parameters())))
    for a, e in zip(*runs, strict=True):
        assert_matches(a, e)


@layers
def test_compile_of_transforms(name):
    """An op by itself would fail under vmap and grad, and give zero under jvp."""
    module = getattr(fastrnn, name)(4, 3, dtype=torch.float64)
    x = example(name, T=2, dtype=torch.float64)

    def loss(x):
        return module(x)[0].square().sum()

    def halved(x):
        parameters = {k: p / 2 for k, p in module.named_parameters()}
        return torch.func.functional_call(module, parameters, (x,))

    for function in (
        torch.func.grad(loss),
        torch.vmap(lambda row: module(row)[0], 1),
        lambda x: torch.func.jvp(loss, (x,), (torch.ones_like(x),)),
        halved,
    ):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same_results(compiled(x), function(x))


@everything
def test_reference_backend(name):
    module = getattr(fastrnn, name)(4, 3)
    x = example(name)
    with fastrnn.backend("reference"):
        wanted = module(x)
    assert_same_results(module(x), wanted)


def test_cells_keep_their_state_dtype_under_autocast():
    for name in CELLS:
        ours, theirs = pair(name, 4, 3)
        x = example(name)
        with torch.autocast("cpu", torch.bfloat16):
            results, wanted = ours(x), theirs(x)
        for a, e in zip(tree_leaves(results), tree_leaves(wanted), strict=True):
            assert a.dtype == e.dtype
            assert_matches(a.bfloat16(), e)


def test_input_check_is_off_under_autocast():
    ours, theirs = pair("GRU", 4, 3)
    x = example("GRU").bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x)[0].dtype == theirs(x)[0].dtype == torch.bfloat16


def test_public_names():
    for name in fastrnn.__all__:
        assert hasattr(fastrnn, name)
    for name in LAYERS:
        assert not isinstance(getattr(fastrnn, name)(4, 3), getattr(torch.nn, name))
        assert isinstance(getattr(fastrnn, name)(4, 3), torch.nn.RNNBase)
