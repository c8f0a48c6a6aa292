"""The cells of the zoo against loops over time, written from the formulas of the papers."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from conftest import assert_matches
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo_formulas import FORMULAS, States, squash

from fastrnn import Cell, Recurrent, zoo

CELLS = {name: cell for name in zoo.__all__ if isinstance(cell := getattr(zoo, name), Cell)}


@dataclass
class Layer:
    """A layer of the zoo in float64, with what a call of it takes."""

    name: str
    T: int
    N: int
    H: int
    bias: bool = True
    heads: int = 1
    inputs: States = field(default_factory=dict)

    def __post_init__(self):
        self.cell, I = CELLS[self.name], 3
        # Gains of one and biases of zero would hide which is which.
        options = {"bias": self.bias, "heads": self.heads, "dtype": torch.float64}
        self.module = Recurrent(self.cell, I, self.H, **options)
        for name in self.cell.params:
            torch.nn.init.uniform_(getattr(self.module, f"{name}_l0"), 0.2, 1.2)
        self.x = torch.randn(self.T, self.N, I, dtype=torch.float64, requires_grad=True)
        self.state = {
            k: torch.rand(1, self.N, self.H, dtype=torch.float64, requires_grad=True)
            for k in self.cell.states
        }
        for k in self.cell.inputs:
            values = torch.rand(self.T, self.N, self.H, dtype=torch.float64)
            self.inputs[k] = values.round() if "keep" in k or k == "mask" else values
            self.inputs[k].requires_grad_()

    def leaves(self) -> dict[str, Tensor]:
        return {
            "x": self.x,
            **self.state,
            **self.inputs,
            **dict(self.module.named_parameters()),
        }

    def call(self, **features) -> list[Tensor]:
        """The output and the final states."""
        hx = tuple(self.state.values())
        hx = hx if len(hx) > 1 else hx[0]
        output, state = self.module(self.x, hx, inputs=self.inputs or None, **features)
        return [output, *(state if isinstance(state, tuple) else [state])]

    def product(self, h: Tensor) -> tuple[Tensor, ...]:
        """That of weight_hh with a plane, for each gate."""
        # Of each gate, head k has the rows of its own units and sees these alone.
        U = self.module.weight_hh_l0.view(-1, self.heads, *[self.H // self.heads] * 2)
        u = torch.einsum("gkij,nkj->ngki", U, h.view(self.N, self.heads, -1)).flatten(1)
        return (u + getattr(self.module, "bias_hh_l0", 0)).split(self.H, -1)

    def loop(self, lengths: Tensor | None = None, reset: Tensor | None = None) -> list[Tensor]:
        """What `call` should give."""
        module, cell, formula = self.module, self.cell, FORMULAS[self.name]
        W, U = module.weight_ih_l0, getattr(module, "weight_hh_l0", None)
        learned = {k: getattr(module, f"{k}_l0") for k in cell.params}
        states, outputs = {k: v[0] for k, v in self.state.items()}, []
        for t in range(self.T):
            if reset is not None:
                states = {k: v * ~reset[t].unsqueeze(-1) for k, v in states.items()}
            x = self.x[t] @ W.T + getattr(module, "bias_ih_l0", 0)
            now = learned | {k: v[t] for k, v in self.inputs.items()}
            u = ()
            if U is not None:
                u = self.product(states[cell.recurrent])
                first = len(u) - sum(gate.of_w for gate in cell.names.gates)
                u, now["product"] = u[:first], lambda v, first=first: self.product(v)[first:]
            new = formula(x.split(self.H, -1), u, states, now)
            runs = torch.ones(self.N) if lengths is None else t < lengths
            runs = runs.bool().unsqueeze(-1)
            states = {k: torch.where(runs, new[k], states[k]) for k in cell.states}
            outputs.append(states[cell.output] * runs)
        return [torch.stack(outputs), *(v.unsqueeze(0) for v in states.values())]

    def check(self, **features) -> None:
        """Results and all gradients are those of the loop."""
        leaves = self.leaves()
        actual, expected = self.call(**features), self.loop(**features)
        weights = [torch.randn_like(each) for each in expected]
        grads = []
        for results in (actual, expected):
            loss = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
            grads.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        for name, a, e in zip(("output", *self.cell.states), actual, expected, strict=True):
            assert_matches(a, e, name)
        for name, a, e in zip(leaves, *grads, strict=True):
            assert_matches(a, e, f"gradient of {name}")


def test_every_cell_has_a_formula_and_a_docstring():
    assert FORMULAS.keys() == CELLS.keys()
    for name, cell in CELLS.items():
        assert cell.name == name
        step = getattr(zoo, cell.step.__name__)
        assert step is cell.step
        text = inspect.getdoc(step)
        assert "arXiv" in text and "h' = " in text, name
        lines = inspect.getsource(step).partition(text.splitlines()[-1].strip())[2].splitlines()
        assert len(lines) < 16, f"{name} is long"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_results_and_gradients(name, bias):
    for T, N, H in ((6, 3, 13), (5, 1, 40), (2, 9, 1)):
        Layer(name, T, N, H, bias).check()


@pytest.mark.parametrize(("H", "heads"), [(12, 3), (128, 2)])
def test_heads_of_s_lstm(H, heads):
    Layer("SLSTM", 5, 3, H, heads=heads).check()


@pytest.mark.parametrize("name", CELLS)
def test_lengths(name):
    lengths = torch.tensor([6, 0, 3, 1, 6])
    Layer(name, 6, 5, 10).check(lengths=lengths)


@pytest.mark.parametrize("name", CELLS)
def test_reset(name):
    Layer(name, 7, 5, 10).check(reset=torch.rand(7, 5) < 0.3)


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_pickled_and_called_without_a_state(name):
    cell = CELLS[name]
    assert pickle.loads(pickle.dumps(cell)) == cell
    layer = Layer(name, 4, 2, 5)
    module = pickle.loads(pickle.dumps(layer.module))
    inputs = {k: v.detach() for k, v in layer.inputs.items()}
    for state in layer.state.values():
        state.detach().zero_()
    assert_matches(module(layer.x, inputs=inputs or None)[0], layer.loop()[0])


def test_gru_d_decays_by_the_gap_before_a_step():
    """With decays moved by a step, the cell is the paper's, which decays before each step."""
    layer = Layer("GRUD", 6, 4, 9)
    rate = torch.nn.Linear(3, 9, dtype=torch.float64)
    gaps = torch.rand(6, 4, 3, dtype=torch.float64)
    gamma = torch.exp(-torch.relu(rate(gaps)))
    decay = torch.cat([gamma[1:], torch.ones_like(gamma[:1])])
    output, _ = layer.module(layer.x, inputs={"decay": decay})
    h, outputs, module = torch.zeros(4, 9, dtype=torch.float64), [], layer.module
    for t in range(6):
        h = gamma[t] * h
        x = (layer.x[t] @ module.weight_ih_l0.T + module.bias_ih_l0).split(9, -1)
        u = (h @ module.weight_hh_l0.T + module.bias_hh_l0).split(9, -1)
        z, reset = squash(x[1] + u[1]), squash(x[0] + u[0]) * h
        n = (reset @ module.weight_hh_l0.T + module.bias_hh_l0)[:, 18:]
        h = (1 - z) * h + z * torch.tanh(x[2] + n)
        outputs.append(h)
    expected = torch.stack(outputs)
    assert_matches(output, expected)
    learned = [*rate.parameters(), *module.parameters()]
    grads = [
        torch.autograd.grad(y.sin().sum(), learned, retain_graph=True) for y in (output, expected)
    ]
    for a, e in zip(*grads, strict=True):
        assert_matches(a, e)


