"""What every contender is given, and the right answer to it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.cases import PUBLISHED, RAGGED, STEPS, Spec

CHUNKS = 8  # of a stream: a call takes the next one, and the first again after the last


@dataclass(frozen=True)
class Problem:
    """Numbers for one spec. `weights` is the state_dict of the torch.nn module, or of one of
    `fastrnn.Recurrent`."""

    spec: Spec
    input: Tensor  # (T, N, input_size); (N, input_size) for a cell; (CHUNKS*T, N, ...) of a stream
    weights: dict[str, Tensor]
    gradients: tuple[Tensor, ...]  # of the first results, in the order of `names`
    reset: Tensor | None = None  # (T, N) bool: the state of that row is zero before that step
    lengths: Tensor | None = None  # (N,) int64

    def names(self) -> list[str]:
        """The results that a call has to give: with gradients in training, of the input and of
        every parameter in the order of `weights`, or of the input alone. A stream gives the output
        alone, and samples give gradients alone, with the sample as their first dimension."""
        spec = self.spec
        derived = ["input", *([] if spec.case.job == "input gradient" else self.weights)]
        gradients = ["gradient of " + name for name in derived]
        if spec.case.streams:
            return ["output"]
        if spec.case.job == "per sample":
            return gradients
        names = ["h_n"] if spec.cell in STEPS else ["output", "h_n"]
        names += ["c_n"] if "LSTM" in spec.cell else []
        if spec.case.job == "states":
            names.insert(1, "states")
        return names + (gradients if spec.mode == "training" else [])

    def chunks(self) -> tuple[Tensor, ...]:
        """Of a stream, what its calls take: frames (N, input_size), or T of them."""
        case = self.spec.case
        return self.input.split(case.T) if case.job == "chunk" else self.input.unbind()

    def to(self, device: str, dtype: torch.dtype) -> "Problem":
        return replace(
            self,
            input=self.input.to(device, dtype),
            weights={name: value.to(device, dtype) for name, value in self.weights.items()},
            gradients=tuple(gradient.to(device, dtype) for gradient in self.gradients),
            reset=None if self.reset is None else self.reset.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
        )


def torch_dtype(name: str) -> torch.dtype:
    """Of the tensors, from a name in cases.DTYPES."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


def sizes(spec: Spec) -> dict[str, object]:
    """The arguments of the module's constructor."""
    case = spec.case
    found = {"input_size": case.input_size, "hidden_size": case.hidden_size}
    if spec.cell in STEPS:
        return found
    found |= {"num_layers": case.layers, "bidirectional": case.bidirectional}
    return found | ({"proj_size": case.proj_size} if case.proj_size else {})


def drawn(spec: Spec) -> dict[str, Tensor]:
    """Weights as a module begins with."""
    if spec.cell not in PUBLISHED:
        return getattr(nn, spec.cell)(**sizes(spec)).state_dict()
    case, published = spec.case, PUBLISHED[spec.cell]
    rows, H = published.gates * case.hidden_size, case.hidden_size
    shapes = {"weight_ih": (rows, case.input_size), "weight_hh": (rows, H)}
    if published.bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    shapes |= dict.fromkeys(published.params, (H,))
    bound = H**-0.5
    return {f"{name}_l0": torch.empty(s).uniform_(-bound, bound) for name, s in shapes.items()}


def make_problem(spec: Spec) -> Problem:
    """The same numbers for a case and cell, whatever the mode, dtype, threads and device: drawn in
    float32 on the CPU, then rounded to `dtype`."""
    case = spec.case
    steps = case.T * (CHUNKS if case.streams else 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = drawn(spec)
        x = torch.randn(steps, case.N, case.input_size)
        shape = steps, case.N, case.directions * case.output_size
        gradients = [torch.randn(shape) for _ in range(2 if case.job == "states" else 1)]
        episodes = torch.rand(steps, case.N) < 2 / steps  # two ends in a row of a rollout
    if case.job == "last":
        gradients = [gradient[-1] for gradient in gradients]
    if spec.cell in STEPS:
        x, gradients = x.squeeze(0), [gradient.squeeze(0) for gradient in gradients]
    lengths = torch.tensor(case.lengths()) if case.job in RAGGED else None
    if lengths is not None:  # what is past the end of a row is nobody's result
        valid = torch.arange(steps)[:, None] < lengths
        gradients = [gradient * valid[:, :, None] for gradient in gradients]
    problem = Problem(
        spec,
        x,
        weights,
        tuple(gradients),
        episodes if case.job == "reset" else None,
        lengths,
    )
    return problem.to(spec.device, torch_dtype(spec.dtype))
