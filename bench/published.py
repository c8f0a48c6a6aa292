"""Published cells, which torch.nn does not have: those of `fastrnn.zoo`, a loop of PyTorch that is
written here from their formulas, and the libraries that have them."""

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from bench.cases import PUBLISHED, Spec
from bench.contenders import Call, Contender, caller
from bench.problems import Problem

Weights = dict[str, Tensor]


def recurrent(problem: Problem) -> Call:
    library = importlib.import_module("fastrnn")
    spec, x = problem.spec, problem.input
    case, cell = spec.case, getattr(library.zoo, spec.cell)
    module = library.Recurrent(
        cell,
        case.input_size,
        case.hidden_size,
        bias=PUBLISHED[spec.cell].bias,
        dtype=x.dtype,
        device=x.device,
    )
    module.load_state_dict(problem.weights)
    module.train(spec.mode != "inference")
    inputs = dict.fromkeys(cell.inputs, 1.0) or None  # a unit of time between steps

    def run(x: Tensor):
        output, state = module(x, inputs=inputs)
        return output, *(state if isinstance(state, tuple) else (state,))

    return caller(problem, run, dict(module.named_parameters()))


# Steps from x and u, the products with the input and with h, all gates beside each other.


def peephole_lstm(x, u, h, c, p):
    i, f, g, o = (x + u).chunk(4, -1)
    i, f = torch.sigmoid(i + p["w_i"] * c), torch.sigmoid(f + p["w_f"] * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p["w_o"] * c) * torch.tanh(c), c


def layer_norm_lstm(x, u, h, c, p):
    gain_x, gain_u, bias = (torch.cat([p[f"{of}_{gate}"] for gate in "ifgo"]) for of in "xub")
    z = layer_norm(x, x.shape[-1:], gain_x) + layer_norm(u, u.shape[-1:], gain_u, bias)
    i, f, g, o = z.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(layer_norm(c, c.shape[-1:], p["w_c"], p["b_c"])), c


def li_gru(x, u, h, c, p):
    z, n = (x + u).chunk(2, -1)
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.relu(n), c


def ugrnn(x, u, h, c, p):
    z, n = (x + u).chunk(2, -1)
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.tanh(n), c


def cfc(x, u, h, c, p):
    f1, f2, a, b = (x + u).chunk(4, -1)
    t = torch.sigmoid(a + b)
    return (1 - t) * torch.tanh(f1) + t * torch.tanh(f2), c


STEPS = {
    "PeepholeLSTM": peephole_lstm,
    "LayerNormLSTM": layer_norm_lstm,
    "LiGRU": li_gru,
    "UGRNN": ugrnn,
    "CfC": cfc,
}


def loop(problem: Problem, change: Callable = lambda function: function) -> Call:
    """A step after the other in plain PyTorch, the input's product of all steps at once. `change`
    has the function before it is called."""
    spec = problem.spec
    step, published = STEPS[spec.cell], PUBLISHED[spec.cell]
    parameters = {k: w.clone().requires_grad_() for k, w in problem.weights.items()}

    def run(x: Tensor):
        w_ih, w_hh, *rest = parameters.values()
        b_ih, b_hh = rest[:2] if published.bias else (None, None)
        p = dict(zip(published.params, rest[2 * published.bias :], strict=True))
        h = c = x.new_zeros(x.shape[1], spec.case.hidden_size)
        outputs = []
        for part in linear(x, w_ih, b_ih).unbind():
            h, c = step(part, linear(h, w_hh, b_hh), h, c, p)
            outputs.append(h)
        states = (h[None], c[None]) if spec.cell.endswith("LSTM") else (h[None],)
        return torch.stack(outputs), *states

    return caller(problem, change(run), parameters)


