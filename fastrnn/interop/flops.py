"""What `torch.utils.flop_counter` counts for a layer: its products, as it does for other modules.

The activations and element-wise products of the cells are not counted, nor are they elsewhere. A
row counts whole whatever its length in `lengths` is.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import torch


def _named(op, args: tuple, kwargs: dict) -> dict:
    """The arguments by name. The dispatcher leaves out those that are the defaults."""
    names = [argument.name for argument in op._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


def _rows(input: torch.Tensor) -> int:
    return input.shape[:-1].numel()


def _forward(op):
    def flops(*args, out_val=None, **kwargs) -> int:
        given = _named(op, args, kwargs)
        matrices = [weight for weight in given["weights"] if weight.dim() == 2]
        return 2 * _rows(given["input"]) * sum(map(torch.numel, matrices))

    return flops


def _backward(op):
    def flops(*args, out_val=None, **kwargs) -> int:
        given = _named(op, args, kwargs)
        h0, weights, rows = given["h0"], given["weights"], _rows(given["input"])
        names = given["names"].split()
        need_input = given.get("need_input", True)
        need_state = given.get("need_state", True)
        need_weights = given.get("need_weights", True)
        total = 0
        for at, weight in enumerate(weights):
            if weight.dim() != 2:
                continue
            name = names[at % len(names)]
            if name == "w_ih":
                through = rows * need_input
            elif name == "w_hh":
                through = rows if need_state else rows - h0.size(1)  # the first step's h is h0
            else:
                through = rows
            total += 2 * (through + rows * need_weights) * weight.numel()
        return total

    return flops


def register(counter: ModuleType) -> None:
    """Tells `torch.utils.flop_counter` of the ops."""
    ops = torch.ops.fastrnn
    for name, formula in (
        ("layer_inference", _forward),
        ("layer_forward", _forward),
        ("layer_backward", _backward),
        ("torch_layer", _forward),
        ("torch_layer_backward", _backward),
    ):
        packet = getattr(ops, name)
        counter.register_flop_formula(packet, get_raw=True)(formula(packet.default))


def register_macs(ptflops: ModuleType) -> None:
    """Tells `ptflops.aten_ops` of the ops. It counts one for each entry of a matrix, and of a
    bias, that meets a row."""

    def formula(op):
        def macs(args: tuple, results: tuple) -> int:
            given = _named(op, args, {})
            return _rows(given["input"]) * sum(map(torch.numel, given["weights"]))

        return macs

    for name in ("layer_inference", "layer_forward", "torch_layer"):
        packet = getattr(torch.ops.fastrnn, name)
        ptflops.ATEN_OPS_MAPPING[packet] = formula(packet.default)


def share(table: dict[type, object], classes: Iterable[type]) -> None:
    """Enters our classes into a table that has those of `torch.nn`."""
    for ours in classes:
        if ours.torch_class in table:
            table[ours] = table[ours.torch_class]
