"""How many parts of a float32 its products use: what torch is told, and who is asked when."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from conftest import KERNELS
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from bench import jobs
from fastrnn import diagnosis, torch_private
from fastrnn.call import Call
from fastrnn.dispatch import cpu

mkldnn = torch.backends.mkldnn


@pytest.fixture(autouse=True)
def settings():
    """What a test tells torch holds until its end."""
    yield
    torch.backends.fp32_precision = "none"
    mkldnn.rnn.fp32_precision = mkldnn.matmul.fp32_precision = "none"


def allow(precision: str) -> None:
    mkldnn.rnn.fp32_precision = precision


@pytest.mark.parametrize(
    ("everywhere", "matmul", "rnn", "parts"),
    [
        ("none", "none", "none", 3),
        ("none", "none", "tf32", 2),
        ("none", "none", "bf16", 1),
        ("none", "tf32", "none", 2),
        ("none", "bf16", "none", 1),
        ("none", "bf16", "ieee", 3),
        ("none", "tf32", "bf16", 1),
        ("tf32", "none", "none", 2),
        ("bf16", "none", "none", 1),
        ("bf16", "none", "ieee", 3),
        ("ieee", "bf16", "none", 3),
    ],
)
def test_what_torch_is_told(everywhere, matmul, rnn, parts):
    torch.backends.fp32_precision = everywhere
    mkldnn.matmul.fp32_precision, mkldnn.rnn.fp32_precision = matmul, rnn
    assert cpu.allowed() == parts


def test_what_torch_is_told_of_all_products():
    code = (
        "import torch; from fastrnn.dispatch import cpu\n"
        "for how in ('highest', 'high', 'medium'):\n"
        "    torch.set_float32_matmul_precision(how); print(cpu.allowed())"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert told == ["3", "2", "1"]


def test_a_torch_without_the_settings(monkeypatch):
    monkeypatch.setattr(torch_private, "_fp32_precision", None)
    mkldnn.rnn.fp32_precision = "bf16"
    assert cpu.allowed() == 1
    monkeypatch.setattr(torch.backends, "mkldnn", types.SimpleNamespace(rnn=object()))
    assert cpu.allowed() == 3


class Seen:
    """`Direct`, and the parts of the calls that it took, None of those that leave them out."""

    def __init__(self, kernels):
        self.kernels, self.parts = kernels, []

    def run(self, call, *others):
        if taken := self.kernels.run(call, *others):
            self.parts.append(call[11] if len(call) == 12 else None)
        return taken

    def run_backward(self, call, *others):
        self.parts.append(call.parts)
        return self.kernels.run_backward(call, *others)


@pytest.fixture
def seen(monkeypatch):
    """The parts of the kernels' calls, one by one, on a CPU that is said to have AMX."""
    if KERNELS is None or cpu.direct is None:
        pytest.skip("no kernels past the dispatcher")
    before, direct = KERNELS.in_parts(), Seen(cpu.direct)
    monkeypatch.setattr(cpu, "asks", cpu.asks)
    monkeypatch.setattr(cpu, "direct", direct)
    monkeypatch.setattr(cpu, "LARGE", 0)
    monkeypatch.setattr(cpu, "FEW_ROWS", 0)
    monkeypatch.setattr(KERNELS, "isa", lambda: "amx")
    monkeypatch.setattr(KERNELS, "has_parts", lambda: True)
    cpu.set_in_parts("where faster")
    yield direct.parts
    KERNELS.set_in_parts(before)


def stack(module):
    return lambda: module(torch.randn(3, 16, 8))[0]


def cell(kind):
    module = kind(8, 8)
    return lambda: tuple(module(torch.randn(16, 8)))[0]


def packed():
    rows = torch.nn.utils.rnn.pack_sequence([torch.randn(T, 8) for T in (3, 2, 2, 1)])
    return fastrnn.GRU(8, 8)(rows)[0].data


