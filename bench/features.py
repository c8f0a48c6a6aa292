"""What fastrnn has an argument for, and how it is done with torch.nn today; and two jobs that both
can do: a loop over cells, and a loss that reads the last output alone."""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.contenders import Call, Contender, Prepare, build, caller
from bench.problems import Problem

State = Tensor | tuple[Tensor, Tensor]


def each(change, state: State) -> State:
    """`change` of h, or of h and c."""
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def using(library: str, run: Callable) -> Prepare:
    """`prepare` from run(module, problem, x) -> results."""

    def prepare(problem: Problem) -> Call:
        module = build(library, problem)
        parameters = dict(module.named_parameters())
        return caller(problem, lambda x: run(module, problem, x), parameters)

    return prepare


ours, theirs = partial(using, "fastrnn"), partial(using, "torch.nn")


def over_cells(library: str, every_c: bool, problem: Problem) -> Call:
    """A loop over time around the module of one step. With `every_c` an LSTM's results have c after
    each step."""
    spec, x = problem.spec, problem.input
    kind = getattr(importlib.import_module(library), f"{spec.cell}Cell")
    cell = kind(spec.case.input_size, spec.case.hidden_size, dtype=x.dtype, device=x.device)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in problem.weights.items()})

    def run(x: Tensor):
        state, found = None, []
        for step in x.unbind():
            state = cell(step, state)
            found.append(state)
        if spec.cell != "LSTM":
            return torch.stack(found), state[None]
        h, c = zip(*found, strict=True)
        between = (torch.stack(c),) if every_c else ()
        return torch.stack(h), *between, h[-1][None], c[-1][None]

    return caller(problem, run, {f"{name}_l0": w for name, w in cell.named_parameters()})


# --- Loop: a cell for every time step ---------------------------------------------------------

LOOP = tuple(Contender(name, partial(over_cells, name, False)) for name in ("fastrnn", "torch.nn"))


# --- Last: a loss that reads the last output alone --------------------------------------------


def last(module, problem: Problem, x: Tensor):
    output, state = module(x)
    return output[-1], state


LAST = (Contender("fastrnn", ours(last)), Contender("torch.nn", theirs(last)))


# --- Reset: episodes that end inside the sequence ---------------------------------------------


def reset(module, problem: Problem, x: Tensor):
    return module(x, reset=problem.reset)


def reset_loop(module, problem: Problem, x: Tensor):
    """A call for every time step."""
    layers = module.num_layers
    keep = (~problem.reset).to(x.dtype)[:, None, :, None]  # (T, 1, N, 1)
    state: State = x.new_zeros(layers, x.shape[1], module.hidden_size)
    if isinstance(module, torch.nn.LSTM):
        state = (state, torch.zeros_like(state))
    outputs = []
    for step, alive in zip(x.split(1), keep, strict=True):
        output, state = module(step, each(lambda s, alive=alive: s * alive, state))
        outputs.append(output)
    return torch.cat(outputs), state


def segments(reset: Tensor) -> tuple[list[int], list[int]]:
    """From (T, N): the lengths of the segments between resets, row after row, and the number of
    the last segment of every row."""
    first = reset.T.clone()  # (N, T)
    first[:, 0] = True
    starts = first.flatten().nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([first.numel()])])
    return (ends - starts).tolist(), (first.sum(1).cumsum(0) - 1).tolist()


def split(module, problem: Problem, x: Tensor, pad: bool):
    """Segments become rows of a larger batch, as libraries for reinforcement learning do it."""
    lengths, last = segments(problem.reset)
    steps, batch, _ = x.shape
    ends = torch.tensor(lengths, device=x.device)
    within = torch.arange(max(lengths), device=x.device) < ends[:, None]  # (segments, longest)
    rows = x.transpose(0, 1).flatten(0, 1)  # (N*T, input), in which segments follow each other
    padded = x.new_zeros(*within.shape, x.shape[2]).index_put((within,), rows).transpose(0, 1)
    if pad:  # no final state: that of a padded row is that of its padding
        output = module(padded)[0]
        state: list[State] = []
    else:
        packed, final = module(pack_padded_sequence(padded, lengths, enforce_sorted=False))
        output = pad_packed_sequence(packed)[0]
        state = [each(lambda s: s[:, last], final)]
    return output.transpose(0, 1)[within].view(batch, steps, -1).transpose(0, 1), *state


RESET = (
    Contender("fastrnn", ours(reset)),
    Contender("torch.nn loop", theirs(reset_loop)),
    Contender("torch.nn split, pack", theirs(lambda *a: split(*a, pad=False))),
    Contender("torch.nn split, pad", theirs(lambda *a: split(*a, pad=True)), lacks=("h_n", "c_n")),
)


# --- Lengths: rows that end before the sequence does ------------------------------------------


def lengths(module, problem: Problem, x: Tensor):
    return module(x, lengths=problem.lengths)


def pack_unpack(module, problem: Problem, x: Tensor):
    packed = pack_padded_sequence(x, problem.lengths.cpu(), enforce_sorted=False)
    output, state = module(packed)
    return pad_packed_sequence(output, total_length=x.shape[0])[0], state


LENGTHS = (
    Contender("fastrnn", ours(lengths)),
    Contender("torch.nn pack, unpack", theirs(pack_unpack)),
    Contender("fastrnn pack, unpack", ours(pack_unpack)),
)


# --- States: the cell state at every time step (LSTM of one layer) ----------------------------


def states(module, problem: Problem, x: Tensor):
    output, state, found = module(x, return_states=True)
    return output, found.c[0].flatten(2), state


STATES = (
    Contender("fastrnn", ours(states)),
    Contender("torch.nn LSTMCell loop", partial(over_cells, "torch.nn", True)),
)
