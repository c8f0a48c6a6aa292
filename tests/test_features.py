"""reset, lengths, states, truncated and clipped gradients, against loops written out in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import assert_matches
from hypothesis import given, settings
from hypothesis import strategies as st
from test_modules import LAYERS, layers, state
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import ops, reference, reference_ops

each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


@contextlib.contextmanager
def using(backend: str):
    """The backend; "cpu" is the ops, in plain PyTorch where no kernels are built."""
    not_built = ops._not_built
    ops._not_built = None
    try:
        with fastrnn.backend(backend):
            yield
    finally:
        ops._not_built = not_built


def sigmoids(*parts: Tensor) -> list[Tensor]:
    return [1 / (1 + torch.exp(-part)) for part in parts]


def one_step(name: str, x: Tensor, h: Tensor, c: Tensor | None, weights: dict[str, Tensor]):
    """(h', c', gates (G, H)) of one row: the equations in the documentation of torch.nn."""
    H = weights["weight_ih"].size(0) // {"LSTM": 4, "GRU": 3, "RNN": 1}[name.split("_")[0]]
    a = (weights["weight_ih"] @ x + weights.get("bias_ih", 0)).split(H)
    b = (weights["weight_hh"] @ h + weights.get("bias_hh", 0)).split(H)
    if name == "LSTM":
        i, f, o = sigmoids(a[0] + b[0], a[1] + b[1], a[3] + b[3])
        g = torch.tanh(a[2] + b[2])
        c = f * c + i * g
        h = o * torch.tanh(c)
        return weights["weight_hr"] @ h if "weight_hr" in weights else h, c, (i, f, g, o)
    if name == "GRU":
        r, z = sigmoids(a[0] + b[0], a[1] + b[1])
        n = torch.tanh(a[2] + r * b[2])
        return (1 - z) * n + z * h, None, (r, z, n)
    h = torch.tanh(a[0] + b[0]) if name == "RNN_TANH" else (a[0] + b[0]).clamp_min(0)
    return h, None, (h,)


def padded(values: list[Tensor], T: int, like: tuple[int, ...]) -> Tensor:
    rest = torch.zeros(T - len(values), *like, dtype=torch.float64)
    return torch.cat([torch.stack(values), rest]) if values else rest


def plain_loop(
    module: torch.nn.RNNBase,
    parameters: dict[str, Tensor],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    detach_every: int | None = None,
    grad_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]:
    """(y, h_n, c_n, h, c, gates) of x (T, N, I), one row after the other; no dropout.

    The last three are lists of one tensor for each layer: (T, N, D, P), (T, N, D, H) and
    (T, N, D, G, H).
    """
    T, N, _ = x.shape
    H, P = module.hidden_size, module.proj_size or module.hidden_size
    D = 2 if module.bidirectional else 1
    G = module.weight_ih_l0.size(0) // H
    y, finals = x, []
    states = [], [], []
    for layer in range(module.num_layers):
        rows = []
        for d in range(D):
            suffix = f"_l{layer}" + "_reverse" * d
            weights = {
                k.removesuffix(suffix): v for k, v in parameters.items() if k.endswith(suffix)
            }
            for n in range(N):
                k = layer * D + d
                h, c = h0[k, n], None if c0 is None else c0[k, n]
                length = T if lengths is None else int(lengths[n])
                before, steps = None, []
                for t in range(length) if d == 0 else reversed(range(length)):
                    if detach_every and before is not None and max(t, before) % detach_every == 0:
                        h, c = h.detach(), None if c is None else c.detach()
                    if reset is not None:
                        alive = 1 - reset[t, n].double()
                        h, c = h * alive, None if c is None else c * alive
                    if grad_clip:
                        h = h * 1
                        if h.requires_grad:
                            h.register_hook(lambda g: g.clamp(-grad_clip, grad_clip))
                    h, c, gates = one_step(module.mode, y[t, n], h, c, weights)
                    steps.append((h, c, torch.stack(gates)))
                    before = t
                finals.append((h, c))
                if d == 1:
                    steps.reverse()
                h_t, c_t, gates = zip(*steps, strict=True) if steps else ([], [], [])
                rows.append(
                    (
                        padded(h_t, T, (P,)),
                        None if c0 is None else padded(c_t, T, (H,)),
                        padded(gates, T, (G, H)),
                    )
                )
        for kind, values in zip(states, zip(*rows, strict=True), strict=True):
            if values[0] is not None:
                kind.append(torch.stack(values, 1).unflatten(1, (D, N)).transpose(1, 2))
        y = states[0][-1].flatten(2)
    h_n, c_n = (
        None if values[0] is None else torch.stack(values).unflatten(0, (-1, N))
        for values in zip(*finals, strict=True)
    )
    return y, h_n, c_n, *states


@st.composite
def scenarios(draw) -> dict:
    """A module, the form of its input, and any features that go together."""
    name = draw(st.sampled_from(LAYERS))
    hidden = draw(st.integers(1, 9))
    kwargs = {
        "num_layers": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if name == "RNN":
        kwargs["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if name == "LSTM" and hidden > 1:
        kwargs["proj_size"] = draw(st.integers(0, hidden - 1))
    T, N = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    batched = draw(st.integers(0, 4)) > 0
    N = N if batched else 1
    flags = st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=T, max_size=T)
    reset = None if kwargs["bidirectional"] else draw(st.none() | flags)
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N))
    return {
        "name": name,
        "args": (draw(st.integers(1, 6)), hidden),
        "kwargs": kwargs,
        "sizes": (T, N),
        "batched": batched,
        "reset": None if reset is None else torch.tensor(reset),
        "lengths": torch.tensor(lengths) if batched and lengths is not None else None,
        "detach_every": draw(st.none() | st.integers(1, T + 1)),
        "grad_clip": draw(st.none() | st.sampled_from([1e-3, 0.05, 0.5, 1e3])),
        "dtype": draw(st.sampled_from([torch.float64, torch.float64, torch.float32])),
        "hx": draw(st.booleans()),
        "gates": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@each_backend
@settings(max_examples=100, deadline=None, derandomize=True)
@given(scenario=scenarios())
def test_equals_a_plain_loop(backend, scenario):
    """Every result, and every gradient from gradients of all results at once."""
    kwargs, (T, N), batched = scenario["kwargs"], scenario["sizes"], scenario["batched"]
    dtype, reset, lengths = scenario["dtype"], scenario["reset"], scenario["lengths"]
    limits = {key: scenario[key] for key in ("detach_every", "grad_clip")}
    torch.manual_seed(scenario["seed"])
    module = getattr(fastrnn, scenario["name"])(*scenario["args"], **kwargs, dtype=dtype)
    x = torch.randn(T, N, scenario["args"][0], dtype=dtype)
    count = kwargs["num_layers"] * (2 if kwargs["bidirectional"] else 1)
    hx = [torch.randn(count, N, module.proj_size or module.hidden_size, dtype=dtype)]
    if module.mode == "LSTM":
        hx.append(torch.randn(count, N, module.hidden_size, dtype=dtype))
    if not scenario["hx"]:
        hx = [torch.zeros_like(s) for s in hx]

    wide = [t.double().requires_grad_() for t in (x, *hx, *module.parameters())]
    names = [name for name, _ in module.named_parameters()]
    h0, c0 = wide[1], wide[2] if len(hx) == 2 else None
    parameters = dict(zip(names, wide[1 + len(hx) :], strict=True))
    y, h_n, c_n, *states = plain_loop(module, parameters, wide[0], h0, c0, reset, lengths, **limits)
    wanted = [y, h_n, *([] if c_n is None else [c_n]), *states[0], *states[1]]
    cotangents = [torch.randn_like(t) for t in wanted]
    attached = [pair for pair in zip(wanted, cotangents, strict=True) if pair[0].requires_grad]
    wanted_gradients = [None] * len(wide)
    if attached:  # nothing is, where every length is 0
        wanted_gradients = torch.autograd.grad(
            [t for t, _ in attached], wide, [g for _, g in attached], allow_unused=True
        )

    def user(t: Tensor, batch_dim: int = 1) -> Tensor:
        """From (T, N, ...) to the user's form; the batch of a final state stays where it is."""
        if not batched:
            return t.squeeze(batch_dim)
        return t.transpose(0, 1) if kwargs["batch_first"] and batch_dim == 1 else t

    x, *hx = leaves = [t.requires_grad_() for t in (x, *hx)]
    start = [s if batched else s.squeeze(1) for s in hx]
    with using(backend):
        result = module(
            user(x),
            None if not scenario["hx"] else tuple(start) if len(hx) == 2 else start[0],
            reset=None if reset is None else user(reset),
            lengths=lengths,
            return_states=True,
            return_gates=scenario["gates"],
            **limits,
        )
    output, final, got = result
    assert isinstance(got, fastrnn.States)
    floats = [output, *tree_leaves(final), *got.h, *(got.c or ())]
    assert (got.c is None) == (len(hx) == 1)
    finals = range(1, 1 + len(hx))
    shaped = [
        (t if batched else t.squeeze(1)) if k in finals else user(t) for k, t in enumerate(wanted)
    ]
    for k, (a, e) in enumerate(zip(floats, shaped, strict=True)):
        assert a.dtype == dtype
        assert_matches(a, e, f"result {k}")
    assert (got.gates is not None) == scenario["gates"]
    for a, e in zip(got.gates or (), states[2] if scenario["gates"] else (), strict=True):
        assert not a.requires_grad
        assert_matches(a, user(e), "gates")

    seeds = [
        ((t if batched else t.squeeze(1)) if k in finals else user(t)).to(dtype)
        for k, t in enumerate(cotangents)
    ]
    inputs = [*leaves, *module.parameters()] if scenario["hx"] else [x, *module.parameters()]
    skip = [] if scenario["hx"] else list(finals)
    gradients = torch.autograd.grad(floats, inputs, seeds, allow_unused=True)
    expected = [g for k, g in enumerate(wanted_gradients) if k not in skip]
    labels = ["input", *(["h0", "c0"][: len(hx)] if scenario["hx"] else []), *names]
    for label, a, e, t in zip(labels, gradients, expected, inputs, strict=True):
        zeros = torch.zeros_like(t)
        assert_matches(zeros if a is None else a, zeros if e is None else e, f"gradient of {label}")


