"""What lets code that knows `torch.nn` alone take our modules: class checks, tracers, counters."""

from __future__ import annotations

from . import flops, opacus, pruning, quantization, tracing
from .classes import PassesFor
from .imports import when_imported
from .opacus import PerSample
from .quantization import Quantizable
from .tracing import Recorded

__all__ = ["AsTorch"]


class AsTorch(PassesFor, PerSample, Quantizable, Recorded):
    """A module that other code may take for that of `torch.nn`."""


when_imported("torch.jit._recursive", tracing.register)
when_imported("torch.utils.flop_counter", flops.register)
when_imported("torch.ao.quantization.quantize", quantization.register)
when_imported("torch.ao.quantization.quantize_fx", quantization.register_graph_mode)
when_imported("torch.ao.pruning._experimental.pruner.base_structured_sparsifier", pruning.register)
when_imported("opacus.grad_sample", opacus.register)
when_imported("ptflops.aten_ops", flops.register_macs)
when_imported("ptflops.pytorch_ops", lambda ptflops: flops.share(ptflops.MODULES_MAPPING))
when_imported("thop.profile", lambda thop: flops.share(thop.register_hooks))