def compiled(function: Callable) -> Callable:
    """Raises ImportError where torch.compile finds no compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise ImportError("torch.compile needs a C++ compiler")
    return torch.compile(function, fullgraph=True, dynamic=False)


def library(
    name: str, make: Callable[[Spec], torch.nn.Module], of: Callable, back: Callable, *cells: str
) -> Contender:
    """A library with a layer of its own. `of(cell, weights)` are its weights by name, made of ours;
    `back(cell, gradients)` are the gradients of ours, made of those of its weights."""

    def prepare(problem: Problem) -> Call:
        weights, module = of(problem.spec.cell, problem.weights), make(problem.spec)
        module.to(problem.input.dtype).load_state_dict(weights)
        module.train(problem.spec.mode != "inference")

        def run(x: Tensor):
            output, state = module(x)
            states = state if isinstance(state, tuple) else (state,)
            return output, *(s if s.dim() == 3 else s[None] for s in states)

        theirs = replace(problem, weights=weights)
        return caller(theirs, run, dict(module.named_parameters()))

    def read(problem: Problem, found: list[Tensor]) -> list[Tensor]:
        if problem.spec.mode != "training":
            return found
        names = list(of(problem.spec.cell, problem.weights))
        gradients = dict(zip(names, found[-len(names) :], strict=True))
        ours = back(problem.spec.cell, gradients)
        return [*found[: -len(names)], *(ours[name] for name in problem.weights)]

    return Contender(
        name,
        prepare,
        devices=("cpu",),
        dtypes=("float64", "float32"),
        fits=lambda spec: spec.cell in cells,
        read=read,
    )


PEEPHOLES = ("w_i_l0", "w_f_l0", "w_o_l0")


def turned(cell: str, weight: Tensor) -> Tensor:
    """The gates of torchrecurrent in the order of ours, or back."""
    return torch.cat(weight.chunk(2)[::-1]) if cell == "UGRNN" else weight


def to_torchrecurrent(cell: str, weights: Weights) -> Weights:
    found = {
        f"cells.0.{name.removesuffix('_l0')}": turned(cell, weight)
        for name, weight in weights.items()
        if name not in PEEPHOLES
    }
    if cell == "PeepholeLSTM":
        found["cells.0.weight_ph"] = torch.cat([weights[name] for name in PEEPHOLES])
    return found


def of_torchrecurrent(cell: str, gradients: Weights) -> Weights:
    found = {}
    for name, gradient in gradients.items():
        name = name.removeprefix("cells.0.")
        if name == "weight_ph":
            found |= zip(PEEPHOLES, gradient.chunk(3), strict=True)
        else:
            found[f"{name}_l0"] = turned(cell, gradient)
    return found


def torchrecurrent(spec: Spec) -> torch.nn.Module:
    kind = getattr(importlib.import_module("torchrecurrent"), spec.cell)
    return kind(spec.case.input_size, spec.case.hidden_size)


# https://github.com/mlech26l/ncps: one weight for x and h, and one bias.
NCPS = ("ff1", "ff2", "time_a", "time_b")


def to_ncps(cell: str, weights: Weights) -> Weights:
    w_ih, w_hh, b_ih, b_hh = (weight.chunk(4) for weight in weights.values())
    found = {}
    for k, name in enumerate(NCPS):
        found[f"rnn_cell.{name}.weight"] = torch.cat((w_ih[k], w_hh[k]), 1)
        found[f"rnn_cell.{name}.bias"] = b_ih[k] + b_hh[k]
    return found


def of_ncps(cell: str, gradients: Weights) -> Weights:
    whole = torch.cat([gradients[f"rnn_cell.{name}.weight"] for name in NCPS])
    bias = torch.cat([gradients[f"rnn_cell.{name}.bias"] for name in NCPS])
    H = len(bias) // 4
    w_ih, w_hh = whole.split((whole.size(1) - H, H), 1)
    return {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh, "bias_ih_l0": bias, "bias_hh_l0": bias}


def ncps(spec: Spec) -> torch.nn.Module:
    kind = importlib.import_module("ncps.torch").CfC
    case = spec.case
    return kind(case.input_size, case.hidden_size, backbone_layers=0, batch_first=False)


OF_ZOO = (
    Contender("fastrnn", recurrent),
    Contender("torch.nn loop", loop),
    library(
        "torchrecurrent",
        torchrecurrent,
        to_torchrecurrent,
        of_torchrecurrent,
        "PeepholeLSTM", "LiGRU", "UGRNN",
    ),
    library("ncps", ncps, to_ncps, of_ncps, "CfC"),
    Contender(
        "torch.nn loop, compiled",
        partial(loop, change=compiled),
        # The compiler unrolls it: 100 steps take minutes.
        fits=lambda spec: spec.case.T <= 8,
    ),
)  # fmt: skip
