"""What holds for the process: `backend`, `patch`, their setters; in threads that overlap."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from conftest import KERNELS
from project import ROOT
from torch import nn
from torch_pairs import everything, layers

import fastrnn
from fastrnn import dispatch
from fastrnn.dispatch import cpu
from fastrnn.scopes import Choice, Scope


def overlap(order, scopes, seen) -> None:
    """Enters each scope in a thread of its own, then leaves them in `order`; `seen` after each."""
    entered, leave, left = ([threading.Event() for _ in scopes] for _ in range(3))

    def hold(k):
        with scopes[k]:
            entered[k].set()
            leave[k].wait(30)
        left[k].set()

    threads = [threading.Thread(target=hold, args=(k,)) for k in range(len(scopes))]
    for k, thread in enumerate(threads):
        thread.start()
        assert entered[k].wait(30)
    for k in order:
        seen()
        leave[k].set()
        assert left[k].wait(30)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_scopes_end_in_any_order(order):
    applied = []
    choice = Choice("auto", applied.append)
    active, values = ["a", "b", "c"], []
    overlap(
        order, [Scope(choice, name, "") for name in active], lambda: values.append(choice.value)
    )
    wanted = []
    for k in order:
        wanted.append(active[-1])
        active.remove("abc"[k])
    assert values == wanted and choice.value == "auto"
    assert applied[:3] == ["a", "b", "c"] and applied[-1] == "auto"


def test_a_value_that_cannot_be_applied_leaves_nothing():
    def apply(value):
        if value == "bad":
            raise OSError

    choice = Choice("good", apply)
    with pytest.raises(OSError), Scope(choice, "bad", ""):
        raise AssertionError("never entered")
    assert choice.value == "good"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_backends_of_two_threads(order):
    first = "reference" if KERNELS is None else "cpu"
    seen = []
    scopes = [fastrnn.backend(first), fastrnn.backend("reference")]
    overlap(order, scopes, lambda: seen.append(dispatch.chosen()))
    assert seen == ["reference", [first, "reference"][1 - order[0]]]
    assert dispatch.chosen() == "auto"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_patches_of_two_threads(order):
    before, seen = [vars(nn.LSTM).copy(), vars(nn.GRUCell).copy()], []
    overlap(order, [fastrnn.patch(), fastrnn.patch()], lambda: seen.append(type(nn.LSTM(1, 1))))
    assert seen == [fastrnn.LSTM] * 2 and type(nn.LSTM(1, 1)) is nn.LSTM
    assert [dict(vars(nn.LSTM)), dict(vars(nn.GRUCell))] == [dict(each) for each in before]


def test_many_threads_at_once():
    def work():
        for _ in range(200):
            with fastrnn.backend("reference"), fastrnn.patch():
                assert type(nn.GRU(1, 1)) is fastrnn.GRU

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dispatch.chosen() == "auto" and type(nn.GRU(1, 1)) is nn.GRU


def test_set_backend():
    try:
        fastrnn.set_backend("reference")
        assert dispatch.chosen() == "reference"
        with fastrnn.backend("auto"):
            assert dispatch.chosen() == "auto"
            fastrnn.set_backend("reference")  # the last choice counts
            assert dispatch.chosen() == "reference"
        assert dispatch.chosen() == "reference"
    finally:
        fastrnn.set_backend("auto")
    assert dispatch.chosen() == "auto"


def imported(name: str, monkeypatch) -> subprocess.CompletedProcess[str]:
    """A process whose environment chooses a backend, and that then chooses "auto"."""
    monkeypatch.setenv("FASTRNN_BACKEND", name)
    program = (
        "import fastrnn; from fastrnn.dispatch import chosen; print(chosen()); "
        "fastrnn.set_backend('auto'); print(chosen())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["reference", "auto", ""])
def test_the_environment_chooses(name, monkeypatch):
    ran = imported(name, monkeypatch)
    assert ran.stdout.split() == [name or "auto", "auto"], ran.stderr


def test_what_the_environment_cannot_choose(monkeypatch):
    ran = imported("gpu", monkeypatch)
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith("ImportError: FASTRNN_BACKEND=gpu: unknown backend 'gpu'")


@pytest.mark.parametrize("choose", [fastrnn.backend, fastrnn.set_backend])
def test_what_cannot_be_chosen_is_an_error_at_the_call(choose, monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        choose("gpu")
    monkeypatch.setattr(cpu, "not_built", "no compiler")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run: no compiler"):
        choose("cpu")
    assert dispatch.chosen() == "auto"


@pytest.mark.parametrize(
    "call, instead",
    [(lambda: fastrnn.backend("reference"), "set_backend"), (fastrnn.patch, "install")],
)
def test_a_scope_that_is_not_entered_warns(call, instead):
    with pytest.warns(UserWarning, match=rf"without `with`; fastrnn.{instead}") as caught:
        call()
        gc.collect()
    assert caught[0].filename == __file__
    assert dispatch.chosen() == "auto" and type(nn.LSTM(1, 1)) is nn.LSTM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with call():
            pass
        scope = call()
        with scope, scope:  # as often as one likes
            pass
        del scope
        gc.collect()


def test_as_a_decorator():
    @fastrnn.backend("reference")
    @fastrnn.patch()
    def build():
        return dispatch.chosen(), type(nn.LSTM(1, 1))

    for _ in range(2):
        assert build() == ("reference", fastrnn.LSTM)
    assert dispatch.chosen() == "auto" and type(nn.LSTM(1, 1)) is nn.LSTM


@everything
def test_install(name):
    theirs, ours = getattr(nn, name), getattr(fastrnn, name)
    saved, kept = io.BytesIO(), theirs(4, 3)
    torch.save(kept, saved)
    try:
        fastrnn.install()
        fastrnn.install()
        assert type(theirs(4, 3)) is ours
        loaded = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
        assert type(loaded) is ours and type(copy.deepcopy(kept)) is ours
        assert type(kept) is theirs
        with fastrnn.patch():
            fastrnn.uninstall()
            assert type(theirs(4, 3)) is ours
    finally:
        fastrnn.uninstall()
    fastrnn.uninstall()
    assert type(theirs(4, 3)) is theirs and type(copy.deepcopy(kept)) is theirs
    for weight, loaded_weight in zip(kept.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(weight, loaded_weight)


@layers
def test_what_others_put_around_a_constructor_stays(name, monkeypatch):
    cls, calls = getattr(nn, name), []
    monkeypatch.setattr(cls, "__init__", cls.__init__)  # put back at the end
    with fastrnn.patch():
        inner = cls.__init__

        def counted(self, *args, **kwargs):
            calls.append(args)
            inner(self, *args, **kwargs)

        cls.__init__ = counted
        assert type(cls(1, 1)) is getattr(fastrnn, name)
    assert type(cls(1, 1)) is cls and len(calls) == 2
    with fastrnn.patch():
        assert type(cls(1, 1)) is getattr(fastrnn, name)
    assert type(cls(1, 1)) is cls and len(calls) == 4
