"""Input that no one should give, and modules whose weights change under them: an error in one
line, of torch's class where torch has one, no crash, and a good call after it."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import assert_matches
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch_pairs import (
    CELLS,
    assert_same_results,
    everything,
    example,
    layers,
    outcome,
    pair,
    state,
)

import fastrnn

BOTH = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])


@pytest.fixture
def good():
    """Calls that are right are made after the test, with the modules it hands over."""
    pairs = []
    yield pairs.append
    assert pairs
    for name, ours, theirs in pairs:
        x = example(name)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert_same_results(ours(x), theirs(x))


def refused(call, *classes: type, match: str = "") -> None:
    """An exception of one of the classes, whose text is short and has no traceback of C++."""
    with pytest.raises(classes) as caught:
        call()
    text = str(caught.value)
    assert match in text, text
    assert len(text) < 250 and "\n" not in text, text


ROWS = [[-3, 8], [8, -3], [3, 0, 2], [2, 3], [3, 3], [0], [5, 0], [-1], [1 << 40], [1 << 62] * 2,
        [(1 << 63) - 1], [3, 1], [4, 1, -1, 1]]  # fmt: skip


@BOTH
@pytest.mark.parametrize("sizes", ROWS, ids=str)
@layers
def test_batch_sizes_made_by_hand(name, sizes, grad, good):
    ours, theirs = pair(name, 4, 6, bidirectional=True)
    good((name, ours, theirs))
    packed = PackedSequence(torch.randn(5, 4), torch.tensor(sizes))
    for hx in (None, state(name, 2, 3, 6)):
        with torch.set_grad_enabled(grad):
            refused(lambda hx=hx: ours(packed, hx), RuntimeError)


@BOTH
@layers
def test_batch_sizes_of_other_forms(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    rows = torch.randn(5, 4)
    with torch.set_grad_enabled(grad):
        for sizes in (
            torch.tensor([3, 2], dtype=torch.int32),
            torch.tensor([3.0, 2.0]),
            torch.tensor([True] * 5),
            torch.tensor([[3, 2]]),
            torch.tensor(5),
        ):
            refused(lambda s=sizes: ours(PackedSequence(rows, s)), RuntimeError, match="batch_size")
        empty = PackedSequence(rows, torch.tensor([], dtype=torch.int64))
        refused(lambda: ours(empty), IndexError)
        refused(lambda: ours(PackedSequence(rows[None], torch.tensor([3, 2]))), RuntimeError)
        refused(lambda: ours(PackedSequence(rows[0], torch.tensor([3, 2]))), RuntimeError)
        # strides play no part
        wanted = theirs(PackedSequence(rows, torch.tensor([3, 2])))[0].data
        strided = torch.tensor([3, 9, 2, 9])[::2]
        assert_matches(ours(PackedSequence(rows, strided))[0].data, wanted)
        wanted = theirs(PackedSequence(rows, torch.ones(5, dtype=torch.int64)))[0].data
        expanded = torch.ones(1, dtype=torch.int64).expand(5)
        assert_matches(ours(PackedSequence(rows, expanded))[0].data, wanted)


@BOTH
@pytest.mark.parametrize("lengths", [[6, 1, 1], [-1, 1, 1], [1 << 40, 0, 0], [0, 0, -(1 << 63)]])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@layers
def test_lengths_out_of_range(name, lengths, backend, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    with fastrnn.backend(backend), torch.set_grad_enabled(grad):
        refused(lambda: ours(torch.randn(5, 3, 4), lengths=torch.tensor(lengths)),
                RuntimeError, match="lengths must")  # fmt: skip


@BOTH
@everything
def test_tensors_that_are_not_dense(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    hx = state(name, 3, 6) if name in CELLS else state(name, 1, 3, 6)
    with torch.set_grad_enabled(grad):
        refused(lambda: ours(x.to_sparse()), RuntimeError, match="dense")
        refused(lambda: ours(x.to_mkldnn()), RuntimeError, match="dense")
        nested = torch.nested.nested_tensor(list(x))
        refused(lambda: ours(nested), RuntimeError, match="nested")
        sparse = tuple(h.to_sparse() for h in hx) if isinstance(hx, tuple) else hx.to_sparse()
        refused(lambda: ours(x, sparse), RuntimeError, match="dense")
        for key, weight in list(ours.named_parameters()):
            setattr(ours, key, nn.Parameter(weight.detach().to_sparse()))
            refused(lambda: ours(x), RuntimeError, match="dense")
            setattr(ours, key, weight)


@BOTH
@everything
def test_weights_that_are_none(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    with torch.set_grad_enabled(grad):
        for key, weight in list(ours.named_parameters()):
            for module in (ours, theirs):
                setattr(module, key, None)
            if name in CELLS and key.startswith("bias"):  # which a cell may lack, each by itself
                assert_same_results(ours(x), theirs(x))
            else:
                refused(lambda: ours(x), TypeError, match=f"{key} is None, expected a tensor")
            for module in (ours, theirs):
                setattr(module, key, weight)


@BOTH
@everything
def test_weights_of_other_dtypes_and_shapes(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    with torch.set_grad_enabled(grad):
        for key, weight in list(ours.named_parameters()):
            old = weight.detach()
            for wrong in (old.double(), old.half(), old.long(), old.to("meta"), old[:-1],
                          old[None], old.flatten()[:1], old[:0], old + 0j):  # fmt: skip
                if name == "RNNCell" and key.startswith("bias") and wrong.size(-1) in (1, 6):
                    continue  # torch's own step, which the cell takes, repeats a bias
                setattr(ours, key, nn.Parameter(wrong, requires_grad=False))
                refused(lambda: ours(x), RuntimeError, ValueError, IndexError)
                setattr(ours, key, weight)
        kept = ours.state_dict()
        bad = {key: torch.zeros(2, 2) for key in kept}
        with pytest.raises(RuntimeError, match="size mismatch"):
            ours.load_state_dict(bad)
        with pytest.raises(RuntimeError, match="size mismatch"):
            ours.load_state_dict(bad, assign=True)
        for weight in ours.parameters():
            weight.data, kept_data = torch.zeros(5), weight.data
            refused(lambda: ours(x), RuntimeError, ValueError, IndexError)
            weight.data = kept_data


@BOTH
@everything
def test_states_that_are_wrong_in_every_way(name, grad, good):
    ours, theirs = pair(name, 4, 6)
    good((name, ours, theirs))
    x = example(name)
    h = torch.randn(3, 6) if name in CELLS else torch.randn(1, 3, 6)
    one = name.startswith("LSTM")
    wrong = [h[..., :-1], h[..., :0], h[..., :1, :], h[None], h[0], h.double(), h.long(), h + 0j,
             h.to("meta"), h.expand(2, *h.shape), torch.zeros(()), None, 3, "ab"]  # fmt: skip
    for bad in wrong:
        for hx in [(bad, h), (h, bad), (bad, bad), [bad]] if one else [bad, (bad, bad)]:
            if hx is None:
                continue
            with torch.set_grad_enabled(grad):
                found, expected = (outcome(lambda m, hx=hx: m(x, hx), m) for m in (ours, theirs))
            assert isinstance(found, tuple) and isinstance(found[0], type), hx
            if isinstance(expected, tuple) and isinstance(expected[0], type):
                assert issubclass(found[0], (expected[0], RuntimeError, ValueError)), found


@BOTH
@everything
def test_views_of_any_strides(name, grad):
    """Expanded from one element, overlapping, in reverse order of dimensions, of one row."""
    ours, theirs = pair(name, 4, 6)
    h_shape = (3, 6) if name in CELLS else (1, 3, 6)
    whole = torch.randn(200)
    base = example(name)
    views = [
        torch.randn(1).expand(base.shape),
        whole.as_strided(base.shape, [1] * base.dim()),
        whole.as_strided(base.shape, [0] * (base.dim() - 1) + [3]),
        base.flip(0).permute(*reversed(range(base.dim()))).contiguous().permute(
            *reversed(range(base.dim()))
        ),
        base[:1].expand(base.shape),
    ]  # fmt: skip
    states = [torch.randn(1).expand(h_shape), whole.as_strided(h_shape, [2] * len(h_shape))]
    with torch.set_grad_enabled(grad):
        for x in views:
            assert_same_results(ours(x), theirs(x))
            for h in states:
                hx = (h, h) if name.startswith("LSTM") else h
                assert_same_results(ours(x, hx), theirs(x, hx))
        for key, weight in list(ours.named_parameters()):
            value = torch.randn(1).expand(weight.shape)
            for module in (ours, theirs):
                setattr(module, key, nn.Parameter(value))
            assert_same_results(ours(base), theirs(base))


@BOTH
@layers
def test_many_steps_of_nothing(name, grad):
    ours, theirs = pair(name, 4, 6)
    with torch.set_grad_enabled(grad):
        for shape in ((1 << 12, 0, 4), (7, 0, 4)):
            assert_same_results(ours(torch.empty(shape)), theirs(torch.empty(shape)))
        x = torch.empty(1 << 12, 0, 4)
        refused(lambda: ours(torch.empty(0, 3, 4)), RuntimeError, match="larger than 0")
        refused(lambda: ours(torch.empty(1 << 40, 0, 0)), RuntimeError, ValueError)
        output = ours(x, lengths=torch.empty(0, dtype=torch.int64))[0]
        assert output.shape == (1 << 12, 0, 6)


@everything
def test_a_truncated_file(name, tmp_path):
    ours, theirs = pair(name, 4, 6)
    whole, x = io.BytesIO(), example(name)
    torch.save(ours.state_dict(), whole)
    for kept in (0, 10, len(whole.getvalue()) // 2, len(whole.getvalue()) - 10):
        path = tmp_path / f"{kept}.pt"
        path.write_bytes(whole.getvalue()[:kept])
        with pytest.raises((RuntimeError, EOFError, OSError)):
            ours.load_state_dict(torch.load(path))
        assert_same_results(ours(x), theirs(x))


@everything
def test_modules_that_are_copied_shared_and_moved(name):
    ours, theirs = pair(name, 4, 6)
    x, wanted = example(name), None
    wanted = theirs(x)
    with torch.no_grad():
        for change in (
            copy.deepcopy,
            lambda m: m.share_memory(),
            lambda m: m.double().float(),
            lambda m: (m.load_state_dict(theirs.state_dict(), assign=True), m)[1],
            lambda m: m.to("meta").to_empty(device="cpu"),
        ):
            changed = change(ours)
            changed.load_state_dict(theirs.state_dict())
            assert_same_results(changed(x), wanted)


RACE = """
import sys, threading
import torch, fastrnn
sys.setswitchinterval(1e-5)
torch.manual_seed(0)
name, grad = sys.argv[1], sys.argv[2] == "True"
module, x = getattr(fastrnn, name)(16, 32), torch.randn(*eval(sys.argv[3]))
weights = dict(module.named_parameters())
wrong = [torch.nn.Parameter(torch.zeros(3, 3)), None]
stop = threading.Event()