@each_backend
@layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_those_of_a_packed_sequence(name, bidirectional, backend):
    options = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    options |= {"proj_size": 2} if name == "LSTM" else {}
    ours, theirs = getattr(fastrnn, name)(4, 3, **options), getattr(torch.nn, name)(4, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    D = 2 if bidirectional else 1
    hx = state(name, 2 * D, 5, options.get("proj_size", 3), c_width=3, dtype=torch.float64)
    for lengths in ([6, 6, 6, 6, 6], [2, 6, 1, 4, 4], [3, 1, 2, 2, 1]):
        lengths = torch.tensor(lengths)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, final = theirs(packed, hx)
        wanted = [pad_packed_sequence(output, total_length=6)[0], *tree_leaves(final)]
        with using(backend):
            results = tree_leaves(ours(x, hx, lengths=lengths))
        cotangents = [torch.randn_like(t) for t in wanted]
        for a, e in zip(results, wanted, strict=True):
            assert_matches(a, e)
        runs = [
            torch.autograd.grad(floats, list(module.parameters()), cotangents)
            for floats, module in ((results, ours), (wanted, theirs))
        ]
        for a, e in zip(*runs, strict=True):
            assert_matches(a, e)


@each_backend
@layers
def test_states_are_those_of_a_loop_of_cells(name, backend):
    module = getattr(fastrnn, name)(4, 3, 2, dtype=torch.float64)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    with using(backend), torch.no_grad():
        _, _, states = module(x, return_states=True)
        _, _, more = module(x, return_gates=True)
    assert states.gates is None and len(more.gates) == 2
    below = x
    for layer in range(2):
        cell = getattr(torch.nn, f"{name}Cell")(below.size(-1), 3, dtype=torch.float64)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, kind).data = getattr(module, f"{kind}_l{layer}").data
        hx, seen = None, []
        for x_t in below:
            hx = cell(x_t, hx)
            seen.append(hx if name == "LSTM" else (hx,))
        for each in (states, more):
            assert_matches(each.h[layer][:, :, 0], torch.stack([s[0] for s in seen]))
            if name == "LSTM":
                assert_matches(each.c[layer][:, :, 0], torch.stack([s[1] for s in seen]))
        below = states.h[layer][:, :, 0]


