"""A layer and its ops called with the arguments of the schema, one by one."""

from __future__ import annotations

from functools import partial

import torch

from fastrnn import ops
from fastrnn.call import Call
from fastrnn.dispatch import reference as _reference
from fastrnn.dispatch.gpu import layer as gpu_layer
from fastrnn.dispatch.reference import definition
from fastrnn.ops import backward_arguments
from fastrnn.table import weight_names


def layer(*arguments, traced: bool = False) -> tuple:
    """`ops.layer`; with `traced` also gates and cells."""
    results = ops.layer(Call(*arguments), traced=traced)
    return tuple(results[: 5 if traced else 3])


class reference:
    """The definition of a layer."""

    @staticmethod
    def layer(*arguments, trace: bool = False) -> tuple:
        return tuple(definition.layer(Call(*arguments), trace)[: 6 if trace else 3])


class Ops:
    """The ops on a backend, given by its two functions."""

    def __init__(self, run, run_backward):
        self._run, self._run_backward = run, run_backward

    def layer_inference(self, *arguments, **features) -> tuple:
        return tuple(self._run(Call(*arguments, **features), False).filled()[:3])

    def layer_forward(self, *arguments, **features) -> tuple:
        return tuple(self._run(Call(*arguments, **features), True).filled())

    def layer_backward(self, *arguments, **features) -> tuple:
        call, *rest = backward_arguments(arguments)
        return tuple(self._run_backward(call._replace(**features), *rest))


reference_ops = Ops(_reference.run_detached, _reference.run_backward)
registered = torch.ops.fastrnn


def names_of(weights, bias: bool, directions: int) -> str:
    """The names of a flat list of weights."""
    plain = 4 if bias else 2
    return weight_names(bias, len(weights) // directions > plain)


def on_loops(loops) -> Ops:
    """The ops on the loops over time of a backend for GPUs."""
    return Ops(partial(gpu_layer.run, loops), partial(gpu_layer.run_backward, loops))
