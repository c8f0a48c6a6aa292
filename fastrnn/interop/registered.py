"""Tells other libraries about our classes and ops, as soon as these libraries are imported."""

from __future__ import annotations

from .. import cells, modules
from . import flops, opacus, pruning, quantization, tracing
from .imports import when_imported

_LAYERS = modules.LSTM, modules.GRU, modules.RNN
_ALL = *_LAYERS, cells.LSTMCell, cells.GRUCell, cells.RNNCell


def register() -> None:
    """Once, when fastrnn is imported."""
    when_imported("torch.jit._recursive", tracing.register)
    when_imported("torch.utils.flop_counter", flops.register)
    when_imported("torch.ao.quantization.quantize", quantization.register)
    when_imported("torch.ao.quantization.quantize_fx", quantization.register_graph_mode)
    when_imported(
        "torch.ao.pruning._experimental.pruner.base_structured_sparsifier",
        lambda sparsifier: pruning.register(sparsifier, modules.LSTM),
    )
    when_imported(
        "opacus.grad_sample",
        lambda samplers: opacus.register(samplers, [*_LAYERS, cells.GRUCell, cells.RNNCell]),
    )
    when_imported("ptflops.aten_ops", flops.register_macs)
    when_imported("ptflops.pytorch_ops", lambda found: flops.share(found.MODULES_MAPPING, _ALL))
    when_imported("thop.profile", lambda found: flops.share(found.register_hooks, _ALL))
    when_imported(
        "calflops.pytorch_ops", lambda found: flops.share(found.MODULE_HOOK_MAPPING, _ALL)
    )
    when_imported(
        "torch_pruning.utils.op_counter", lambda found: flops.share(found.MODULES_MAPPING, _ALL)
    )
