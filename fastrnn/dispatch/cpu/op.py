"""A layer as an op of torch, on whatever device: what traces, modes and compilers see."""

from __future__ import annotations

import torch

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Results, Saved


def run(call: Call, save: bool) -> Results:
    """As `dispatch.Backend.run`."""
    name = "layer_forward" if save else "layer_inference"
    return Results(*getattr(torch.ops.fastrnn, name).default(*call))


def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
    """As `dispatch.Backend.run_backward`."""
    arguments = (*cotangents, *saved.filled(), *needs, *call)
    return Gradients(*torch.ops.fastrnn.layer_backward.default(*arguments))
