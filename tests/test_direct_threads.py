"""The short way while another thread replaces the weights of the module."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import types
import weakref

import pytest
import torch
from conftest import KERNELS

import fastrnn
from fastrnn.dispatch import cpu

pytestmark = pytest.mark.skipif(KERNELS is None, reason="there are no compiled kernels")


def test_weights_outlive_the_call_that_reads_them(taken, monkeypatch):
    """Another thread that replaces a parameter must not free what the kernel is reading."""
    module, x = fastrnn.LSTM(64, 256), torch.randn(1500, 32, 64)
    with torch.no_grad():
        wanted = module(x)[0]
    weight = weakref.ref(module.weight_hh_l0)
    results, holders = [], []
    kernels = cpu.direct.run

    def run(*arguments):
        holders.append(sys.getrefcount(weight()))
        return kernels(*arguments)

    def call() -> None:
        with torch.no_grad():
            results.append(module(x)[0])

    monkeypatch.setattr(cpu, "direct", types.SimpleNamespace(run=run))
    for _ in range(10):  # on a busy machine this thread may come too late
        holders.clear()
        thread = threading.Thread(target=call)
        thread.start()
        # The kernels hold every weight once they hold one: they take all of them under one lock.
        while thread.is_alive() and (not holders or sys.getrefcount(weight()) <= holders[0]):
            time.sleep(0.001)
        if thread.is_alive():
            break
    assert thread.is_alive()
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, torch.nn.Parameter(torch.zeros_like(parameter)))
    del parameter
    alive = weight() is not None
    thread.join()
    assert alive
    assert weight() is None
    assert torch.equal(results[-1], wanted) and all(taken)


def test_the_kernels_never_mix_old_and_new_weights(monkeypatch):
    """Another thread replaces all weights in one operation, again and again."""
    module, x = fastrnn.LSTM(5, 7, num_layers=4, bidirectional=True), torch.randn(1, 3, 5)
    kernels, called = cpu.direct.run, []
    direct = types.SimpleNamespace(run=lambda *a: (called.append(a), kernels(*a))[1])
    monkeypatch.setattr(cpu, "direct", direct)
    with torch.no_grad():
        output = module(x)[0]
    (arguments,) = called
    assert arguments[2] is module._parameters
    sets = [
        {name: torch.nn.Parameter(torch.randn_like(p)) for name, p in module.named_parameters()}
        for _ in range(2)
    ]
    wanted, stop = [], threading.Event()
    for weights in sets:
        module._parameters.update(weights)
        assert kernels(*arguments)
        wanted.append(output.clone())

    def replace() -> None:
        for weights in itertools.cycle(sets):
            module._parameters.update(weights)
            if stop.is_set():
                return

    thread, interval, seen = threading.Thread(target=replace), sys.getswitchinterval(), set()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(2000):
            assert kernels(*arguments)
            seen.add(tuple(torch.equal(output, each) for each in wanted))
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert seen == {(True, False), (False, True)}
