"""The published cells that the benchmark suite times, and what libraries have of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import published
from bench.cases import MODES, PUBLISHED, Case, Spec
from bench.jobs import JOBS, entrants, find
from bench.problems import make_problem
from bench.published import OF_ZOO, library
from bench.verify import WrongResult, verified

CASE = Case("zoo", 5, 3, 7, 8, 1, "nobody", job="published", cells=tuple(PUBLISHED))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", PUBLISHED)
def test_ours_is_the_loop(cell, mode, dtype):
    """The loop is written from the formulas, ours in the zoo."""
    for one in OF_ZOO[:2]:
        verified(one, Spec(CASE, cell, mode, dtype))


def test_who_takes_part():
    def names(cell: str, **changes) -> list[str]:
        return [one.name for one in entrants(Spec(replace(CASE, **changes), cell, "training"))]

    everybody = ["fastrnn", "torch.nn loop"]
    assert names("LiGRU", T=100) == [*everybody, "torchrecurrent"]
    assert names("CfC", T=100) == [*everybody, "ncps"]
    assert names("LayerNormLSTM", T=100) == everybody
    assert names("LayerNormLSTM", T=8) == [*everybody, "torch.nn loop, compiled"]
    assert JOBS["published"] is OF_ZOO


@pytest.mark.parametrize("cell", ["PeepholeLSTM", "LiGRU", "UGRNN"])
def test_weights_of_torchrecurrent_are_ours_in_its_order(cell):
    weights = make_problem(Spec(CASE, cell, "training")).weights
    theirs = published.to_torchrecurrent(cell, weights)
    assert len(theirs) == len(weights) - 2 * (cell == "PeepholeLSTM")
    back = published.of_torchrecurrent(cell, theirs)
    assert list(back) == list(weights) or cell == "PeepholeLSTM"
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


class Joined(torch.nn.Module):
    """A CfC that holds its weights as ncps does."""

    def __init__(self):
        super().__init__()
        self.rnn_cell = torch.nn.ModuleDict(
            {name: torch.nn.Linear(7 + 8, 8) for name in published.NCPS}
        )

    def forward(self, x: torch.Tensor):
        h = x.new_zeros(x.size(1), 8)
        outputs = []
        for x_t in x:
            whole = torch.cat((x_t, h), 1)
            f1, f2, a, b = (self.rnn_cell[name](whole) for name in published.NCPS)
            t = torch.sigmoid(a + b)
            h = f1.tanh() * (1 - t) + t * f2.tanh()
            outputs.append(h)
        return torch.stack(outputs), h


@pytest.mark.parametrize("mode", MODES)
def test_a_library_with_other_weights_is_compared_in_ours(mode):
    """Its results, and gradients of its weights as those of ours."""
    spec = Spec(CASE, "CfC", mode)
    to, of = published.to_ncps, published.of_ncps
    verified(library("right", lambda spec: Joined(), to, of, "CfC"), spec)

    def swapped(cell, weights):
        return to(cell, {k: w.roll(8, 0) for k, w in weights.items()})

    with pytest.raises(WrongResult, match="output"):
        verified(library("wrong", lambda spec: Joined(), swapped, of, "CfC"), spec)

    def halved(cell, gradients):
        return of(cell, gradients) | {"bias_hh_l0": gradients["rnn_cell.ff1.bias"].repeat(4)}

    wrong = library("wrong", lambda spec: Joined(), to, halved, "CfC")
    if mode == "training":
        with pytest.raises(WrongResult, match="gradient of bias_hh_l0"):
            verified(wrong, spec)
    else:
        verified(wrong, spec)


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    spec = Spec(CASE, "LiGRU", "inference")
    with pytest.raises(ImportError, match="needs a C\\+\\+ compiler"):
        verified(find("published", "torch.nn loop, compiled"), spec)
    verified(find("published", "fastrnn"), spec)
