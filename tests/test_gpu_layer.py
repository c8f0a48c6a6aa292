"""What a layer on a GPU remembers of a call serves calls of that form and no other."""

from __future__ import annotations

import threading

import pytest
import torch
from wrong_calls import WRONG

from fastrnn.call import Call
from fastrnn.dispatch.gpu import layer
from fastrnn.results import Cotangents, Needs, Saved, empty_results
from fastrnn.table import CELLS, weight_names


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(layer, "_forms", {})


def call(cell="lstm", T=3, N=2, I=5, H=4, D=1, bias=True, dtype=torch.float32, **more) -> Call:
    GH = CELLS[cell].gates * H
    shapes = [(GH, I), (GH, H)] + [(GH,), (GH,)] * bias
    weights = [torch.randn(shape, dtype=dtype) for shape in shapes * D]
    h0 = torch.randn(D, N, H, dtype=dtype)
    c0 = torch.randn(D, N, H, dtype=dtype) if CELLS[cell].has_c else None
    input = torch.randn(T, N, I, dtype=dtype)
    return Call(input, None, h0, c0, weights, cell, weight_names(bias, False), **more)


class Loops:
    """Loops that note what they are given, and give h0 and numbers of no meaning."""

    def __init__(self):
        self.given = []

    def forward(self, cell, size, tensors):
        tensors["h_n"].copy_(tensors["h0"])
        self.given.append((cell, size, tensors))

    def backward(self, cell, size, tensors, detach_every, grad_clip):
        tensors["du"].fill_(1)
        if tensors["dx"] is not None:
            tensors["dx"].fill_(1)
        self.given.append((cell, size, tensors))


def check(a: Call) -> None:
    """Everything has the form of this call."""
    loops = Loops()
    results, wanted = layer.run(loops, a, True), empty_results(a, True)
    for actual, expected in zip(results, wanted, strict=True):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert torch.equal(results.h_n, a.h0)
    if a.c0 is not None:
        assert torch.equal(results.c_n, a.c0)
    grads = Cotangents(torch.ones_like(results.output), None, None, None)
    saved = Saved(results.output.zero_(), *results[3:])
    gradients = layer.run_backward(loops, a, grads, saved, Needs(True, True, True))
    of = (a.input, a.h0, *a.weights)
    for actual, t in zip((*gradients[:2], *gradients.weights), of, strict=True):
        assert actual.shape == t.shape and actual.dtype == t.dtype
    for cell, size, tensors in loops.given:
        assert (cell, size) == (a.kind, a.sizes())
        wide = torch.float64 if a.input.dtype == torch.float64 else torch.float32
        for name, t in tensors.items():
            if name in ("kept", "d_kept"):
                assert t is None or t.dtype == wide
            elif t is not None and name not in ("lengths", "offsets", "reset"):
                assert t.dtype == a.input.dtype, name
        assert (tensors["reset"] is None) == (a.reset is None)


OTHERS = [
    {},
    {"T": 4},
    {"N": 3},
    {"I": 6},
    {"H": 8},
    {"D": 2},
    {"bias": False},
    {"cell": "gru"},
    {"cell": "rnn_tanh"},
    {"cell": "rnn_relu"},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
    {"reset": torch.zeros(3, 2, dtype=torch.bool)},
    {"lengths": torch.tensor([3, 0])},
]


def test_each_form_is_its_own():
    for _ in range(2):
        for options in OTHERS:
            check(call(**options))
    assert len(layer._forms) == len(OTHERS)


def test_packed_rows_are_read_at_each_call():
    padded = call(T=1, N=3)
    for steps in ([3, 2, 1], [2, 2, 2], [3, 3]):
        N = steps[0]
        state = torch.zeros(1, N, 4)
        packed = padded._replace(input=torch.randn(6, 5), batch_sizes=torch.tensor(steps))
        check(packed._replace(h0=state, c0=state))
    wrong = packed._replace(h0=state, c0=state, batch_sizes=torch.tensor([4, 2]))
    with pytest.raises(RuntimeError, match="batch size 4, got 3"):
        layer.run(Loops(), wrong, False)


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_raises_each_time(message):
    good = call()
    check(good)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            layer.run(Loops(), WRONG[message](good), False)
    check(good)


def test_tensors_are_dense_in_every_call():
    """A form says nothing of strides, of alignment or of the sign bit."""
    a, loops = call(), Loops()
    negative = torch.complex(torch.zeros(1, 2, 4), torch.ones(1, 2, 4)).conj().imag
    assert negative.is_neg()
    strange = a._replace(
        input=a.input.mT.contiguous().mT,
        h0=negative,
        weights=[torch.cat((w.new_zeros(1), w.flatten()))[1:].view(w.shape) for w in a.weights],
    )
    for each in (a, strange, a):
        layer.run(loops, each, False)
        for t in filter(torch.is_tensor, loops.given[-1][2].values()):
            assert t.is_contiguous() and not t.is_neg() and t.data_ptr() % 16 == 0
    assert torch.equal(loops.given[1][2]["h0"], -torch.ones(1, 2, 4))
    for name in ("x", "w_hh", "b_hh"):
        assert torch.equal(loops.given[0][2][name], loops.given[1][2][name])


def test_so_many_are_remembered_and_no_more(monkeypatch):
    monkeypatch.setattr(layer, "LIMIT", 3)
    for T in (1, 2, 3, 4, 1, 2):
        check(call(T=T))
        assert 1 <= len(layer._forms) <= 3


def test_threads_with_other_forms(monkeypatch):
    monkeypatch.setattr(layer, "LIMIT", 4)
    errors = []

    def work(k):
        try:
            for n in range(60):
                check(call(**OTHERS[(n + k) % len(OTHERS)]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_setting_of_tf32_is_read_at_each_call(monkeypatch):
    launch = pytest.importorskip("fastrnn.dispatch.cuda.launch", reason="there is no extension")
    made = []

    def op(row_lengths, offsets, save, how, *_):
        made.append(how)
        return (torch.empty(0),) * 6

    monkeypatch.setattr(launch, "_forward", op)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for how, precision in (("float32", "ieee"), ("tf32", "tf32"), ("float32", "ieee")):
            torch.backends.cuda.matmul.fp32_precision = precision
            for dtype, wanted in ((torch.float32, how), (torch.float64, "float64")):
                launch.run(call(dtype=dtype), False)
                assert made.pop() == wanted
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
