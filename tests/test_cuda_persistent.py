"""The persistent schedule of the CUDA kernels: one launch for all steps, in each of its ways.

No GPU has run these kernels: here they run in the emulation (tests/cpp/emulate_exchange.h).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import assert_matches
from cuda_kernels import (
    ON_GPU,
    SIZES,
    WAYS,
    as_precise,
    emulation,
    force,
    in_several_orders,
    kernels,
    launch,
    layer_backward,
    layer_forward,
    layer_inference,
    on_device,
)
from layers import reference_ops
from op_cases import (
    FORWARD,
    Case,
    arguments,
    assert_gradients,
    backward,
    converted,
    cotangents,
    expected,
)

from fastrnn.dispatch import choice
from fastrnn.table import CELLS

HOW = ["bfloat16", "float16", "tf32"]


def assert_right(case: Case) -> None:
    """Forward and backward, in 16 bits, against float64."""
    args = arguments(case)
    wanted, wanted_gradients = expected(case)
    results = layer_forward(*on_device(args))
    for name, actual, value in zip(FORWARD, results, wanted, strict=True):
        assert_matches(actual.cpu(), value, name)
    grads = [None if g is None else g.to(case.dtype) for g in on_device(cotangents(wanted))]
    gradients = backward(layer_backward, on_device(args), results, grads)
    assert_gradients(as_precise("bfloat16", gradients), wanted_gradients)


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_or_two(way, cell, T, monkeypatch):
    """In which nothing is sent, or what is sent is not answered."""
    N, H = SIZES[way]
    force(monkeypatch, way)
    assert_right(Case(cell, T=T, N=N, H=H, D=2, dtype=torch.bfloat16))


@pytest.mark.parametrize(("way", "H"), [("cluster", 512), ("memory", 1024)])
def test_the_largest_layers(way, H, monkeypatch):
    """All that registers hold: in a cluster of 16 blocks, and in 64 that go through memory."""
    force(monkeypatch, way)
    assert_right(Case("lstm", T=3, N=1, H=H, I=3, D=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("way", WAYS)
def test_bits_depend_neither_on_the_order_of_threads_nor_on_other_rows(way, monkeypatch):
    N, H = SIZES[way]
    force(monkeypatch, way)
    args = on_device(arguments(Case("lstm", T=4, N=N, H=H, dtype=torch.bfloat16)))
    first, *others = in_several_orders(args)
    assert all(torch.equal(a, b) for run in others for a, b in zip(run, first, strict=True))
    input, _, h0, c0, *rest = args
    input.zero_()  # torch's product of the inputs may depend on their number
    whole = layer_inference(input, None, h0, c0, *rest)
    rows = [N - 1, 2]
    part = layer_inference(input[:, rows], None, h0[:, rows], c0[:, rows], *rest)
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a, b[:, rows])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_relu"])
@pytest.mark.parametrize("way", WAYS)
def test_special_values_stay_in_their_row(way, cell, value, monkeypatch):
    """Also through memory, where the last bit of some factors says in which round they came."""
    N, H = SIZES[way]
    force(monkeypatch, way)
    args = arguments(Case(cell, T=3, N=N, H=H, D=1, dtype=torch.bfloat16))
    plain = layer_inference(*on_device(args))
    args[2][:, 1] = value  # h0
    special = layer_inference(*on_device(args))
    others = [n for n in range(N) if n != 1]
    for a, b in zip(plain, special, strict=True):
        if a.numel():
            assert torch.equal(a[:, others], b[:, others])
    wanted = reference_ops.layer_inference(*converted(args, torch.float64))
    assert_matches(special[0].cpu(), wanted[0])


def choose(H, N, how="bfloat16", D=1, backward=False, cell="lstm"):
    return kernels().cuda_groups(cell, CELLS[cell].gates, how, H, N, D, backward)


def test_groups():
    """What a layer is given: one block, a cluster, or blocks that all run at once, or nothing."""
    if ON_GPU:
        pytest.skip("the numbers below are those of the H200 that the emulation stands for")
    sizes = itertools.product([1, 33, 128, 129, 256, 500, 512, 700, 1024, 1025], [1, 8, 64, 300])
    for (H, N), how, D, back in itertools.product(sizes, HOW, (1, 2), (False, True)):
        units, rows, ring = choose(H, N, how, D, back)
        if not units:
            assert (rows, ring) == (0, 0)
            continue
        blocks, parts = -(-H // units), -(-N // rows)
        assert 1 <= rows <= 8 and (units == 16) == (ring > 0)
        if ring:  # for two steps, of each row of each group
            padded = -(-H // 4) * 4 if how == "tf32" else -(-H // 8) * 8
            assert ring == D * parts * 2 * 8 * padded * (4 if back else 1)
            assert blocks * parts * D <= 132
        else:
            assert blocks <= 16
    assert choose(128, 16)[0] == 128 and choose(64, 16, "tf32")[0] == 64  # a block has all units
    assert choose(256, 16) == (32, 2, 0) and choose(512, 300) == (32, 8, 0)
    assert choose(1024, 16)[0] == choose(512, 16, "tf32")[0] == 16
    nothing = (0, 0, 0)
    assert choose(1025, 1) == choose(1024, 64) == choose(1024, 1, "tf32") == nothing
    assert choose(64, 16, "float32") == choose(64, 16, "float64") == choose(64, 0) == nothing


@pytest.mark.parametrize(("largest", "units"), [(16, 32), (8, 16), (0, 16)])
def test_where_clusters_cannot_run(largest, units, monkeypatch):
    """The driver says that none, or none so large, fits: blocks go through memory instead, or where
    they cannot either, each step is a launch."""
    if ON_GPU:
        pytest.skip("the driver of this GPU says what it says")
    monkeypatch.setattr(launch, "schedule", "auto persistent")
    monkeypatch.setattr(choice, "forced", "cuda")
    H = 260 + largest  # a size that no other test asks the driver about
    try:
        emulation().clusters(largest)
        assert choose(H, 2)[0] == units and (choose(H, 2)[2] > 0) == (units == 16)
        assert choose(H, 300)[0] == (32 if largest == 16 else 0)
        emulation().launched()
        assert_right(Case("lstm", T=2, N=2, H=H, I=3, D=1, dtype=torch.bfloat16))
        persistent = {"persistent_forward", "persistent_backward"}
        assert emulation().launched() == persistent
    finally:
        emulation().clusters(16)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_only_who_asks_gets_it(cell, monkeypatch):
    """No GPU has run these kernels, so nothing chooses them by itself."""
    if ON_GPU:
        pytest.skip("only the emulation records which kernels ran")
    args = arguments(Case(cell, T=3, N=5, H=40, dtype=torch.bfloat16))
    emulation().launched()
    wanted = layer_inference(*args)
    assert launch.schedule == "auto" and emulation().launched() == {"forward_cell"}
    monkeypatch.setattr(launch, "schedule", "auto persistent")  # as the environment says
    layer_inference(*args)
    assert emulation().launched() == {"forward_cell"}  # "auto", where they were not tried
    with monkeypatch.context() as patch:
        patch.setattr(choice, "tried", lambda *_: True)
        layer_inference(*args)
    assert emulation().launched() == {"persistent_forward"}
    monkeypatch.setattr(choice, "forced", "cuda")
    for actual, value in zip(layer_inference(*args), wanted, strict=True):
        assert_matches(actual, value)
    assert emulation().launched() == {"persistent_forward"}
    wide = converted(args, torch.float64)
    layer_inference(*wide)
    assert emulation().launched() == {"forward_cell"}
    monkeypatch.setattr(launch, "schedule", "persistent")
    with pytest.raises(RuntimeError, match="no group of blocks holds this layer"):
        layer_inference(*wide)
    try:
        emulation().device(108, 8)  # which has no clusters
        monkeypatch.setattr(launch, "schedule", "auto persistent")
        assert choose(64, 16) == (0, 0, 0)
        layer_inference(*args)
        assert emulation().launched() == {"forward_cell"}
    finally:
        emulation().device(132, 9)
    layer_inference(*args)
    assert emulation().launched() == {"persistent_forward"}


def test_a_projection_keeps_the_step_kernels(monkeypatch):
    monkeypatch.setattr(launch, "schedule", "auto persistent")
    monkeypatch.setattr(choice, "forced", "cuda")
    args = arguments(Case("lstm_proj", T=3, N=5, H=40, dtype=torch.bfloat16))
    wanted = reference_ops.layer_inference(*converted(args, torch.float64))
    for actual, value in zip(layer_inference(*on_device(args)), wanted, strict=True):
        assert_matches(actual.cpu(), value)