@each_backend
@layers
def test_chunks_and_episodes(name, backend):
    """detach_every is a training loop that carries a detached state; reset, a call for each."""
    module = getattr(fastrnn, name)(4, 3, 2, dtype=torch.float64)
    theirs = getattr(torch.nn, name)(4, 3, 2, dtype=torch.float64)
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    starts = torch.zeros(7, 2, dtype=torch.bool)
    starts[[0, 3, 6]] = True
    for options, carried in (({"detach_every": 3}, True), ({"reset": starts}, False)):
        with using(backend):
            output, _ = module(x, **options)
        hx, outputs = None, []
        for chunk in x.split(3):
            part, final = theirs(chunk, hx)
            outputs.append(part)
            if carried:
                hx = tuple(s.detach() for s in final) if name == "LSTM" else final.detach()
        wanted, seed = torch.cat(outputs), torch.randn_like(output)
        assert_matches(output, wanted)
        runs = [
            torch.autograd.grad(y, list(m.parameters()), seed)
            for y, m in ((output, module), (wanted, theirs))
        ]
        for a, e in zip(*runs, strict=True):
            assert_matches(a, e)


@each_backend
@layers
def test_padding_does_not_leak(name, backend):
    """NaN, inf and garbage behind a length, in results and in gradients; rows of length 0."""
    module = getattr(fastrnn, name)(4, 3, 2, bidirectional=True)
    lengths = torch.tensor([3, 0, 5, 1])
    padding = torch.arange(5)[:, None] >= lengths
    clean = torch.randn(5, 4, 4).masked_fill(padding[..., None], 0)
    hx = state(name, 4, 4, 3)
    runs = []
    for value in (0.0, float("nan"), float("inf"), 1e30):
        x = clean.masked_fill(padding[..., None], value).requires_grad_()
        with using(backend):
            output, final, states = module(x, hx, lengths=lengths, return_gates=True)
        assert (output[padding] == 0).all()
        assert all((t[padding] == 0).all() for t in tree_leaves(states) if t is not None)
        for end, start in zip(tree_leaves(final), tree_leaves(hx), strict=True):
            assert torch.equal(end[:, 1], start[:, 1])
        floats = [output, *tree_leaves(final), *states.h, *(states.c or ())]
        loss = sum(t.square().sum() for t in floats)
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        assert (gradients[0][padding] == 0).all()
        runs.append([*floats, *gradients])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    assert all(t.isfinite().all() for t in runs[0])


