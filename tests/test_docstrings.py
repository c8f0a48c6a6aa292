"""Docstrings of what is public: arguments, sources of formulas, and examples that run."""

import doctest
import inspect
import re

import pytest
import torch

import fastrnn
from fastrnn import functional, zoo

PUBLIC = {name: getattr(fastrnn, name) for name in fastrnn.__all__ if name != "functional"}
PUBLIC |= {f"functional.{name}": getattr(functional, name) for name in functional.__all__}
PUBLIC |= {"zoo.zoneout": zoo.zoneout, "zoo.recurrent_dropout": zoo.recurrent_dropout}
PUBLIC |= {"zoo.layer_norm": zoo.layer_norm}
CALLED = PUBLIC.keys() - {"RNNBase", "States", "StepError", "zoo"}
LAYERS = ("GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell")
STEPS = [each.step for each in vars(zoo).values() if isinstance(each, fastrnn.Cell)]


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(name, recwarn):
    torch.manual_seed(0)
    cases = doctest.DocTestFinder(recurse=False).find(
        PUBLIC[name], name, module=False, globs={"torch": torch, "fastrnn": fastrnn}
    )
    assert sum(len(case.examples) for case in cases) > 0
    runner = doctest.DocTestRunner()
    for case in cases:
        runner.run(case)
    assert not runner.failures
    assert not recwarn.list


@pytest.mark.parametrize("name", sorted(CALLED))
def test_every_argument_is_described(name):
    text = inspect.getdoc(PUBLIC[name])
    for parameter in inspect.signature(PUBLIC[name]).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD and not text.count("All other arguments"):
            assert re.search(rf"^ +(\w+, )*{parameter.name}(, \w+)*: ", text, re.M), parameter


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_cells_have_their_formulas_and_shapes(name):
    text = PUBLIC[name].__doc__
    for part in ("Args:", "Shapes of a call", "Parameters", " = tanh(W_i", "Example:"):
        assert part in text, part


@pytest.mark.parametrize("name", LAYERS)
def test_the_site_shows_products_and_lists(name):
    """Markdown would make italics of the asterisks in "(4*H, D*P)", and a paragraph of lines."""
    pytest.importorskip("griffe", reason="what builds the site is not installed")
    from tools import docstrings

    shown = docstrings.markdown(inspect.getdoc(PUBLIC[name]))
    assert not re.search(r"[^\\ ]\*[A-Z]", shown)
    assert "\nExamples:\n    >>> " in shown  # of the singular it makes quotations
    assert re.search(r"^- \*\*weight_hh\w*\*\* – ", shown, re.M)
    assert re.search(r"^    h' = ", shown, re.M) or "      h' = o * tanh(c')" in shown


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_step_of_the_zoo_has_its_formula_and_paper(step):
    assert re.search(r"\d{4}, arXiv\s+\d{4}\.\d{4,5}", step.__doc__)
    assert re.search(r"^    .* = ", step.__doc__, re.M)