SHAPES = {"plain": (50, 8, 3), "batch_first": (8, 50, 3), "unbatched": (50, 3)}


@pytest.mark.parametrize("form", [*SHAPES, "packed"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_masks_of_recurrent_dropout(form, per):
    layer = Recurrent(zoo.RecurrentDropoutLSTM, 3, 20, batch_first=form == "batch_first").double()
    if form == "packed":
        lengths = [50, 7, 1, 30, 50, 50, 20, 9]
        x = pack_padded_sequence(torch.randn(50, 8, 3).double(), lengths, enforce_sorted=False)
    else:
        x = torch.randn(SHAPES[form], dtype=torch.float64)
    inputs = zoo.recurrent_dropout(layer, x, 0.2, per)
    mask = inputs["mask"]
    assert mask.dtype == torch.float64 and set(mask.unique().tolist()) == {0, 1 / (1 - 0.2)}
    assert abs(mask.mean() - 1) < (0.05 if per == "step" else 0.35)
    output, _ = layer(x, inputs=inputs)
    if form == "packed":
        assert mask.shape == (len(x.data), 20)
        output, mask = (pad_packed_sequence(x._replace(data=d))[0] for d in (output.data, mask))
        time = 0
    else:
        time = 1 if form == "batch_first" else 0
        mask = mask.expand(output.shape)
    differs = (mask != mask.narrow(time, 0, 1)) & (output != 0)
    assert differs.any() == (per == "step")
    layer.eval()
    assert zoo.recurrent_dropout(layer, x, 0.2, per)["mask"] == 1


def test_masks_of_zoneout():
    """A unit that keeps h and c has those of the step before."""
    layer = Recurrent(zoo.ZoneoutLSTM, 3, 16, batch_first=True)
    x = torch.randn(5, 40, 3)
    inputs = zoo.zoneout(layer, x, h=0.3, c=0.7)
    assert {k: v.shape for k, v in inputs.items()} == dict.fromkeys(inputs, (5, 40, 16))
    for k, rate in (("h", 0.3), ("c", 0.7)):
        assert abs(inputs[f"keep_{k}"].mean() - rate) < 0.05
    *_, states = layer(x, inputs=inputs, return_states=True)
    for k in "hc":
        (all_steps,) = states[k]
        kept = all_steps[:, 1:, 0] == all_steps[:, :-1, 0]
        assert torch.equal(kept, inputs[f"keep_{k}"][:, 1:] == 1)
    layer.eval()
    assert torch.equal(zoo.zoneout(layer, x, 0.3, 0.7)["keep_c"], torch.tensor(0.7))
    packed = pack_padded_sequence(x, [40, 3, 9, 40, 1], batch_first=True, enforce_sorted=False)
    assert zoo.zoneout(layer.train(), packed)["keep_h"].shape == (93, 16)


def test_masks_refuse_what_is_no_probability():
    layer, x = Recurrent(zoo.RecurrentDropoutLSTM, 3, 4), torch.randn(2, 1, 3)
    with pytest.raises(ValueError, match=r"p must be a number in \[0, 1\), got 1"):
        zoo.recurrent_dropout(layer, x, 1)
    with pytest.raises(ValueError, match=r"c must be a number in \[0, 1\), got -0.1"):
        zoo.zoneout(layer, x, c=-0.1)
    with pytest.raises(ValueError, match="per must be 'sequence' or 'step', got 'row'"):
        zoo.recurrent_dropout(layer, x, per="row")
    layer(x, inputs=zoo.recurrent_dropout(layer, x, 0))