def replace():
    k = 0
    while not stop.is_set():
        for key, weight in weights.items():
            setattr(module, key, torch.nn.Parameter(weight.detach().clone()))
            if k % 3 == 0:
                setattr(module, key, wrong[k % 2])
            setattr(module, key, weight)
        k += 1
        if k % 50 == 0:
            module.share_memory()


def call():
    found = module(x)
    while isinstance(found, tuple):
        found = found[0]
    return found


thread = threading.Thread(target=replace)
with torch.set_grad_enabled(grad):
    wanted = call()
    thread.start()
    try:
        for _ in range(300):
            try:
                # the same numbers in other memory, and maybe another way there
                torch.testing.assert_close(call(), wanted, rtol=1e-5, atol=1e-5)
            except (RuntimeError, TypeError, ValueError, AttributeError):
                pass  # it met a wrong weight
    finally:
        stop.set()
        thread.join()
    torch.testing.assert_close(call(), wanted, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.parametrize("name, shape", [("LSTM", (2, 3, 16)), ("GRU", (2, 3, 16)),
                                         ("LSTMCell", (3, 16)), ("RNNCell", (3, 16))])  # fmt: skip
@BOTH
def test_weights_that_another_thread_replaces_during_calls(name, shape, grad):
    child = subprocess.run(
        [sys.executable, "-c", RACE, name, str(grad), str(shape)],
        capture_output=True,
        text=True,
        cwd=Path(fastrnn.__file__).parents[1],
        timeout=300,
    )
    assert child.returncode == 0, f"{child.returncode}: {child.stderr[-2000:]}"


def test_one_module_in_many_threads():
    module, x = fastrnn.LSTM(4, 6), torch.randn(5, 3, 4)
    wanted, errors = module(x)[0], []

    def work():
        try:
            for _ in range(100):
                output, _ = module(x)
                output.sum().backward()
                assert torch.equal(output, wanted)
                with torch.no_grad():
                    assert_matches(module(x)[0], wanted)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
