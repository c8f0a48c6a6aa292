"""Modules whose weights are wrong or missing, or change under them: an error in one line, of a
class of torch's where it has one, no crash, and a good call after it."""

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
from refusals import BOTH, refused
from torch import nn
from torch_pairs import (
    CELLS,
    assert_same_results,
    everything,
    example,
    pair,
)

import fastrnn


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


@pytest.mark.parametrize("T, N", [(7, 3), (200, 16)])
def test_a_parameter_that_only_one_direction_has_for_each_row(T, N):
    """The kernels are told the form once, and wrote past the end of the other one."""
    layer = fastrnn.Recurrent(fastrnn.zoo.IndRNN, 3, 8, bidirectional=True)
    whole = {"u_l0": layer.u_l0, "u_l0_reverse": layer.u_l0_reverse}
    for name, weight in whole.items():
        for shape in ((T, N, 8), (T, N, 1)):
            setattr(layer, name, nn.Parameter(torch.rand(shape)))
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    refused(lambda: layer(torch.randn(T, N, 3)), RuntimeError, match="must have")
        setattr(layer, name, weight)
    layer(torch.randn(T, N, 3))[0].sum().backward()


REPLACED = """
import sys, threading, time, torch, fastrnn
sys.setswitchinterval(1e-6)
torch.set_num_threads(1)
module, x, stop = fastrnn.LSTM(4, 6), torch.randn(2, 3, 4), time.monotonic() + 4

def call(grad):
    while time.monotonic() < stop:
        with torch.set_grad_enabled(grad):
            assert module(x)[0].isfinite().all()

threads = [threading.Thread(target=call, args=(grad,)) for grad in (False, False, True)]
for thread in threads:
    thread.start()
while time.monotonic() < stop:
    for name in ("weight_ih_l0", "bias_hh_l0"):
        setattr(module, name, torch.nn.Parameter(getattr(module, name).detach().clone()))
for thread in threads:
    thread.join()
"""


def test_weights_that_another_thread_replaces():
    """A call keeps those that it began with."""
    subprocess.run([sys.executable, "-c", REPLACED], check=True, timeout=120)


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
                if name in ("RNNCell", "GRUCell"):  # with a state, which may be another way
                    state = torch.zeros(len(x), 6)
                    refused(lambda h=state: ours(x, h), RuntimeError, ValueError, IndexError)
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
@pytest.mark.parametrize("compiled", [False, True])
@everything
def test_a_wrong_shape_names_the_parameter(name, grad, compiled):
    form = {} if name in CELLS else {"num_layers": 2, "bidirectional": True, "batch_first": True}
    if name == "LSTM":
        form["proj_size"] = 2
    ours, theirs = pair(name, 4, 6, **form)
    x, call = example(name), ours
    if compiled:
        call = torch.compile(ours, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        for key, weight in list(ours.named_parameters()):
            if name == "RNNCell" and key.startswith("bias"):
                continue  # torch's own step, which the cell takes, names the weights alone
            rows, *columns = weight.shape
            setattr(ours, key, nn.Parameter(torch.zeros(rows + 1, *columns)))
            parameter = "weight_(ih|hh)" if name == "RNNCell" else key
            with pytest.raises(Exception, match=rf"{parameter} (must have|first dim)"):
                call(x)
            setattr(ours, key, weight)
            torch._dynamo.reset()
        assert_same_results(call(x), theirs(x))


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
                lacks = name.endswith("Cell") and key.startswith("bias")  # a cell may be without
                setattr(module, key, wrong[0 if lacks else k % 2])
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
