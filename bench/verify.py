"""The proof that a contender computes what torch.nn computes, before it is timed."""

import time
from functools import lru_cache
from typing import NamedTuple

import torch

from bench.cases import Spec
from bench.contenders import Call, Contender, flatten
from bench.jobs import baseline
from bench.problems import CHUNKS, Problem, make_problem, torch_dtype
from bench.timing import Clock

Results = list[torch.Tensor]  # what one call computes, in the order of Problem.names

# Largest error of an entry as a fraction of the tensor's largest entry. A gradient of a weight is a
# sum of T * N products, so float32 loses a few digits of its seven, differently in every library.
# Of the others it is what rounding every state to 11 or 8 bits gives, with as much to spare.
TOLERANCE = {
    "float64": 1e-11,
    "float32": 1e-4,
    "tf32": 1e-2,
    "float16": 1e-2,
    "bfloat16": 8e-2,
}
# Beyond this, fewer time steps: a float64 run by torch.nn takes about 0.1 s per 1e9 operations on a
# CPU, and a graphics processor has units for it.
MOST_FLOPS = {"cpu": 6e9, "cuda": 1e12}


class WrongResult(Exception):
    """A contender computed something else than torch.nn did."""


class Verified(NamedTuple):
    """A call that was found right."""

    call: Call
    seconds: float  # that it took at full size, 0 where it was not called
    error: float  # the largest of a result: its root mean square relative to that in float64


@lru_cache(maxsize=2)
def expected(spec: Spec, dtype: str) -> Results:
    """What torch.nn computes from the numbers of `spec` in `dtype`: without cuDNN, so that nothing
    on a GPU is its own witness. Of a stream: the outputs of its chunks, twice around."""
    problem = make_problem(spec).to(spec.device, torch_dtype(dtype))
    reference = baseline(spec.case.job)
    with torch.backends.cudnn.flags(enabled=False):
        return outcome(reference, problem, reference.prepare(problem))


def outcome(contender: Contender, problem: Problem, call: Call) -> Results:
    """The results of one call; of a stream, those of calls that go twice around it."""
    if not problem.spec.case.streams:
        return contender.read(problem, flatten(call()))
    return [torch.stack([flatten(call())[0].clone() for _ in range(2 * CHUNKS)])]


def compare(problem: Problem, results: Results, truth: Results, contender: Contender) -> float:
    """The error as in `Verified`. Raises WrongResult at the first tensor of `results` that is not
    that of `truth`."""
    pairs, errors = zip(problem.names(), truth, strict=True), [0.0]
    due = [(name, right) for name, right in pairs if name not in contender.lacks]
    tolerance = max(TOLERANCE[problem.spec.dtype], contender.tolerance)
    if len(results) != len(due):
        raise WrongResult(f"{len(results)} results instead of {len(due)}")
    for (name, right), ours in zip(due, results, strict=True):
        if ours.shape != right.shape:
            raise WrongResult(f"{name} has shape {tuple(ours.shape)}, not {tuple(right.shape)}")
        off, right = ours.double() - right.double(), right.double()
        error, largest = off.abs().max().item(), right.abs().max().item()
        if not error <= tolerance * largest:  # so that NaN fails
            raise WrongResult(
                f"{name} is off by {error:.1e}, its largest entry being {largest:.1e}"
            )
        errors.append((off.norm() / right.norm()).item() if largest else 0.0)
    return max(errors)


def verified(contender: Contender, spec: Spec, clock: Clock = time.perf_counter) -> Verified:
    """The call to be timed, after it was found right: on a problem of the same sizes against
    float64, twice, and if that had to be one of fewer time steps, on all of them against torch.nn
    in float32 at least, since in the same dtype it may be wrong."""
    short = spec.within(MOST_FLOPS[spec.device])
    problem = make_problem(short)
    call = contender.prepare(problem)
    # A second call may find what the first one left behind; a stream has had many.
    for _ in range(1 if spec.case.streams else 2):
        found = outcome(contender, problem, call)
        error = compare(problem, found, expected(short, "float64"), contender)
    if short == spec:
        return Verified(call, 0.0, error)
    problem = make_problem(spec)
    call = contender.prepare(problem)
    start = clock()
    results = call()
    seconds = clock() - start
    found = contender.read(problem, flatten(results))
    witness = "float64" if spec.dtype == "float64" else "float32"
    compare(problem, found, expected(spec, witness), contender)
    return Verified(call, seconds, error)
