"""`torch.utils.flop_counter` counts our layers as it counts the products that torch.nn makes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch_pairs import CELLS, everything, example, layers, pair, state

import fastrnn
from fastrnn.interop import flops


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def trained(module, *args):
    output = module(*args)[0]
    (output if isinstance(output, torch.Tensor) else output.data).sum().backward()


@everything
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 2}]
)
def test_equals_torch(name, options):
    """In float64, where `torch.nn` writes its LSTM out on a CPU; float32 counts as much."""
    if name in CELLS and options or "proj_size" in options and name != "LSTM":
        options = {}
    wide, theirs = pair(name, 4, 3, dtype=torch.float64, **options)
    narrow, _ = pair(name, 4, 3, **options)
    x = example(name, T=6, N=5)
    shape = (5, 3) if name in CELLS else (wide.num_layers * (1 + wide.bidirectional), 5)
    for needs in (False, True):
        hx = None
        if needs and name in CELLS:
            hx = state(name, *shape)
        elif needs:
            hx = state(name, *shape, options.get("proj_size", 3), c_width=3)
        for grad in (True, False):
            counts = []
            for module, dtype in ((theirs, torch.float64), (wide, torch.float64),
                                  (narrow, torch.float32)):  # fmt: skip
                given = x.to(dtype).requires_grad_(needs)
                start = tree_map_only(
                    torch.Tensor, lambda s, dtype=dtype: s.to(dtype).detach().requires_grad_(), hx
                )
                with torch.set_grad_enabled(grad):
                    run = trained if grad else type(module).__call__
                    counts.append(counted(lambda: run(module, given, start)))  # noqa: B023
            assert counts[0] > 0 and counts == [counts[0]] * 3, (needs, grad)


@layers
def test_packed_input_and_features(name):
    module, theirs = pair(name, 4, 3, dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, [6, 1, 3], enforce_sorted=False)
    for run in (trained, type(module).__call__):
        assert counted(lambda run=run: run(module, packed)) == counted(
            lambda run=run: run(theirs, packed)
        )
    plain = counted(lambda: trained(module, x))
    for asked in (
        {"lengths": torch.tensor([6, 1, 3])},
        {"detach_every": 2},
        {"return_states": True},
    ):
        assert counted(lambda asked=asked: module(x, **asked)[0].sum().backward()) == plain
    only_input = counted(lambda: trained(module.requires_grad_(False), x.requires_grad_()))
    assert 0 < only_input < plain


def test_by_module_and_by_op():
    model = torch.nn.Sequential(fastrnn.LSTM(4, 3))
    with FlopCounterMode(display=False) as counter:
        trained(model, torch.randn(5, 2, 4))
    assert set(counter.get_flop_counts()["Sequential.0"]) == {
        torch.ops.fastrnn.layer_forward,
        torch.ops.fastrnn.layer_backward,
    }


@pytest.mark.parametrize("order", ["fastrnn, {}", "{}, fastrnn", "fastrnn, {}, {}"])
def test_whichever_is_imported_first(order):
    """fastrnn imports no counter, which takes half a second, and needs no second look."""
    names = order.format(*["torch.utils.flop_counter"] * 2)
    program = (
        f"import sys; import {names}; import torch, fastrnn\n"
        "from torch.utils import flop_counter\n"
        "assert torch.ops.fastrnn.layer_forward in flop_counter.flop_registry\n"
        "assert flop_counter.__spec__.loader.exec_module.__name__ == 'exec_module'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    program = "import sys, fastrnn; assert 'torch.utils.flop_counter' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


class ByTable(TorchDispatchMode):
    """Counts as ptflops does: a formula of the arguments and results for each operator."""

    aten = torch.ops.aten

    def __init__(self):
        super().__init__()
        self.total, self.ATEN_OPS_MAPPING = 0, {
            self.aten.mm: lambda args, _: args[0].numel() * args[1].size(1),
            self.aten.addmm: lambda args, _: (args[1].numel() + args[1].size(0)) * args[2].size(1),
        }  # fmt: skip
        flops.register_macs(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **kwargs or {})
        count = self.ATEN_OPS_MAPPING.get(func._overloadpacket, lambda args, _: 0)
        self.total += count(args, results)
        return results


@everything
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("bias", [True, False])
def test_a_table_of_operators(name, options, bias):
    modules = pair(name, 4, 3, bias=bias, dtype=torch.float64, **({} if name in CELLS else options))
    for grad in (True, False):
        counts = []
        for module in modules:
            with torch.set_grad_enabled(grad), ByTable() as table:
                module(example(name, T=6, N=5).double())
            counts.append(table.total)
        assert counts[0] == counts[1] > 0, (grad, counts)
