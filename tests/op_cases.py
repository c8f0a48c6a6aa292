"""Layer calls of all sizes and forms, and how their results are compared with float64."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass

import torch
from conftest import assert_matches
from layers import names_of, reference, reference_ops
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastrnn.table import CELLS, weight_names

FORWARD = ["output", "h_n", "c_n", "gates", "cells", "hidden"]
ops_of = torch.ops.fastrnn
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """A layer call. "lstm_proj" is the cell lstm with a projection."""

    cell: str = "lstm"
    H: int = 17
    N: int = 7
    T: int = 5
    I: int = 6
    D: int = 2
    packed: bool = False
    bias: bool = True
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        sizes = f"T{self.T}-N{self.N}-I{self.I}-H{self.H}-D{self.D}"
        options = "-packed" * self.packed + "-nobias" * (not self.bias)
        return f"{self.cell}-{sizes}{options}-{str(self.dtype)[6:]}"


AXES = {
    "cell": ["lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu"],
    "H": [1, 3, 17, 33, 63, 100, 257],
    "N": [1, 2, 7, 33],
    "T": [1, 2, 50, 513],
    "I": [1, 5, 64],
    "D": [1, 2],
    "packed": [False, True],
    "bias": [False, True],
    "dtype": DTYPES,
}


def covering(axes: dict[str, list]) -> list[Case]:
    """Cases in which every pair of values of two axes appears: greedy, and always the same."""
    choose = random.Random(0)
    names = list(axes)

    def pairs(values: tuple) -> set:
        return set(itertools.combinations(zip(names, values, strict=True), 2))

    def candidate() -> tuple:
        return tuple(choose.choice(axis) for axis in axes.values())

    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(axes[a], axes[b])
    }
    cases = []
    while missing:
        best = max((candidate() for _ in range(50)), key=lambda v: len(pairs(v) & missing))
        if pairs(best) & missing:
            missing -= pairs(best)
            cases.append(Case(**dict(zip(names, best, strict=True))))
    return cases


CASES = covering(AXES)
SMALL = [
    Case(cell, D=D, packed=packed, bias=bias)
    for cell, (D, packed, bias) in itertools.product(
        AXES["cell"], [(1, False, True), (2, True, True), (2, False, False)]
    )
]


TINY = [
    Case(cell, H=3, N=2, T=3, I=2, D=D, packed=packed)
    for cell, (D, packed) in zip(
        AXES["cell"] * 2, itertools.cycle([(1, False), (2, True), (2, False)]), strict=False
    )
]


def arguments(case: Case) -> tuple:
    """(input, batch_sizes, h0, c0, weights, cell, names) of `case`, drawn from its own stream."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * values - 1) * scale).to(case.dtype)

    cell = "lstm" if case.cell == "lstm_proj" else case.cell
    T, N, I, H, D = case.T, case.N, case.I, case.H, case.D
    P = (H + 1) // 2 if case.cell == "lstm_proj" else H
    GH = CELLS[cell].gates * H
    batch_sizes, shape = None, (T, N, I)
    if case.packed:
        lengths = torch.randint(1, T + 1, (N,), generator=generator)
        lengths[0] = T
        batch_sizes = (lengths > torch.arange(T)[:, None]).sum(1)
        shape = (int(batch_sizes.sum()), I)
    scale = H**-0.5
    weights = []
    for _ in range(D):
        weights += [uniform(GH, I, scale=scale), uniform(GH, P, scale=scale)]
        if case.bias:
            weights += [uniform(GH, scale=scale), uniform(GH, scale=scale)]
        if P != H or case.cell == "lstm_proj":
            weights.append(uniform(P, H, scale=scale))
    input, h0 = uniform(*shape), uniform(D, N, P)
    if cell == "rnn_relu":
        # The derivative jumps at 0, where rounding may choose either side: the first feature is
        # constant and drives every unit clearly on or off.
        input[..., 0] = 1
        per_direction = len(weights) // D
        for d in range(0, len(weights), per_direction):
            w_ih, w_hh = weights[d : d + 2]
            w_ih *= 0.1
            w_hh *= 0.1
            w_ih[:, 0] = 3 * w_ih[:, 0].sign()
    c0 = uniform(D, N, H) if cell == "lstm" else None
    return input, batch_sizes, h0, c0, weights, cell, names_of(weights, case.bias, D)


