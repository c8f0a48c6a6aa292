"""Calls of the CUDA kernels: what their results do not depend on, graphs, what cannot run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_matches
from cuda_kernels import (
    DEVICE,
    HOW,
    ON_GPU,
    emulation,
    force,
    in_several_orders,
    kernels,
    launch,
    layer_inference,
    on_device,
)
from kept_bytes import bytes_kept, needs_glibc
from op_cases import Case, arguments, assert_state_in_float32
from wrong_calls import WRONG

from fastrnn.call import Call
from fastrnn.dispatch import choice, cuda, gpu, selftest
from fastrnn.results import Cotangents, Needs, Saved
from fastrnn.table import CELLS

FEATURES = [(), ("reset",), ("lengths",), ("reset", "lengths", "detach_every", "grad_clip")]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_is_kept_in_float32(cell):
    assert_state_in_float32(cell, layer_inference, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_their_batch(dtype, monkeypatch):
    force(monkeypatch, "stepwise")
    input, _, h0, c0, *rest = on_device(arguments(Case(N=70, H=20, T=2, dtype=dtype)))
    input.zero_()  # torch's product of the inputs may depend on their number
    whole = layer_inference(input, None, h0, c0, *rest)
    for rows in ([0], [69, 3, 64], list(range(1, 18))):
        part = layer_inference(input[:, rows], None, h0[:, rows], c0[:, rows], *rest)
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[:, rows])


def test_any_order_of_threads():
    """What other blocks and threads do first changes no bit."""
    if ON_GPU:
        pytest.skip("only the emulation runs threads in a given order")
    case = Case("lstm_proj", T=3, N=18, H=17, dtype=torch.bfloat16)
    first, *others = in_several_orders(arguments(case))
    assert all(torch.equal(a, b) for run in others for a, b in zip(run, first, strict=True))


def test_graphs_and_streams():
    """A loop that repeats is replayed; a user may capture the call in a graph of their own."""
    if not ON_GPU:
        pytest.skip("no GPU, and the emulation has no graphs and streams")
    args = on_device(arguments(Case("lstm", N=33, dtype=torch.bfloat16)))
    wanted = layer_inference(*args)
    for _ in range(3):
        for a, b in zip(layer_inference(*args), wanted, strict=True):
            assert torch.equal(a, b)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer_inference(*args)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        results = layer_inference(*args)
    for result in results:
        result.zero_()
    graph.replay()
    for a, b in zip(results, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_raises_as_the_reference_does(what):
    good = Call(*on_device(arguments(Case("lstm", T=3, N=2, D=1, dtype=torch.float32))))
    wanted = launch.run(good, True).filled()
    with pytest.raises(RuntimeError, match=re.escape(what)):
        launch.run(WRONG[what](good), True)
    for actual, value in zip(launch.run(good, True).filled(), wanted, strict=True):
        assert torch.equal(actual, value)


@pytest.mark.parametrize("D", [1, 2])
def test_tensors_may_lie_anyhow(D):
    """In other strides, at odd addresses, or stored negated: in every call, with the same bits."""
    a = Call(*on_device(arguments(Case("lstm", T=3, N=2, H=8, D=D, dtype=torch.float32))))

    def odd(t):
        return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)

    def negated(t):
        return torch.complex(torch.zeros_like(t), -t).conj().imag

    strange = a._replace(
        input=a.input.mT.contiguous().mT,
        h0=negated(a.h0),
        c0=odd(a.c0),
        weights=[odd(w) if w.dim() == 1 else w.t().contiguous().t() for w in a.weights],
    )
    assert strange.h0.is_neg() and strange.c0.data_ptr() % 16
    needs, of_each = Needs(True, True, True), []
    for call in (a, strange, a):
        output, h_n, c_n, *saved = launch.run(call, True)
        grads = output, odd(h_n), negated(c_n), None
        if call is not strange:
            grads = [g if g is None else g.contiguous().resolve_neg() for g in grads]
        found = launch.run_backward(call, Cotangents(*grads), Saved(output, *saved), needs)
        of_each.append((output, h_n, c_n, *found[:3], *found.weights))
        assert all(g.shape == t.shape for g, t in zip(of_each[-1][3:], call.tensors(), strict=True))
    for first, *others in zip(*of_each, strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_wrong_backward_calls_raise():
    call = Call(*on_device(arguments(Case("gru", T=3, N=2, dtype=torch.float32))))
    output, _, _, *saved = launch.run(call, True)
    needs = Needs(True, True, True)

    def gradients(grad, gates=saved[0]):
        some = Cotangents(grad, None, None, None)
        return launch.run_backward(call, some, Saved(output, gates, *saved[1:]), needs)

    wanted = gradients(output)
    for wrong in ((output[1:],), (output.double(),), (output, saved[0][:1]), (output, output)):
        with pytest.raises(RuntimeError, match="does not fit the other arguments"):
            gradients(*wrong)
    for actual, value in zip(gradients(output).weights, wanted.weights, strict=True):
        assert torch.equal(actual, value)


def test_what_may_repeat_is_launched_by_who_keeps_graphs():
    """Once a call and on the stream that this one says; what is one launch is launched at once."""
    if ON_GPU:
        pytest.skip("only the emulation records its launches")
    call = Call(*arguments(Case("lstm_proj", T=3, N=2, H=40, dtype=torch.bfloat16)))
    wanted, keys, counts = launch.run(call, True).filled(), [], []

    def forward(schedule, call=call):
        how = None, None, True, "bfloat16", schedule, 7, True
        return torch.ops.fastrnn.cuda_forward.default(*how, *call)

    def by(key, stream, launches, run):
        assert stream == 7
        keys.append(key)
        counts.append(launches)
        run(8)

    emulation().cuda_replay_by(by)
    for schedule in ("stepwise", "library", "stepwise"):
        for actual, value in zip(forward(schedule), wanted, strict=True):
            assert_matches(actual, value)
    assert len(keys) == 3 and keys[0][:4] == keys[2][:4] != keys[1][:4]
    assert counts == [6, 12, 6]  # of the cell and of the projection, each step
    plain = Call(*arguments(Case("lstm", T=3, N=2, H=40, dtype=torch.bfloat16)))
    forward("persistent", plain)
    assert len(keys) == 3

    def broken(*_):
        raise ValueError("no graph")

    emulation().cuda_replay_by(broken)
    with pytest.raises(ValueError, match="no graph"):
        forward("stepwise")
    emulation().cuda_replay_by(by)
    forward("stepwise")
    assert len(keys) == 4


@pytest.mark.parametrize("options", FEATURES, ids=str)
def test_nothing_reads_a_number_of_the_device(options, monkeypatch):
    """Which would wait for it, and end a capture. Lengths are checked where they are on a CPU."""
    monkeypatch.setattr(launch, "check_lengths", lambda *_: None)
    call = Call(*on_device(arguments(Case("lstm", T=3, N=2, H=3, dtype=torch.float32, D=1))))
    reset, lengths = torch.zeros(3, 2, dtype=torch.bool), torch.tensor([3, 1])
    given = {"reset": reset.to(DEVICE), "lengths": lengths.to(DEVICE)}
    given |= {"detach_every": 2, "grad_clip": 0.5}
    call = call._replace(**{name: given[name] for name in options})
    with torch.profiler.profile() as profile:
        results = launch.run(call, True)
        came, saved = Cotangents(*results[:3], None), Saved(results.output, *results[3:])
        launch.run_backward(call, came, saved, Needs(*[True] * 3))
    assert "aten::_local_scalar_dense" not in {event.key for event in profile.events()}


def test_no_rows_ask_for_no_graph():
    if ON_GPU:
        pytest.skip("only the emulation records its launches")
    call = Call(*arguments(Case("lstm", T=3, N=0, H=3, dtype=torch.float32)))
    asked = []
    emulation().cuda_replay_by(lambda *replay: asked.append(replay))
    ops, none = torch.ops.fastrnn, (None,) * 4
    for schedule in ("stepwise", "library"):
        how = "float32", schedule, 7, True
        output, *others = ops.cuda_forward.default(None, None, True, *how, *call)
        came, saved = (output, *none[1:]), (output, *others[2:])
        ops.cuda_backward.default(*came, *saved, *[True] * 3, *none, *how, *call)
    assert asked == []


@needs_glibc
def test_no_call_keeps_memory():
    given = arguments(Case("lstm_proj", T=2, N=2, H=3, dtype=torch.float32))
    call = Call(*on_device(given))
    results = launch.run(call, True)
    came, saved = Cotangents(*results[:3], None), Saved(results.output, *results[3:])
    assert bytes_kept(lambda: launch.run(call, True)) < 16
    assert bytes_kept(lambda: launch.run_backward(call, came, saved, Needs(*[True] * 3))) < 16


def test_an_unknown_precision_raises(monkeypatch):
    call = Call(*on_device(arguments(Case("gru", T=3, N=2, dtype=torch.float32))))
    monkeypatch.setattr(launch, "precision", lambda _: "int8")
    with pytest.raises(RuntimeError, match="no CUDA kernels for dtype int8"):
        launch.run(call, False)
    with pytest.raises(ValueError, match="fastrnn: no dtype int8"):
        kernels().cuda_groups("gru", 3, "int8", 8, 8, 1, False)
    with pytest.raises(ValueError, match="fastrnn: no cell elman"):
        kernels().cuda_groups("elman", 3, "float32", 8, 8, 1, False)


def step_kernels() -> set[str]:
    """The names of all kernels in which no block waits for another."""
    sources = [Path(__file__).parents[1] / f"csrc/cuda/{name}ward.cu" for name in ("for", "back")]
    return {name for path in sources for name in re.findall(r', "(\w+)"', path.read_text())}


@pytest.mark.parametrize("how", HOW)
def test_the_self_test_passes(how, monkeypatch):
    """Of all cells at once, as "auto" asks for it on a GPU that nobody has tried: it runs every
    kernel that makes a step and no persistent one, whatever the environment or the user says."""
    monkeypatch.setattr(launch, "schedule", "auto persistent")
    monkeypatch.setattr(choice, "forced", "cuda")
    monkeypatch.setattr(launch, "precision", lambda _: how)
    dtype = getattr(torch, "float32" if how == "tf32" else how)
    asked = selftest.subject(cuda, "gru", torch.device(DEVICE), dtype)
    assert asked.cell == ""
    asked = asked._replace(precision=how)
    monkeypatch.setattr(gpu, "precision", lambda _: how)  # by which the tolerance is chosen
    if not ON_GPU:
        emulation().launched()
    assert selftest._test(cuda, asked, None, lambda: 0.0) == selftest.Verdict(None)
    if not ON_GPU:
        assert emulation().launched() == step_kernels()
    right = cuda.run_backward

    def run_backward(call, *rest):
        gradients = right(call, *rest)
        if call.cell == "rnn_relu" and call.h0.size(0) == 2 and call.batch_sizes is None:
            gradients.weights[5][-1, -1] += 100  # w_hh of the reverse direction
        return gradients

    monkeypatch.setattr(cuda, "run_backward", run_backward)
    reason = selftest._test(cuda, asked, None, lambda: 0.0).reason
    assert reason.startswith("stepwise rnn_relu: the gradient of weight 5 is off by")


def test_reasons(monkeypatch):
    if not ON_GPU:
        assert cuda.status() is not None
    monkeypatch.setattr(cuda, "_missing", None)
    if not torch.cuda.is_available():
        assert cuda.status() == "there is no GPU that torch can use"
    on_cpu = SimpleNamespace(input=torch.empty(0), kind=CELLS["lstm"])
    assert cuda.obstacle(on_cpu) == "tensors are on cpu; move them and the module to 'cuda'"
    gpu_tensor = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float32)
    call = SimpleNamespace(input=gpu_tensor, kind=CELLS["lstm"], h0=torch.empty(1, 2, 3))
    capability = (7, 5)
    monkeypatch.setattr(gpu, "capability", lambda _: capability)
    assert "the GPU has compute capability (7, 5), the kernels need (8, 0)" in cuda.obstacle(call)
    capability = (9, 0)
    monkeypatch.setattr(cuda, "unfit", lambda device: f"no code for {device}")
    assert cuda.obstacle(call) == "no code for cuda:0"
    monkeypatch.setattr(cuda, "unfit", lambda device: None)
    assert cuda.obstacle(call) is None
    gpu_tensor.dtype = torch.complex64
    assert cuda.obstacle(call).startswith("dtype is torch.complex64; convert to one of")
