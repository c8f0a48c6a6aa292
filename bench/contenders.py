"""Who is timed, and the proof that a contender computes what torch.nn computes."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from bench.cases import MODES, STEPS, Spec
from bench.timing import Clock

Results = list[Tensor]  # what one call computes, in the order of Problem.names


@dataclass(frozen=True)
class Problem:
    """What every contender is given. `weights` is the state_dict of the torch.nn module; the
    gradient of the output is there in training."""

    spec: Spec
    input: Tensor  # (T, N, input_size), without T for a cell, and so is grad_output
    weights: dict[str, Tensor]
    grad_output: Tensor  # (T, N, hidden_size)

    def names(self) -> list[str]:
        """The results that a call has to give: with gradients in training, of the input and of
        every parameter in the order of `weights`."""
        names = ["h_n"] if self.spec.cell in STEPS else ["output", "h_n"]
        names += ["c_n"] if self.spec.cell.startswith("LSTM") else []
        if self.spec.mode == "training":
            names += ["gradient of " + name for name in ("input", *self.weights)]
        return names


@dataclass(frozen=True)
class Contender:
    """`prepare` does all that a user does once (building, loading weights, exporting, compiling)
    and returns the call that is timed: no argument, results of any nesting of tuples that flattens
    to `Problem.names`. It raises ImportError where a library is not installed."""

    name: str
    prepare: Callable[[Problem], Callable[[], object]]
    modes: tuple[str, ...] = MODES


def sizes(spec: Spec) -> tuple[int, ...]:
    """The positional arguments of the module's constructor."""
    case = spec.case
    layers = () if spec.cell in STEPS else (case.layers,)
    return case.input_size, case.hidden_size, *layers


def module_of(library: str) -> Callable[[Problem], Callable[[], object]]:
    """`prepare` of a library that has torch.nn's classes."""

    def prepare(problem: Problem) -> Callable[[], object]:
        spec = problem.spec
        build = getattr(importlib.import_module(library), spec.cell)
        module = build(*sizes(spec), dtype=problem.input.dtype)
        module.load_state_dict(problem.weights)
        if spec.mode == "inference":
            module.eval()

            def infer() -> object:
                with torch.no_grad():
                    return module(problem.input)

            return infer

        x = problem.input.detach().requires_grad_()
        parameters = [module.get_parameter(name) for name in problem.weights]

        def train() -> object:
            results = module(x)
            output = results if isinstance(results, Tensor) else results[0]
            return results, torch.autograd.grad(output, [x, *parameters], problem.grad_output)

        return train

    return prepare


OURS = Contender("fastrnn", module_of("fastrnn"))
BASELINE = Contender("torch.nn", module_of("torch.nn"))
CONTENDERS = (OURS, BASELINE)


def make_problem(spec: Spec) -> Problem:
    """The same numbers for a case and cell, whatever the mode, dtype and threads: drawn in
    float32."""
    case = spec.case
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(nn, spec.cell)(*sizes(spec))
        x = torch.randn(case.T, case.N, case.input_size)
        grad_output = torch.randn(case.T, case.N, case.hidden_size)
    if spec.cell in STEPS:
        x, grad_output = x.squeeze(0), grad_output.squeeze(0)
    dtype = getattr(torch, spec.dtype)
    weights = {name: value.to(dtype) for name, value in module.state_dict().items()}
    return Problem(spec, x.to(dtype), weights, grad_output.to(dtype))


def flatten(results: object) -> Results:
    """The tensors of nested tuples and lists, in order."""
    if isinstance(results, Tensor):
        return [results.detach()]
    return [tensor for part in results for tensor in flatten(part)]


# --- Verification -----------------------------------------------------------------------------

# Largest error of an entry as a fraction of the tensor's largest entry. A gradient of a weight is a
# sum of T * N products, so float32 loses a few digits of its seven, differently in every library.
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
# A float64 run by torch.nn takes about 0.1 s per 1e9 operations: beyond this, fewer time steps.
MOST_FLOPS = 6e9


class WrongResult(Exception):
    """A contender computed something else than torch.nn did."""


@lru_cache(maxsize=2)
def expected(spec: Spec, dtype: str) -> Results:
    """What torch.nn computes from the numbers of `spec`, in `dtype`."""
    problem = make_problem(spec)
    wide = getattr(torch, dtype)
    problem = Problem(
        spec,
        problem.input.to(wide),
        {name: value.to(wide) for name, value in problem.weights.items()},
        problem.grad_output.to(wide),
    )
    return flatten(BASELINE.prepare(problem)())


def compare(problem: Problem, results: object, truth: Results) -> None:
    """Raise WrongResult at the first tensor of `results` that is not that of `truth`."""
    names, got = problem.names(), flatten(results)
    if len(got) != len(names):
        raise WrongResult(f"{len(got)} results instead of {len(names)}")
    for name, ours, right in zip(names, got, truth, strict=True):
        if ours.shape != right.shape:
            raise WrongResult(f"{name} has shape {tuple(ours.shape)}, not {tuple(right.shape)}")
        error = (ours.double() - right.double()).abs().max().item()
        largest = right.double().abs().max().item()
        if not error <= TOLERANCE[problem.spec.dtype] * largest:  # so that NaN fails
            raise WrongResult(
                f"{name} is off by {error:.1e}, its largest entry being {largest:.1e}"
            )


def verified(
    contender: Contender, spec: Spec, clock: Clock = time.perf_counter
) -> tuple[Callable[[], object], float]:
    """The call to be timed, after it was found right: on a problem of the same sizes against
    float64, twice, and if that had to be one of fewer time steps, on all of them against torch.nn
    in the same dtype; with the seconds that this call took, or 0 where it was not needed."""
    short = spec.within(MOST_FLOPS)
    problem = make_problem(short)
    call = contender.prepare(problem)
    for _ in range(2):  # a second call may find what the first one left behind
        compare(problem, call(), expected(short, "float64"))
    if short == spec:
        return call, 0.0
    problem = make_problem(spec)
    call = contender.prepare(problem)
    start = clock()
    found = call()
    seconds = clock() - start
    compare(problem, found, expected(spec, spec.dtype))
    return call, seconds
