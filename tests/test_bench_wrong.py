"""Whoever gives wrong numbers to the benchmark suite is caught, and not timed."""

from dataclasses import replace

import pytest
import torch
from bench_doubles import PACKED, PROJECTED, SPEC, altered

from bench import verify
from bench.cases import CELLS, Case, Spec
from bench.contenders import BASELINE, OURS, Contender
from bench.jobs import find
from bench.packing import trimmed
from bench.problems import CHUNKS
from bench.sessions import Local, Unfit
from bench.verify import WrongResult, verified


def test_a_stream_that_forgets_or_repeats_is_caught():
    spec = Spec(Case("stream", 1, 2, 4, 5, 1, "nobody", job="step"), "GRU", "inference")

    def forgetful(problem):
        module, calls = torch.nn.GRU(4, 5), iter(range(10**9))
        module.load_state_dict(problem.weights)
        return lambda: module(problem.input[None, next(calls) % CHUNKS])[0][0].detach()

    with pytest.raises(WrongResult, match="output"):
        verified(Contender("forgetful", forgetful), spec)
    right = find("step", "torch.nn")

    def stuck(problem):
        call = right.prepare(problem)
        first = call()
        return lambda: first

    with pytest.raises(WrongResult, match="output"):
        verified(Contender("stuck", stuck), spec)


@pytest.mark.parametrize("name", ["onnxruntime", "OpenVINO"])
@pytest.mark.parametrize("cell", CELLS)
def test_who_ignores_lengths_is_caught(cell, name):
    """Past the end of a row, and where that is cut off, in the final states."""
    runtime, spec = find("packed", name), Spec(PACKED, cell, "inference")
    ignorant = replace(runtime, prepare=lambda p: runtime.prepare(replace(p, lengths=None)))
    with pytest.raises(WrongResult, match="output"):
        verified(ignorant, spec)

    def cut(problem, found):
        return trimmed(problem, found[:1]) + found[1:]

    with pytest.raises(WrongResult, match="h_n"):
        verified(replace(ignorant, read=cut), spec)
    verified(replace(runtime, read=cut), spec)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_padded_batch_is_not_a_packed_one(mode):
    """Its outputs are only right where they are trimmed, and it has no final states."""
    padded, spec = find("packed", "fastrnn padded"), Spec(PACKED, "GRU", mode)
    with pytest.raises(WrongResult, match="output"):
        verified(replace(padded, read=OURS.read), spec)
    with pytest.raises(WrongResult, match="results instead of"):
        verified(replace(padded, lacks=()), spec)


def test_lengths_of_other_rows_are_caught():
    ours = find("packed", "fastrnn")
    shuffled = replace(ours, prepare=lambda p: ours.prepare(replace(p, lengths=p.lengths.flip(0))))
    with pytest.raises(WrongResult):
        verified(shuffled, Spec(PACKED, "LSTM", "training"))


@pytest.mark.parametrize(
    "contender", [OURS, find("layer", "onnxruntime")], ids=lambda one: one.name
)
def test_who_ignores_the_projection_is_caught(contender):
    """Who leaves it out, and who has another one."""

    def without(problem):
        weights = {n: w for n, w in problem.weights.items() if "weight_hr" not in n}
        padded = {
            name: torch.nn.functional.pad(w, (0, 3)) if w.dim() == 2 and w.shape[1] == 2 else w
            for name, w in weights.items()
        }
        spec = replace(problem.spec, case=replace(problem.spec.case, proj_size=0))
        return contender.prepare(replace(problem, spec=spec, weights=padded))

    def altered_weights(problem):
        eye = {name: torch.eye(*w.shape) for name, w in problem.weights.items() if "_hr" in name}
        return contender.prepare(replace(problem, weights=problem.weights | eye))

    spec = Spec(PROJECTED, "LSTM", "inference")
    for prepare, reason in ((without, "shape"), (altered_weights, "off by")):
        with pytest.raises(WrongResult, match=reason):
            verified(replace(contender, prepare=prepare), spec)


WRONG = {
    "every number a little off": lambda found: [one * 1.001 for one in found],
    "one number of the last gradient": lambda found: found[:-1] + [found[-1] + torch.eye(20)[3]],
    "not a number": lambda found: [found[0] * float("nan"), *found[1:]],
    "a missing gradient": lambda found: found[:-1],
    "another shape": lambda found: [found[0].transpose(0, 1), *found[1:]],
    "swapped states": lambda found: [found[0], found[2], found[1], *found[3:]],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_wrong_numbers_are_caught(change):
    with pytest.raises(WrongResult):
        verified(altered(change), SPEC)


def test_wrong_numbers_of_a_second_call_are_caught():
    with pytest.raises(WrongResult, match="output"):
        verified(altered(WRONG["every number a little off"], since_call=1), SPEC)


def test_numbers_that_are_wrong_only_with_all_time_steps_are_caught(monkeypatch):
    monkeypatch.setitem(verify.MOST_FLOPS, "cpu", 1.0)
    late = altered(lambda found: [found[0] * (1 + 0.1 * (found[0].shape[0] > 8)), *found[1:]])
    with pytest.raises(WrongResult, match="output"):
        verified(late, SPEC)
    verified(BASELINE, SPEC)


def test_a_contender_may_lack_only_what_it_says():
    without = altered(lambda found: [found[0], *found[3:]])
    verified(replace(without, lacks=("h_n", "c_n")), SPEC)
    with pytest.raises(WrongResult, match="results instead of"):
        verified(replace(without, lacks=("h_n",)), SPEC)


def test_unfit_says_why():
    def raising(error: Exception) -> Contender:
        def prepare(problem):
            raise error

        return Contender("raising", prepare)

    for contender, reason in {
        raising(ImportError("No module named 'peer'")): "not installed: No module named 'peer'",
        raising(ValueError("bad shape\nand more")): "failed: ValueError: bad shape",
        altered(WRONG["a missing gradient"]): "wrong: ",
    }.items():
        with pytest.raises(Unfit, match=f"^{reason}"):
            Local(contender).open(SPEC)
