"""What the three ops refuse, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from conftest import KERNELS
from op_cases import AXES, DTYPES, Case, arguments, backward, cotangents, ops_of
from torch import Tensor

from fastrnn.table import weight_names


def broken(case: Case) -> dict[str, tuple]:
    """Calls that do not fit together, by what is wrong with them."""
    input, batch_sizes, h0, c0, weights, cell, names = arguments(case)

    def call(**changes) -> tuple:
        good = {"input": input, "batch_sizes": batch_sizes, "h0": h0, "c0": c0}
        good |= {"weights": weights, "cell": cell, "names": names} | changes
        return tuple(good.values())

    def weight(k: int, tensor: Tensor) -> tuple:
        return call(weights=[*weights[:k], tensor, *weights[k + 1 :]])

    calls = {
        "cell": call(cell="elman"),
        "rank": call(input=input[0]),
        "width": call(input=input[..., :-1]),
        "batch": call(h0=h0[:, :-1]),
        "hidden": call(h0=h0[..., :-1]),
        "directions": call(h0=torch.cat([h0, h0])),
        "rank of h0": call(h0=h0[0]),
        "missing weight": call(weights=weights[:-1]),
        "no weights": call(weights=[]),
        "no bias": call(names=weight_names(not case.bias, case.cell == "lstm_proj")),
        "unknown name": call(names=names + " w_xx"),
        "no name": call(names=""),
        "w_ih rows": weight(0, weights[0][1:]),
        "w_ih rank": weight(0, weights[0][0]),
        "w_hh columns": weight(1, weights[1][:, 1:]),
        "w_hh empty": weight(1, weights[1][:0]),
        "scalar": weight(1, weights[1][0, 0]),
        "last": weight(len(weights) - 1, weights[-1][1:]),
    }
    if c0 is None:
        calls["c0"] = call(c0=h0)
    else:
        calls |= {"no c0": call(c0=None), "size of c0": call(c0=c0[:, 1:])}
    if batch_sizes is None:
        calls["no time step"] = call(input=input[:0])
    else:
        more = batch_sizes.clone()
        more[0] += 1
        calls |= {
            "rows": call(input=input[1:]),
            "sum": call(batch_sizes=batch_sizes[:-1]),
            "first": call(batch_sizes=more),
            "rising": call(batch_sizes=batch_sizes.flip(0)),
            "zero": call(batch_sizes=torch.cat([batch_sizes, batch_sizes.new_zeros(1)])),
            "negative": call(batch_sizes=torch.cat([batch_sizes, torch.tensor([1, -1])])),
            "huge": call(batch_sizes=batch_sizes + 2**62),
            "none": call(batch_sizes=batch_sizes[:0], input=input[:0]),
            "int32": call(batch_sizes=batch_sizes.int()),
            "matrix": call(batch_sizes=batch_sizes[None]),
        }
    return calls


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", AXES["cell"])
def test_bad_calls_raise(cell, packed, isa):
    for dtype in DTYPES:
        for name, args in broken(Case(cell, packed=packed, dtype=dtype)).items():
            for op in (ops_of.layer_inference, ops_of.layer_forward):
                with pytest.raises(RuntimeError):
                    op(*args)
                    pytest.fail(f"{op} accepted: {name}")


@pytest.mark.parametrize("cell", AXES["cell"])
def test_backward_checks_what_was_saved(cell, isa):
    args = arguments(Case(cell))
    results = ops_of.layer_forward(*args)
    grads = cotangents(results)
    if KERNELS is None:  # the reference computes again and reads nothing that was saved
        return
    for k in (0, 3, 4, 5):
        if results[k].numel():
            cut = [*results[:k], results[k][:, 1:], *results[k + 1 :]]
            with pytest.raises(RuntimeError):
                backward(ops_of.layer_backward, args, cut, grads)
    for k in range(3):
        if grads[k] is not None:
            cut = [*grads[:k], grads[k][:, 1:], *grads[k + 1 :]]
            with pytest.raises(RuntimeError):
                backward(ops_of.layer_backward, args, results, cut)
