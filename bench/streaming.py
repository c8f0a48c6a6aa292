"""One or a few time steps a call, the state carried on: an agent, a phone, a plug-in.

The call of every contender takes the next chunk of the problem's input and gives its output."""

import importlib
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from bench.contenders import Call, Contender, build, compiled
from bench.problems import Problem


def stepping(library: str, step_of: Callable, change: Callable = lambda module: module):
    """`prepare` from step_of(module), a function (chunk, state or None) -> (y, state)."""

    def prepare(problem: Problem) -> Call:
        step = step_of(change(build(library, problem)))
        chunks = cycle(problem.chunks())
        state = None

        def call() -> Tensor:
            nonlocal state
            with torch.no_grad():
                output, state = step(next(chunks), state)
            return output

        return call

    return prepare


def by_module(module) -> Callable:
    def step(x: Tensor, state):
        output, state = module(x[None], state)
        return output[0], state

    return step


def by_step(module) -> Callable:
    return lambda x, state: module.step(x, state)


def by_cells(module) -> Callable:
    """A torch.nn cell for every layer of `module`."""
    weights, cells = module.state_dict(), []
    for layer in range(module.num_layers):
        width = module.hidden_size if layer else module.input_size
        kind = getattr(torch.nn, f"{type(module).__name__}Cell")
        cells.append(kind(width, module.hidden_size, dtype=module.weight_ih_l0.dtype))
        names = cells[-1].state_dict()
        cells[-1].load_state_dict({name: weights[f"{name}_l{layer}"] for name in names})

    def step(x: Tensor, states):
        found = []
        for cell, state in zip(cells, states or [None] * len(cells), strict=True):
            found.append(cell(x, state))
            x = found[-1][0] if isinstance(found[-1], tuple) else found[-1]
        return x, found

    return step


def streamer(problem: Problem, **small: object) -> Call:
    module = build("fastrnn", problem)
    kind = importlib.import_module("fastrnn").Streamer
    stream = kind(module, batch_size=problem.spec.case.N, **small)
    step = stream.steps if problem.spec.case.job == "chunk" else stream
    chunks = cycle(problem.chunks())
    return lambda: step(next(chunks))


def streamer_numpy(problem: Problem) -> Call:
    """From arrays to arrays, as the runtimes that know no tensors."""
    module = build("fastrnn", problem)
    step = importlib.import_module("fastrnn").Streamer(module, batch_size=problem.spec.case.N)
    chunks = cycle(chunk.numpy() for chunk in problem.chunks())
    return lambda: step(next(chunks))


STEP = (
    Contender("fastrnn Streamer", streamer, devices=("cpu",), dtypes=("float32", "float64")),
    Contender(
        "fastrnn Streamer, numpy", streamer_numpy, devices=("cpu",), dtypes=("float32", "float64")
    ),
    Contender("fastrnn step", stepping("fastrnn", by_step)),
    Contender("fastrnn module", stepping("fastrnn", by_module)),
    Contender("torch.nn", stepping("torch.nn", by_module)),
    Contender("torch.nn cells", stepping("torch.nn", by_cells), devices=("cpu",)),
    Contender("torch.nn compiled", stepping("torch.nn", by_module, compiled), asked=True),
)
# Of those, who takes several steps in one call.
CHUNK = (
    STEP[0],
    Contender("fastrnn module", stepping("fastrnn", lambda module: module)),
    Contender("torch.nn", stepping("torch.nn", lambda module: module)),
)


def small(weights: str, tolerance: float) -> Contender:
    """A Streamer whose weights are rounded."""
    prepare = partial(streamer, weights=weights)
    name = f"fastrnn Streamer, {weights}"
    return Contender(name, prepare, devices=("cpu",), dtypes=("float32",), tolerance=tolerance)


SMALL = (
    small("int8", 0.1),
    small("bfloat16", 0.05),
    small("float16", 0.01),
    *(one for one in STEP if one.name in ("fastrnn Streamer", "torch.nn")),
)