@each_backend
@layers
def test_all_lengths_zero(name, backend):
    module, x = getattr(fastrnn, name)(4, 3, bidirectional=True), torch.randn(5, 2, 4)
    hx = [s.requires_grad_() for s in tree_leaves(state(name, 2, 2, 3))]
    with using(backend):
        result = module(x, tuple(hx) if name == "LSTM" else hx[0], lengths=torch.zeros(2).long())
    output, *final = tree_leaves(result)
    assert (output == 0).all() and all(map(torch.equal, final, hx))
    gradients = torch.autograd.grad(sum(s.sum() for s in final), [*hx, *module.parameters()])
    assert all((g == 1).all() for g in gradients[: len(hx)])
    assert all((g == 0).all() for g in gradients[len(hx) :])


@each_backend
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_any_integer_dtype_and_stride(dtype, backend):
    module, x = fastrnn.GRU(4, 3, batch_first=True), torch.randn(3, 5, 4)
    reset = torch.rand(3, 5) < 0.3
    wanted = module(x, lengths=torch.tensor([2, 0, 5]), reset=reset)[0]
    strided = torch.tensor([[2, 0, 5], [9, 9, 9]], dtype=dtype).t().contiguous().t()[0]
    with using(backend):
        output = module(x, lengths=strided, reset=reset.t().contiguous().t())[0]
    assert_matches(output, wanted)


