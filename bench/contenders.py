"""Who is timed. A contender is a name and a function from a problem to the call to be timed."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import DTYPES, MODES, Spec
from bench.problems import Problem, sizes

Call = Callable[[], object]
Prepare = Callable[[Problem], Call]


@dataclass(frozen=True)
class Contender:
    """`prepare` does all that a user does once (building, loading weights, exporting, compiling)
    and returns the call that is timed: no argument, results of any nesting of tuples that flattens
    to `Problem.names`, or that `read` makes these of. It raises ImportError where a library is not
    installed."""

    name: str
    prepare: Prepare
    modes: tuple[str, ...] = MODES
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = DTYPES
    fits: Callable[[Spec], bool] = lambda spec: True  # whatever else it needs
    asked: bool = False  # timed only by suites that name it in `extra`, or when asked for
    tolerance: float = 0.0  # of an error, where it is more than that of the dtype: see `verify`
    lacks: tuple[str, ...] = ()  # of Problem.names: what it cannot give
    read: Callable[[Problem, list[Tensor]], list[Tensor]] = lambda problem, found: found
    around: Callable[[], AbstractContextManager] = nullcontext  # entered for each sample
    checkout: Path | None = None  # where the library is imported from, if not from here

    def takes(self, spec: Spec) -> bool:
        return (
            spec.mode in self.modes
            and spec.device in self.devices
            and spec.dtype in self.dtypes
            and self.fits(spec)
        )


def build(library: str, problem: Problem, **options) -> torch.nn.Module:
    """The module of `library` that has torch.nn's names, with the weights of the problem."""
    spec, x = problem.spec, problem.input
    kind = getattr(importlib.import_module(library), spec.cell)
    module = kind(**sizes(spec), **options, dtype=x.dtype, device=x.device)
    module.load_state_dict(problem.weights)
    return module.train(spec.mode != "inference")


def caller(
    problem: Problem, run: Callable[[Tensor], object], parameters: dict[str, Tensor]
) -> Call:
    """The call of `run`, which takes the input and gives the results, in the mode of the spec."""
    mode = problem.spec.mode
    if mode == "inference":

        def infer() -> object:
            with torch.no_grad():
                return run(problem.input)

        return infer
    x = problem.input.detach().requires_grad_()
    if mode == "forward":
        return lambda: run(x)
    inputs = [x, *(parameters[name] for name in problem.weights)]

    def train() -> object:
        results = run(x)
        outputs = tensors(results)[: len(problem.gradients)]
        return results, torch.autograd.grad(outputs, inputs, problem.gradients)

    return train


def module_of(library: str, change: Callable = lambda module: module, **options) -> Prepare:
    """`prepare` of a library that has torch.nn's classes. `change` has the module before it is
    called; `options` go to the constructor."""

    def prepare(problem: Problem) -> Call:
        module = build(library, problem, **options)
        changed = change(module)
        if not options.get("batch_first"):
            return caller(problem, changed, dict(module.named_parameters()))

        def run(x: Tensor) -> object:
            output, state = changed(x.transpose(0, 1))
            return output.transpose(0, 1), state

        return caller(problem, run, dict(module.named_parameters()))

    return prepare


def compiled(module: torch.nn.Module) -> Callable:
    """As torch.compile does it when told to look inside torch.nn's RNNs, which it does not by
    itself. GRU and RNN are unrolled over time, and compile for as long as they have steps."""
    torch._dynamo.config.allow_rnn = True
    return torch.compile(module, fullgraph=True, dynamic=False)


def graph(contender: Contender) -> Contender:
    """The same, captured in a CUDA graph: a call replays it and gives the tensors it wrote."""

    def prepare(problem: Problem) -> Call:
        from bench.cuda import captured

        return captured(contender.prepare(problem))

    name = f"{contender.name} graph"
    return replace(contender, name=name, prepare=prepare, devices=("cuda",), asked=True)


def in_float32(contender: Contender) -> Contender:
    """The same on the numbers of a short dtype, which were rounded to it."""
    return replace(
        contender,
        name=f"{contender.name} float32",
        prepare=lambda problem: contender.prepare(problem.to(problem.spec.device, torch.float32)),
        dtypes=("float16", "bfloat16"),
        asked=True,
    )


def tensors(results: object) -> list[Tensor]:
    """Those of nested tuples and lists, in order; arrays become tensors."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, (tuple, list)):
        return [tensor for part in results for tensor in tensors(part)]
    return [torch.as_tensor(results)]


def flatten(results: object) -> list[Tensor]:
    """The same without the graph."""
    return [tensor.detach() for tensor in tensors(results)]


OURS = Contender("fastrnn", module_of("fastrnn"))
BASELINE = Contender("torch.nn", module_of("torch.nn"))
