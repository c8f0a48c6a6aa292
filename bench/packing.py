"""Rows that end early, as a PackedSequence, and what padding costs instead."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bench.cases import Spec
from bench.contenders import Call, Contender, Prepare, build, caller
from bench.problems import Problem


def pack(problem: Problem, x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, problem.lengths.cpu(), enforce_sorted=False)


def packed(library: str) -> Prepare:
    """`prepare` of a library that has torch.nn's classes. Packing is not part of the call."""

    def prepare(problem: Problem) -> Call:
        module, rows = build(library, problem), pack(problem, problem.input)
        gradient = pack(problem, problem.gradients[0]).data
        ready = replace(problem, input=rows.data, gradients=(gradient,))

        def run(x: Tensor) -> object:
            output, state = module(rows._replace(data=x))
            return output.data, state

        return caller(ready, run, dict(module.named_parameters()))

    return prepare


def unpacked(problem: Problem, found: list[Tensor]) -> list[Tensor]:
    """What is packed in the results of `packed`, padded with zeros."""
    rows, steps = pack(problem, problem.input), len(problem.input)
    return [
        pad_packed_sequence(rows._replace(data=one), total_length=steps)[0]
        if name in ("output", "gradient of input")
        else one
        for name, one in zip(problem.names(), found, strict=True)
    ]


def padded(library: str) -> Prepare:
    """The padded batch, as if all rows were full: the right outputs before the end of a row, whose
    gradients are right as well, but no final states."""

    def prepare(problem: Problem) -> Call:
        module = build(library, problem)
        return caller(problem, lambda x: module(x)[0], dict(module.named_parameters()))

    return prepare


def trimmed(problem: Problem, found: list[Tensor]) -> list[Tensor]:
    """The results of `padded`, whose outputs past the end of a row are nobody's."""
    output, *gradients = found
    valid = torch.arange(len(output), device=output.device)[:, None] < problem.lengths
    return [output * valid[:, :, None], *gradients]


def one_way(spec: Spec) -> bool:
    return not spec.case.bidirectional


PACKED = (
    Contender("fastrnn", packed("fastrnn"), read=unpacked),
    Contender("torch.nn", packed("torch.nn"), read=unpacked),
)
PADDED = Contender(
    "fastrnn padded",
    padded("fastrnn"),
    fits=one_way,
    asked=True,
    lacks=("h_n", "c_n"),
    read=trimmed,
)