def test_unused_features_change_nothing():
    for name in LAYERS:
        module, x = getattr(fastrnn, name)(4, 3, 2), torch.randn(5, 2, 4)
        plain = module(x)
        result = module(
            x,
            reset=None,
            lengths=None,
            return_states=False,
            return_gates=False,
            detach_every=None,
            grad_clip=None,
        )
        assert type(result) is tuple and len(result) == 2
        assert all(map(torch.equal, tree_leaves(result), tree_leaves(plain)))
        every = module(x, lengths=torch.full((2,), 5), reset=torch.zeros(5, 2, dtype=torch.bool))
        for a, e in zip(tree_leaves(every), tree_leaves(plain), strict=True):
            assert_matches(a, e)


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
    return *args, mode.lower(), True, reset, lengths, 2, 0.05


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
    backward = (*grads, *args[:5], *saved, *args[5:7], *needs, *args[7:])
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
        options = (*call[5:7], True, True, True, *call[7:])
        *inputs, weights = function(*seeds, *call[:5], saved[0], *saved[3:], *options)
        gradients.append([*inputs, *weights])
    for k, (a, e) in enumerate(zip(*gradients, strict=True)):
        assert_matches(a, e, f"gradient {k}")


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_op_has_the_derivative_of_the_layer(name, traced):
    """Compiled graphs call the op, eager mode the Function, transforms the reference."""
    args = layer_arguments(name)
    inputs = [t for t in (args[0], args[2], args[3], *args[4]) if t is not None]
    options = ops.Options(*args[7:], trace=traced)
    with using("reference"):
        wanted = [t for t in ops.layer(*args[:7], options) if t.requires_grad]
    with using("cpu"):
        function = [t for t in ops.layer(*args[:7], options) if t.requires_grad]
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
    c0, cell = args[3], args[5]

    def layer(x, h0, *rest):
        c, weights = (None, rest) if c0 is None else (rest[0], rest[1:])
        options = ops.Options(reset, lengths, trace=True)
        y, h_n, c_n, _, cells = ops.layer(x, None, h0, c, weights, cell, True, options)
        return (y, h_n, c_n, cells) if c0 is not None else (y, h_n)

    inputs = [t for t in (args[0], args[2], c0, *args[4]) if t is not None]
    with using(backend):
        assert torch.autograd.gradcheck(layer, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


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


@layers
def test_step_errors(name):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(2, 4)
    for wrong in (x[0], x[None]):
        with pytest.raises(ValueError, match="step: Expected input to be 2D"):
            module.step(wrong)
    with pytest.raises(ValueError, match="expected bool"):
        module.step(x, reset=torch.zeros(2))
    for shape in ((3,), (1, 2), ()):
        with pytest.raises(RuntimeError, match="Expected reset size"):
            module.step(x, reset=torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(RuntimeError):
        module.step(x, state(name, 1, 3, 3))
    with pytest.raises(ValueError, match="bidirectional"):
        getattr(fastrnn, name)(4, 3, bidirectional=True).step(x)


def flags(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@each_backend
@layers
@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"reset": torch.zeros(5, 3)}, ValueError, "reset: expected bool, got torch.float32"),
        ({"reset": flags(3, 5)}, RuntimeError, r"Expected reset size \(5, 3\), got \(3, 5\)"),
        ({"reset": flags(5)}, RuntimeError, "Expected reset size"),
        ({"reset": flags(5, 3).to("meta")}, RuntimeError, "on the same device"),
        ({"lengths": torch.ones(3)}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": flags(3)}, ValueError, "lengths: expected an integer dtype"),
        ({"lengths": torch.tensor([1, 2])}, RuntimeError, r"Expected lengths size \(3,\)"),
        ({"lengths": torch.tensor(2)}, RuntimeError, "Expected lengths size"),
        ({"lengths": torch.tensor([1, 6, 2])}, RuntimeError, "lengths"),
        ({"lengths": torch.tensor([1, -1, 2])}, RuntimeError, "lengths"),
        ({"detach_every": 0}, ValueError, "detach_every must be an integer of at least 1, got 0"),
        ({"detach_every": -2}, ValueError, "detach_every"),
        ({"detach_every": 2.0}, ValueError, "detach_every"),
        ({"grad_clip": 0.0}, ValueError, r"grad_clip must be greater than 0, got 0\.0"),
        ({"grad_clip": -1.0}, ValueError, "grad_clip"),
        ({"grad_clip": float("nan")}, ValueError, "grad_clip"),
    ],
)
def test_errors(name, asked, error, message, backend):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(5, 3, 4)
    for call in (
        lambda: module(x, **asked),
        lambda: module(x.requires_grad_(), return_gates=True, **asked),
    ):
        with pytest.raises(error, match=message), using(backend):
            call()


@layers
def test_what_does_not_go_together(name):
    module, x = getattr(fastrnn, name)(4, 3), torch.randn(5, 3, 4)
    packed = pack_padded_sequence(x, [5, 3, 2])
    for feature in FEATURES:
        with pytest.raises(ValueError, match="need padded input, got packed"):
            module(packed, **FEATURES[feature](5, 3))
    with pytest.raises(ValueError, match="lengths need batched input"):
        module(x[:, 0], lengths=torch.tensor([2]))
    with pytest.raises(RuntimeError, match="For unbatched input, reset should be 1-D but got 2-D"):
        module(x[:, 0], reset=flags(5, 1))
    with pytest.raises(ValueError, match="reset needs a network of one direction"):
        getattr(fastrnn, name)(4, 3, bidirectional=True)(x, reset=flags(5, 3))
    with pytest.raises(TypeError):
        module(x, None, flags(5, 3))


def test_the_ops_check_what_python_did_not():
    *args, reset, lengths, _, _ = layer_arguments("gru")
    packed = [args[0].flatten(0, 1), torch.tensor([3, 3, 3, 3]), *args[2:]]
    for op in (torch.ops.fastrnn.layer_inference, torch.ops.fastrnn.layer_forward):
        for call, features in (
            (packed, {"reset": reset}),
            (packed, {"lengths": lengths}),
            (args, {"reset": reset[1:]}),
            (args, {"reset": reset.int()}),
            (args, {"lengths": lengths[1:]}),
            (args, {"lengths": lengths.int()}),
            (args, {"lengths": lengths + 3}),
            (args, {"lengths": lengths - 3}),
        ):
            with pytest.raises(RuntimeError):
                op(*call, **features)


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