CALLS = {
    "LSTM": stack(fastrnn.LSTM(8, 8)),
    "GRU": stack(fastrnn.GRU(8, 8, bidirectional=True)),
    "half precision": lambda: fastrnn.RNN(8, 8).half()(torch.randn(3, 16, 8).half())[0],
    "packed": packed,
    "LSTMCell": cell(fastrnn.LSTMCell),
    "GRUCell": cell(fastrnn.GRUCell),
    "lengths": lambda: fastrnn.LSTM(8, 8)(torch.randn(3, 2, 8), lengths=torch.tensor([3, 1]))[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_backward_uses_what_forward_used(name, seen):
    allow("tf32")
    output = CALLS[name]()
    allow("bf16")
    output.float().sum().backward()
    assert seen == [2, 2]
    with torch.no_grad():
        CALLS[name]()
        allow("none")
        CALLS[name]()
    assert seen == [2, 2, 1, 2 if name == "half precision" else 3]


@pytest.mark.parametrize(("told", "parts"), [("none", 2), ("ieee", 2), ("tf32", 2), ("bf16", 1)])
def test_float16_is_two_parts(told, parts, seen):
    module, x = fastrnn.GRU(8, 8).half(), torch.randn(3, 16, 8).half()
    allow(told)
    module(x)[0].float().sum().backward()
    with torch.no_grad():
        module(x)
    assert seen == [parts] * 3
    numbers = torch.randn(1000).half().float()
    first = numbers.bfloat16().float()
    assert torch.equal(first + (numbers - first).bfloat16().float(), numbers)


def test_a_forward_that_is_run_again(seen):
    module = fastrnn.LSTM(8, 8)
    allow("tf32")
    output, _ = module(torch.randn(3, 16, 8))
    loss = output.sum()
    with torch.no_grad():
        output.zero_()  # which backward would have read
    allow("bf16")
    loss.backward()
    assert seen == [2, 2, 2]


def test_transforms(seen):
    module, x = fastrnn.GRU(8, 8), torch.randn(3, 16, 8)
    allow("tf32")
    _, back = torch.func.vjp(lambda x: module(x)[0], x)
    allow("bf16")
    back(torch.randn(3, 16, 8))
    assert seen == [2, 2]


def test_each_layer_of_a_stack(seen):
    module, x = fastrnn.LSTM(8, 8, num_layers=2), torch.randn(3, 16, 8)
    allow("bf16")
    module(x)[0].sum().backward()
    with torch.no_grad():
        module(x)
    assert seen == [1, 1, 1, 1, 1]


class Ops(TorchDispatchMode):
    """The last argument of the ops of layers."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.name().startswith("fastrnn::layer"):
            schema = [argument.name for argument in op._schema.arguments]
            at = schema.index("parts")
            self.parts.append(args[at] if at < len(args) else 3)
        return op(*args, **(kwargs or {}))


def test_the_ops_are_told(seen):
    module, x = fastrnn.LSTM(8, 8), torch.randn(3, 16, 8)
    with Ops() as ops:
        allow("tf32")
        output, _ = module(x)
        allow("bf16")
        output.sum().backward()
        with torch.no_grad():
            module(x)
    assert ops.parts == [2, 2, 1] and not seen


def test_compiled_graphs_use_what_was_allowed_when_they_were_compiled(seen):
    module, x, found = fastrnn.LSTM(8, 8), torch.randn(3, 16, 8), []

    def read(graph, inputs):
        found.extend(n.args[-1] for n in graph.graph.nodes if "layer_" in str(n.target))
        return graph.forward

    allow("bf16")
    compiled = torch.compile(module, backend=read, fullgraph=True)
    compiled(x)
    allow("none")
    compiled(x)
    torch.compiler.reset()
    compiled(x)
    assert found == [1, 3]


def test_nobody_asks_without_the_switch(seen, monkeypatch):
    cpu.set_in_parts("never")
    monkeypatch.setattr(cpu, "allowed", lambda: 1 / 0)
    module, x = fastrnn.LSTM(8, 8), torch.randn(3, 16, 8)
    module(x)[0].sum().backward()
    with torch.no_grad():
        module(x)
    fastrnn.GRUCell(8, 8)(x[0]).sum().backward()
    assert seen == [3, 3, None, 3, 3]
    monkeypatch.setattr(KERNELS, "has_parts", lambda: False)
    cpu.set_in_parts("where faster")
    assert not cpu.asks


def test_nobody_asks_of_a_small_call(seen, monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", 48 * 64)
    allow("bf16")
    for N, found in ((15, (3, 3, None)), (16, (1, 1, 1))):
        module, x = fastrnn.LSTM(5, 8), torch.randn(3, N, 5)
        module(x)[0].sum().backward()
        with torch.no_grad():
            module(x)
        assert tuple(seen[-3:]) == found


@pytest.mark.skipif(KERNELS is None, reason="no kernels are built")
def test_the_kernels_read_it():
    module, x = fastrnn.LSTM(5, 7), torch.randn(2, 3, 5)
    h = torch.zeros(1, 3, 7)
    call = Call(x, None, h, h, module._flat_weights, "lstm", "w_ih w_hh b_ih b_hh")
    room = (torch.empty(2, 3, 7),), torch.empty(1, 3, 7), torch.empty(1, 3, 7), ()
    for parts in (0, 4):
        wrong = call._replace(parts=parts)
        assert not cpu.direct.run(wrong, 1, None, *room)
        for op in (torch.ops.fastrnn.layer_inference, torch.ops.fastrnn.layer_forward):
            with pytest.raises(RuntimeError, match=f"parts must be 1, 2 or 3, got {parts}"):
                op(*wrong)
    for parts in (1, 2, 3):
        assert cpu.direct.run(call._replace(parts=parts), 1, None, *room)


def test_the_report(seen, monkeypatch):
    def line() -> str:
        return diagnosis.facts()["float32"]

    assert line() == "on AMX where faster, by six products of bfloat16 for each"
    allow("tf32")
    assert line() == "on AMX where faster, by three products of bfloat16 for each"
    allow("bf16")
    assert line() == "on AMX where faster, by one product of bfloat16 for each"
    cpu.set_in_parts("never")
    assert line() == "on AMX never"
    monkeypatch.setattr(KERNELS, "isa", lambda: "avx512bf16")
    assert line() == "multiplied in float32"
    cpu.set_in_parts("where faster")
    assert line() == "multiplied as bfloat16, as torch allows"
    allow("tf32")
    assert line() == "multiplied in float32"


@pytest.mark.parametrize(("name", "parts"), [("", 3), (", tf32", 2), (", bf16", 1)])
def test_the_contenders(name, parts, seen):
    with jobs.find("layer", f"fastrnn in parts{name}").around():
        assert KERNELS.in_parts() == "always" and cpu.allowed() == parts
    assert KERNELS.in_parts() == "where faster" and cpu.allowed() == 3
