"""The cells of torch.nn written as Python functions: by `fastrnn.Recurrent`, and as a loop."""

import importlib
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.contenders import BASELINE, OURS, Call, Contender, caller
from bench.problems import Problem, sizes

sigmoid, tanh = torch.sigmoid, torch.tanh


def lstm(g, s, p):
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.g)
    return sigmoid(g.o) * tanh(c), c


def gru(g, s, p):
    r, z = sigmoid(g.r), sigmoid(g.z)
    n = tanh(g.x_n + r * g.u_n)
    return n + z * (s.h - n)


def rnn(g, s, p):
    return tanh(g.h)


# step, gates and states, as `fastrnn.Cell` takes them
STEPS = {
    "LSTM": (lstm, "i f g o", "h c"),
    "GRU": (gru, "r z x:n u:n", "h"),
    "RNN": (rnn, "h", "h"),
}


def recurrent(problem: Problem) -> Call:
    library = importlib.import_module("fastrnn")
    spec, x = problem.spec, problem.input
    cell = library.Cell(*STEPS[spec.cell])
    module = library.Recurrent(cell, **sizes(spec), dtype=x.dtype, device=x.device)
    module.load_state_dict(problem.weights)
    module.train(spec.mode != "inference")

    def run(x: Tensor):
        output, state = module(x)
        return output, *(state if isinstance(state, tuple) else (state,))

    return caller(problem, run, dict(module.named_parameters()))


def loop(problem: Problem, change=lambda function: function) -> Call:
    """A step after the other in plain PyTorch, the input's product of all steps at once. `change`
    has the function before it is called."""
    spec = problem.spec
    step, gates, states = STEPS[spec.cell]
    parameters = {k: w.clone().requires_grad_() for k, w in problem.weights.items()}
    names = gates.replace(":", "_").split()

    def run(x: Tensor):
        w_ih, w_hh, b_ih, b_hh = parameters.values()
        state = {name: x.new_zeros(x.shape[1], spec.case.hidden_size) for name in states.split()}
        outputs = []
        count = len(w_ih) // spec.case.hidden_size
        for part in linear(x, w_ih, b_ih).unbind():
            hidden = linear(state["h"], w_hh, b_hh)
            xs, us = iter(part.chunk(count, -1)), iter(hidden.chunk(count, -1))
            g = {}
            for name in names:
                if name[:2] == "x_":
                    g[name] = next(xs)
                elif name[:2] == "u_":
                    g[name] = next(us)
                else:
                    g[name] = next(xs) + next(us)
            new = step(SimpleNamespace(**g), SimpleNamespace(**state), None)
            state = dict(zip(state, new if isinstance(new, tuple) else (new,), strict=True))
            outputs.append(state["h"])
        return torch.stack(outputs), *(each[None] for each in state.values())

    return caller(problem, change(run), parameters)


def one_layer(spec) -> bool:
    return spec.case.layers == spec.case.directions == 1


FUNCTION = (
    Contender("fastrnn", recurrent),
    BASELINE,
    Contender("fastrnn, built in", OURS.prepare),
    Contender("loop of PyTorch", loop, fits=one_layer),
    Contender(
        "loop, compiled",
        partial(loop, change=partial(torch.compile, fullgraph=True, dynamic=False)),
        # The compiler unrolls it: 100 steps take minutes.
        fits=lambda spec: one_layer(spec) and spec.case.T <= 8,
        asked=True,
    ),
)