def converted(args: tuple, dtype: torch.dtype) -> tuple:
    """The arguments with every tensor but batch_sizes in `dtype`."""
    input, batch_sizes, h0, c0, weights, cell, names = args
    input, h0, c0 = (None if t is None else t.to(dtype) for t in (input, h0, c0))
    return input, batch_sizes, h0, c0, [w.to(dtype) for w in weights], cell, names


def cotangents(results: tuple) -> list[Tensor | None]:
    """A random gradient for each of output, h_n and c_n; None for an empty c_n."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)
        if r.numel()
        else None
        for r in results[:3]
    ]


@functools.cache
def expected(case: Case) -> tuple[tuple, tuple]:
    """What layer_forward and layer_backward must give, from the reference in float64."""
    args = converted(arguments(case), torch.float64)
    results = reference_ops.layer_forward(*args)
    # the gradients are rounded as the kernel receives them
    grads = [None if g is None else g.to(case.dtype).double() for g in cotangents(results)]
    return results, backward(reference_ops.layer_backward, args, results, grads)


def backward(function, args: tuple, results: tuple, grads, needs=(True, True, True)) -> tuple:
    """Calls a layer_backward with what belongs to one forward call."""
    output, _, _, *saved = results
    return function(*grads, None, None, output, *saved, *needs, *args)


def assert_gradients(actual: tuple, wanted: tuple) -> None:
    names = ["input", "h0", "c0"]
    for name, a, e in zip(names, actual[:3], wanted[:3], strict=True):
        assert_matches(a, e, f"gradient of {name}")
    for k, (a, e) in enumerate(zip(actual[3], wanted[3], strict=True)):
        assert_matches(a, e, f"gradient of weight {k}")


def scattered(tensor: Tensor | None) -> Tensor | None:
    """The same values with every stride larger than it need be, the last dimension outermost."""
    if tensor is None or not tensor.dim():
        return tensor
    wide = torch.full((*tensor.shape[::-1], 3), float("nan"), dtype=tensor.dtype)
    view = wide[..., 1].permute(*reversed(range(tensor.dim())))
    return view.copy_(tensor)


# Directions, packed, bias: the forms of a layer, for tests that give each case the next one.
FORMS = [(1, False, True), (2, True, True), (2, False, False), (1, True, False)]


def moved(device: str, value):
    """Tensors in it moved to a device, but for batch sizes, which stay on the CPU."""
    move = tree_map_only(Tensor, lambda t: t.to(device), value)
    if isinstance(value, tuple) and len(value) > 1 and isinstance(value[1], Tensor):
        return (move[0], value[1], *move[2:])
    return move


def assert_state_in_float32(cell: str, inference, device: str) -> None:
    """What `inference` carries in bfloat16 from step to step is not rounded to it."""
    # Each step changes the state by less than half a unit in the last place of bfloat16, so that a
    # rounded state stands still: an lstm adds 1/8 to a c of 64, a gru leaves 1 for 0 by 1/1000.
    T, H, zero = 32, 1, torch.zeros
    x = torch.ones(T, 1, 1, dtype=torch.bfloat16)
    h0, c0 = zero(1, 1, H), None
    if cell == "lstm":
        c0 = torch.full((1, 1, H), 64.0)
        w_ih = torch.tensor([[-1.9375], [100.0], [100.0], [0.0]])  # sigmoid(-1.9375) is 0.126
    else:
        h0 = torch.ones(1, 1, H)
        w_ih = torch.tensor([[0.0], [6.9], [0.0]])  # sigmoid(6.9) is 0.999
    args = (x, None, h0, c0, [w_ih, zero(len(w_ih), H)], cell, weight_names(False, False))
    args = converted(args, torch.bfloat16)
    _, h_n, c_n = inference(*moved(device, args))
    _, h, c = reference.layer(*converted(args, torch.float64))
    begin, actual, wanted = (64.0, c_n, c) if cell == "lstm" else (1.0, h_n, h)
    change = (wanted - begin).item()
    assert abs(actual.item() - begin - change) < 0.25 * abs(change)
