"""The persistent schedule of the CUDA kernels: one launch for all steps, in each of its ways.

No GPU has run these kernels: here they run in the emulation (tests/cpp/emulate_exchange.h).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import assert_matches
from cuda_kernels import (
    DEVICE,
    ON_GPU,
    as_precise,
    emulated,
    layer_backward,
    layer_forward,
    layer_inference,
    on_device,
)
from layers import reference_ops
from op_cases import (
    AXES,
    FORMS,
    FORWARD,
    Case,
    arguments,
    assert_gradients,
    backward,
    converted,
    cotangents,
    expected,
)

from fastrnn.dispatch.cuda import launch
from fastrnn.table import CELLS

HOW = ["bfloat16", "float16", "tf32"]
# Units of a block, and whether the state goes through memory; then batch rows of a group, N and H.
# One block has the whole layer, a cluster of three blocks, five blocks that go through memory.
WAYS = {
    "whole": (None, False, 8, 11, 37),
    "cluster": (32, False, 3, 7, 70),
    "memory": (16, True, 4, 6, 66),
}


@pytest.fixture(autouse=True, scope="module")
def kernels():
    with emulated():
        yield


def divided(units: int | None, memory: bool, rows: int):
    """Stands for launch.groups: loops in groups like that."""

    def groups(cell, how, H, N, D, backward, device):
        item = 4 if how == "tf32" else 2
        each = units or 256 // item
        planes = cell.gates if memory and backward else 1
        depth = 256 * (8 * 16 // each) * planes
        used = planes * 16 * -(-H * item // 16)
        return {
            "group_units": each,
            "group_through_memory": int(memory),
            "group_blocks": -(-H // each),
            "group_parts": -(-N // rows),
            "group_rows": rows,
            "group_depth": depth // 2 if 2 * used <= depth else depth,
        }

    return groups


def force(monkeypatch, how: str, units: int | None, memory: bool, rows: int) -> None:
    monkeypatch.setattr(launch, "groups", divided(units, memory, rows))
    if how == "tf32":
        monkeypatch.setattr(launch, "precision", lambda _: "tf32")


def dtype_of(how: str) -> torch.dtype:
    return torch.float32 if how == "tf32" else getattr(torch, how)


def run(args, options, grads):
    """Results and gradients of a call."""
    results = layer_forward(*args, **options)
    output, _, _, *saved = results
    needs = (True, True, True)
    return results, layer_backward(*grads, None, output, *saved, *needs, *args, **options)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("cell", [cell for cell in AXES["cell"] if "proj" not in cell])
@pytest.mark.parametrize("way", WAYS)
def test_matches_float64(way, cell, how, monkeypatch):
    *division, N, H = WAYS[way]
    force(monkeypatch, how, *division)
    for T, (D, packed, bias) in zip((1, 2, 5), FORMS, strict=False):
        case = Case(cell, T=T, N=N, H=H, D=D, packed=packed, bias=bias, dtype=dtype_of(how))
        args = arguments(case)
        wanted, wanted_gradients = expected(case)
        results = layer_forward(*on_device(args))
        for name, actual, value in zip(FORWARD, results, wanted, strict=True):
            assert_matches(as_precise(how, actual), value, name)
        inference = layer_inference(*on_device(args))
        for name, actual, value in zip(FORWARD, inference, results, strict=False):
            assert torch.equal(actual, value), name
        grads = on_device(cotangents(wanted))
        grads = [None if g is None else g.to(case.dtype) for g in grads]
        gradients = backward(layer_backward, on_device(args), results, grads)
        assert_gradients(as_precise(how, gradients), wanted_gradients)


@pytest.mark.parametrize("which", ["all", "lengths", "reset", "limits"])
@pytest.mark.parametrize("cell", [cell for cell in AXES["cell"] if "proj" not in cell])
@pytest.mark.parametrize("way", WAYS)
def test_features(way, cell, which, monkeypatch):
    """Lengths with 0 and T among them, resets, no gradient across some steps, limits that bind."""
    *division, N, H = WAYS[way]
    force(monkeypatch, "tf32", *division)
    directions = 1 if which in ("all", "reset") else 2
    case = Case(cell, T=6, N=N, H=H, I=3, D=directions, dtype=torch.float32)
    every = {
        "lengths": torch.arange(N) * 3 % (case.T + 1),
        "reset": torch.rand(case.T, N) < 0.4,
        "detach_every": 2,
        "grad_clip": 0.05,
    }
    keep = {"all": every, "limits": ("detach_every", "grad_clip")}.get(which, (which,))
    options = {name: every[name] for name in keep}
    args = arguments(case)
    double = converted(args, torch.float64)
    wanted = reference_ops.layer_forward(*double, **options)
    grads = [torch.randn_like(t).float() if t.numel() else None for t in wanted[:3]] + [None]
    wide = [None if g is None else g.double() for g in grads]
    output, _, _, *saved = wanted
    wanted_gradients = reference_ops.layer_backward(
        *wide, None, output, *saved, True, True, True, *double, **options
    )
    results, gradients = run(on_device(args), on_device(options), on_device(grads))
    for name, actual, value in zip(FORWARD, as_precise("tf32", results), wanted, strict=True):
        assert_matches(actual, value, name)
    assert_gradients(as_precise("tf32", gradients), wanted_gradients)


@pytest.mark.parametrize("way", WAYS)
def test_bits_depend_neither_on_the_order_of_threads_nor_on_other_rows(way, monkeypatch):
    *division, N, H = WAYS[way]
    force(monkeypatch, "bfloat16", *division)
    args = on_device(arguments(Case("lstm", T=4, N=N, H=H, dtype=torch.bfloat16)))
    runs = []
    for seed in range(1 if ON_GPU else 4):
        if not ON_GPU:
            launch.KERNELS.module.seed(seed)
        results = layer_forward(*args)
        grads = [g.to(torch.bfloat16) for g in cotangents(results)]
        gradients = backward(layer_backward, args, results, grads)
        runs.append([*results, *gradients[:3], *gradients[3]])
    for other in runs[1:]:
        assert all(map(torch.equal, other, runs[0]))
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
    *division, N, H = WAYS[way]
    force(monkeypatch, "bfloat16", *division)
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


def test_the_largest_layers(monkeypatch):
    """All that registers hold: in a cluster of 16 blocks, and in 64 that go through memory."""
    for H, division in ((512, (32, False, 1)), (1024, (16, True, 1))):
        force(monkeypatch, "bfloat16", *division)
        case = Case("lstm", T=3, N=1, H=H, I=3, D=1, dtype=torch.bfloat16)
        args = arguments(case)
        wanted, wanted_gradients = expected(case)
        results = layer_forward(*on_device(args))
        for name, actual, value in zip(FORWARD, results, wanted, strict=True):
            assert_matches(actual.cpu(), value, name)
        grads = [g.bfloat16() for g in on_device(cotangents(wanted))]
        gradients = backward(layer_backward, on_device(args), results, grads)
        assert_gradients(as_precise("bfloat16", gradients), wanted_gradients)


def choose(H, N, how="bfloat16", D=1, backward=False, cell="lstm"):
    kernels = launch.KERNELS
    return kernels.cuda_groups(cell, CELLS[cell].gates, how, H, N, D, backward)


def test_groups():
    """What a layer is given: one block, a cluster, or blocks that all run at once, or nothing."""
    if ON_GPU:
        pytest.skip("the emulation has the clusters of an H200")
    sizes = itertools.product([1, 33, 128, 129, 256, 500, 512, 700, 1024, 1025], [1, 8, 64, 300])
    for (H, N), how, D, back in itertools.product(sizes, HOW, (1, 2), (False, True)):
        groups = choose(H, N, how, D, back)
        if not groups["group_blocks"]:
            continue
        units, blocks = groups["group_units"], groups["group_blocks"]
        assert blocks * units >= H > (blocks - 1) * units
        assert groups["group_rows"] <= launch.GROUP_ROWS
        assert groups["group_rows"] * groups["group_parts"] >= N
        if groups["group_through_memory"]:
            assert blocks * groups["group_parts"] * D <= 132
        else:
            assert blocks <= 16
    assert choose(128, 16)["group_blocks"] == 1
    assert choose(256, 16)["group_units"] == 32 and choose(512, 16)["group_blocks"] == 16
    assert choose(1024, 16)["group_through_memory"] and choose(512, 16, "tf32")
    assert choose(1025, 1)["group_blocks"] == choose(1024, 64)["group_blocks"] == 0
    assert (
        choose(64, 16, "float32")["group_blocks"] == choose(64, 16, "float64")["group_blocks"] == 0
    )
    assert choose(64, 0)["group_blocks"] == choose(1024, 1, "tf32")["group_blocks"] == 0


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_only_who_asks_gets_it(cell, monkeypatch):
    """No GPU has run these kernels, so nothing chooses them by itself."""
    args = on_device(arguments(Case(cell, T=3, N=5, H=40, dtype=torch.bfloat16)))
    wanted = layer_inference(*args)
    launch.groups.cache_clear()
    device = torch.device(DEVICE)
    assert launch.groups(CELLS[cell], "bfloat16", 40, 5, 1, False, device) == {}
    launch.groups.cache_clear()
    monkeypatch.setattr(launch, "PERSISTENT", True)
    assert launch.groups(CELLS[cell], "bfloat16", 40, 5, 1, False, device)["group_blocks"]
    for actual, value in zip(layer_inference(*args), wanted, strict=True):
        assert_matches(actual.cpu(), value.cpu())
    launch.groups.cache_clear()
    monkeypatch.setattr(launch.gpu, "capability", lambda _: (8, 9))  # which has no clusters
    ampere = torch.device("cuda", 0)
    assert launch.groups(CELLS[cell], "bfloat16", 40, 5, 1, False, ampere) == {}
    launch.groups.cache_clear()


def test_a_projection_keeps_the_step_kernels(monkeypatch):
    monkeypatch.setattr(launch, "PERSISTENT", True)
    args = on_device(arguments(Case("lstm_proj", T=3, N=5, H=40, dtype=torch.bfloat16)))
    wanted = reference_ops.layer_inference(*converted(args, torch.float64))
    for actual, value in zip(layer_inference(*args), wanted, strict=True):
        assert_matches(actual.cpu(), value)
