"""The ways to call the package, and torch.nn in the same way."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn

from .case import Case
from .numbers import Numbers

Named = dict[str, Tensor]


def _state(case: Case, state) -> Named:
    return dict(zip(("h_n", "c_n"), state if case.cell == "lstm" else (state,), strict=False))


def _hx(hx: tuple[Tensor, ...]):
    return hx[0] if len(hx) == 1 else hx or None


def _layer(numbers: Numbers, module, x: Tensor, hx: tuple[Tensor, ...]) -> Named:
    case = numbers.case
    input = x if numbers.packing is None else PackedSequence(x, *numbers.packing[1:])
    output, state, *more = module(input, _hx(hx), **numbers.features)
    results = {"output": output.data if case.packed else output} | _state(case, state)
    for field in ("h", "c", "gates") if more else ():
        for k, tensor in enumerate(getattr(more[0], field) or ()):
            results[f"{field}[{k}]"] = tensor
    return results


def _step(numbers: Numbers, module, x: Tensor, hx: tuple[Tensor, ...]) -> Named:
    state, outputs, reset = _hx(hx), [], numbers.features.get("reset")
    for t in range(len(x)):
        y, state = module.step(x[t], state, None if reset is None else reset[t])
        outputs.append(y)
    return {"output": torch.stack(outputs)} | _state(numbers.case, state)


def _stream(numbers: Numbers, module, x: Tensor, hx: tuple[Tensor, ...]) -> Named:
    stream, outputs, reset = fastrnn.Streamer(module, x.size(1)), [], numbers.features.get("reset")
    if hx:
        stream.load_state(_hx(hx))
    for t in range(len(x)):
        if reset is not None:
            stream.reset(reset[t])
        outputs.append(stream(x[t]).clone())
    return {"output": torch.stack(outputs)} | _state(numbers.case, stream.state)


def _cell(numbers: Numbers, module, x: Tensor, hx: tuple[Tensor, ...]) -> Named:
    state, outputs = _hx(hx), []
    for row in x:
        state = module(row, state)
        outputs.append(state[0] if numbers.case.cell == "lstm" else state)
    return {"output": torch.stack(outputs)} | _state(numbers.case, state)


_CALLS = {"layer": _layer, "step": _step, "stream": _stream, "cell": _cell}
_INFERENCE = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def _attached(case: Case, results: Named) -> Named:
    """The results, or parts of them, that the loss is made of."""
    output = results["output"]
    if case.loss == "last":
        by_row = case.form == "batch_first" and case.kind == "layer"
        results = {"last": output[:, -1:] if by_row else output[-1:]}
    elif case.loss == "output":
        results = {"output": output}
    elif case.loss == "final":
        results = {name: results[name] for name in ("h_n", "c_n") if name in results}
    elif case.loss == "some":
        rng = random.Random(case.seed)
        results = {name: results[name] for name in rng.sample([*results], len(results) // 2)}
    return {name: tensor for name, tensor in results.items() if tensor.requires_grad}


def outcome(
    case: Case,
    numbers: Numbers,
    module: torch.nn.Module,
    x: Tensor,
    hx: tuple[Tensor, ...],
    cotangent: Callable[[str, Tensor], Tensor],
) -> Named:
    """Results and gradients of one call. case: that of the numbers, or one that calls them another
    way. cotangent(name, result) is the gradient of the loss with respect to a result."""
    with _INFERENCE.get(case.loss, contextlib.nullcontext)():
        results = _CALLS[case.kind](numbers, module, x, hx)
    leaves = {"x": x, **dict(zip(("h0", "c0"), hx, strict=False))} | dict(module.named_parameters())
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    attached = _attached(case, results) if case.trains else {}
    if attached and leaves:
        gradients = torch.autograd.grad(
            list(attached.values()),
            list(leaves.values()),
            [cotangent(name, result) for name, result in attached.items()],
            allow_unused=True,
        )
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            results[f"grad {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return {name: tensor.detach() for name, tensor in results.items()}
