"""The layers of a `Streamer`: their weights, checked and packed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import checks, small_weights
from .call import Call, Stack
from .dispatch import cpu
from .features import Asked
from .made import check_learned
from .modules import RNNBase
from .table import cell_of


def packed_stack(
    module: RNNBase,
    dtype: torch.dtype,
    h: Tensor,
    c: Tensor | None,
    planes: Mapping[str, Tensor],
    formats: Mapping[str, str | None] | None,
    wide: bool,
):
    """`_C.Stream` of the module's weights as they are now, or its like without kernels.

    It reads and writes h (L, N, P) and c (L, N, C) in place, and reads the cell's inputs, the
    `planes`. Errors are those of `Streamer.refresh`.
    """
    _, batch, width = h.shape
    rows = torch.tensor([batch], device="cpu")  # a step is packed input
    module._update_flat_weights()
    names, weights = module._named_weights_(h[0], rows, Asked(inputs=planes))
    for weight in module._flat_weights:
        checks.address_of(weight, "a weight")
        if weight.dtype != dtype or not weight.is_cpu:
            raise ValueError(
                f"the stream is {dtype} on the CPU, a weight of the module is "
                f"{weight.dtype} on {weight.device}"
            )
    count, inputs = names.count(" ") + 1, len(planes)
    weights = weights[: module.num_layers * count]  # there may be more than it needs by now
    weights = [w.detach().resolve_neg().to(h.dtype).contiguous() for w in weights]
    x = h.new_empty(batch, module.input_size)
    call = Call(x, rows, h, c, weights, cell_of(module), names)
    for k, layer in enumerate(Stack(call, module.num_layers, 1, 0.0, False).each()):
        layer = layer._replace(input=h.new_empty(batch, width)) if k else layer
        layer.check_weights(layer.input.size(1), f"_l{k}")
        layer.sizes()
        check_learned(names, layer.weights[: count - inputs], module.hidden_size, f"_l{k}")
    small = small_weights.all_packed(module._flat_weights_names[: len(weights)], weights, formats)
    weights = [numbers for _, numbers, _ in small] or weights
    return cpu.stream_class()(
        cell_of(module),
        dtype == torch.float64,
        module.num_layers,
        batch,
        module.input_size,
        module.hidden_size,
        width,
        width // (weights[1].size(-1) or width),  # heads
        names,
        inputs,
        [weight.data_ptr() for weight in weights],
        h.data_ptr(),
        0 if c is None else c.data_ptr(),
        [(code, 0 if scale is None else scale.data_ptr()) for code, _, scale in small],
        wide,
    )
