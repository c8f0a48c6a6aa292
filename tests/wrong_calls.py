"""Calls of a layer in which something does not fit, by what every kernel for GPUs says of them."""

from __future__ import annotations

import torch

from fastrnn.call import Call


def changed(a: Call, k: int, change) -> Call:
    return a._replace(weights=[change(w) if i == k else w for i, w in enumerate(a.weights)])


WRONG = {
    "weight_ih must have shape": lambda a: changed(a, 0, lambda w: w[:, 1:]),
    "bias_hh must have shape": lambda a: changed(a, 3, lambda w: w[1:]),
    "cannot take 3 weights": lambda a: a._replace(weights=a.weights[:3]),
    "cannot take 4 weights": lambda a: a._replace(names="w_ih w_hh"),
    "needs initial cell state": lambda a: a._replace(c0=None),
    "c0 must have shape": lambda a: a._replace(c0=a.c0[:, :1]),
    "h0 must have shape": lambda a: a._replace(h0=a.h0[0]),
    "input must have 3 dimensions": lambda a: a._replace(input=a.input[0]),
    "input must have shape": lambda a: a._replace(input=a.input[:, :1]),
    "unknown cell": lambda a: a._replace(cell="elman"),
    "same dtype": lambda a: changed(a, 1, lambda w: w.double()),
    "same device": lambda a: changed(a, 1, lambda w: w.to("meta")),
    "weights must be dense": lambda a: changed(a, 1, lambda w: w.to_sparse()),
    "input must be a dense tensor": lambda a: a._replace(
        input=torch.nested.nested_tensor([a.input[0], a.input[1]])
    ),
    "reset must have dtype": lambda a: a._replace(reset=torch.zeros(3, 2)),
    "lengths must have shape": lambda a: a._replace(lengths=torch.tensor([1])),
    "lengths must be between": lambda a: a._replace(lengths=torch.tensor([4, 0])),
    "sequence length to be larger than 0": lambda a: a._replace(input=a.input[:0]),
}
