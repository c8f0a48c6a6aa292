"""The numbers that go into a case."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from .case import Case


class Numbers:
    """What goes into a case, in float64, but each a number of the case's dtype."""

    def __init__(self, case: Case) -> None:
        self.case, self._cotangents = case, {}
        self._random = torch.Generator().manual_seed(case.seed)
        self.dtype = getattr(torch, case.dtype)
        # A float32 sum near 0 may have the other sign, and a ReLU then another derivative: here all
        # terms of a sum have one sign, whichever order they are added in.
        self._signed = case.cell == "rnn_relu" and case.dtype != "float64"
        self.weights = self._draw_weights()
        self.packing, self.features = None, {}
        T, N, I, P, H = case.T, case.N, case.I, case.width, case.H
        shape, state = (T, N), (case.layers * case.directions, N)
        if case.packed:
            lengths = torch.tensor(case.row_lengths())
            self.packing = pack_padded_sequence(
                torch.zeros(T, N, 1), lengths, enforce_sorted=case.form == "packed"
            )
            shape = (len(self.packing.data),)
        elif case.form == "unbatched":
            shape, state = (T,), state[:1]
        elif case.form == "batch_first" and case.kind == "layer":
            shape = (N, T)
        if case.kind == "cell":
            state = shape[1:]
        self.x = self._draw(*shape, I)
        self.hx = ()
        if case.hx:
            widths = (P, H) if case.cell == "lstm" else (P,)
            self.hx = tuple(self._draw(*state, width) for width in widths)
        self._ask(shape)

    def _draw(self, *shape: int) -> Tensor:
        value = torch.randn(shape, generator=self._random, dtype=torch.float64)
        value = value.abs() if self._signed else value
        return self._round(value[:1].expand(shape) if self.case.layout == "expanded" else value)

    def _round(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).double()

    def _draw_weights(self) -> dict[str, Tensor]:
        """As torch.nn initialises them, but for inputs so wide that all gates were closed."""
        torch.manual_seed(self.case.seed)
        module = new_module(torch.nn, self.case, dtype=torch.float64)
        weights = {name: p.detach() for name, p in module.named_parameters()}
        signs: dict[str, Tensor] = {}
        for name, weight in weights.items() if self._signed else ():
            kind, _, which = name.partition("_l")
            sign = signs.setdefault(which, torch.randn(len(weight)).sign().double())
            weight.abs_()
            if kind.startswith("weight"):
                weight.div_(2 * weight.sum(1, keepdim=True)).mul_(sign[:, None])
            else:
                weight.mul_(sign)
        narrow = math.sqrt(self.case.H / max(self.case.H, self.case.I))
        return {
            name: self._round(weight * narrow if name.startswith("weight_ih") else weight)
            for name, weight in weights.items()
        }

    def _ask(self, shape: tuple[int, ...]) -> None:
        """For the features."""
        case, ask = self.case, self.features
        if case.reset:
            ask["reset"] = torch.rand(shape, generator=self._random) < 0.1
        if case.lengths and not case.packed:
            lengths = torch.tensor(case.row_lengths())
            ask["lengths"] = lengths.to(random.Random(case.seed).choice((torch.int64, torch.int32)))
            if case.layout != "expanded":
                past = torch.arange(case.T)[:, None] >= lengths
                self.x[past.t() if case.form == "batch_first" else past] = math.nan
        for name in ("detach_every", "grad_clip"):
            if value := getattr(case, name):
                ask[name] = value
        for name in ("states", "gates"):
            if getattr(case, name):
                ask[f"return_{name}"] = True

    def cotangent(self, name: str, result: Tensor) -> Tensor:
        """The gradient of the loss with respect to a result."""
        if name not in self._cotangents:
            signed, self._signed = self._signed, False
            self._cotangents[name] = self._draw(*result.shape)
            self._signed = signed
        return self._cotangents[name]


def new_module(library, case: Case, **kwargs) -> torch.nn.Module:
    name, _, nonlinearity = case.cell.partition("_")
    if nonlinearity:
        kwargs["nonlinearity"] = nonlinearity
    name = name.upper()
    if case.kind == "cell":
        return getattr(library, f"{name}Cell")(case.I, case.H, bias=case.bias, **kwargs)
    if case.P:
        kwargs["proj_size"] = case.P
    return getattr(library, name)(
        case.I,
        case.H,
        case.layers,
        bias=case.bias,
        batch_first=case.form == "batch_first",
        bidirectional=case.directions == 2,
        **kwargs,
    )


def with_weights(
    module: torch.nn.Module, weights: dict[str, Tensor], wanted: bool
) -> torch.nn.Module:
    for name, weight in weights.items():
        setattr(module, name, torch.nn.Parameter(weight, requires_grad=wanted))
    return module
