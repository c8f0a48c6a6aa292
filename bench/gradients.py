"""Gradients of other kinds than those of a loss: of a penalty on a gradient, by torch.func, and of
each sample. All are jobs of training."""

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from bench.contenders import Call, Contender, Prepare, build
from bench.problems import Problem


def learned(module: torch.nn.Module, problem: Problem) -> dict[str, Tensor]:
    """The parameters in the order of the problem's weights."""
    parameters = dict(module.named_parameters())
    return {name: parameters[name] for name in problem.weights}


# --- The gradient of a loss by the input, and by no weight --------------------------------------


def of_input(library: str, problem: Problem) -> Call:
    module, (towards,) = build(library, problem), problem.gradients
    x = problem.input.detach().requires_grad_()

    def train() -> object:
        results = module(x)
        return results, torch.autograd.grad((results[0] * towards).sum(), x)

    return train


# --- Penalty: the square of the loss's gradient by the input, alone or beside the loss ---------


def penalised(library: str, beside: bool, problem: Problem) -> Call:
    module, (towards,) = build(library, problem), problem.gradients
    x = problem.input.detach().requires_grad_()
    inputs = [x, *learned(module, problem).values()]

    def train() -> object:
        results = module(x)
        loss = (results[0] * towards).sum()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        penalty = slope.square().sum()
        return results, torch.autograd.grad(penalty + loss if beside else penalty, inputs)

    return train


def both(prepare: Prepare, *args: object) -> tuple[Contender, Contender]:
    """Ours and torch.nn's, which call the same functions."""
    return tuple(Contender(one, partial(prepare, one, *args)) for one in ("fastrnn", "torch.nn"))


INPUT_GRADIENT = both(of_input)
PENALTY, LOSS_AND_PENALTY = both(penalised, False), both(penalised, True)


# --- The same gradients as in training, by torch.func.grad -------------------------------------


def functional(library: str, problem: Problem) -> Call:
    module, (towards,) = build(library, problem), problem.gradients
    parameters = {k: w.detach() for k, w in learned(module, problem).items()}

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, object]:
        results = functional_call(module, parameters, (x,))
        return (results[0] * towards).sum(), results

    gradients = grad(loss, argnums=(0, 1), has_aux=True)

    def train() -> object:
        (of_x, of_parameters), results = gradients(problem.input, parameters)
        return results, of_x, list(of_parameters.values())

    return train


FUNC_GRAD = both(functional)


# --- Per sample: the gradients of each row of the batch ----------------------------------------


def mapped(library: str, problem: Problem) -> Call:
    """By `vmap` of `grad`."""
    module, (towards,) = build(library, problem), problem.gradients
    parameters = {k: w.detach() for k, w in learned(module, problem).items()}

    def loss(x: Tensor, parameters: dict[str, Tensor], towards: Tensor) -> Tensor:
        output = functional_call(module, parameters, (x.unsqueeze(1),))[0]
        return (output.squeeze(1) * towards).sum()

    gradients = vmap(grad(loss, argnums=(0, 1)), in_dims=(1, None, 1))

    def train() -> object:
        of_x, of_parameters = gradients(problem.input, parameters, towards)
        return of_x, list(of_parameters.values())

    return train


def row_by_row(library: str, problem: Problem) -> Call:
    """By a backward pass for each."""
    module, (towards,) = build(library, problem), problem.gradients
    parameters = list(learned(module, problem).values())

    def train() -> object:
        found = []
        for x, toward in zip(problem.input.split(1, 1), towards.split(1, 1), strict=True):
            x = x.detach().requires_grad_()
            of_x, *others = torch.autograd.grad(module(x)[0], [x, *parameters], toward)
            found.append((of_x.squeeze(1), *others))
        return [torch.stack(each) for each in zip(*found, strict=True)]

    return train


PER_SAMPLE = (
    Contender("fastrnn", partial(mapped, "fastrnn")),
    Contender("torch.nn loop", partial(row_by_row, "torch.nn")),
    # Its GRU and RNN raise.
    Contender("torch.nn", partial(mapped, "torch.nn"), fits=lambda spec: spec.cell == "LSTM"),
    Contender("fastrnn loop", partial(row_by_row, "fastrnn")),
)
