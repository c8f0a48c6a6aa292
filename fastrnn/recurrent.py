"""`Recurrent`: layers of a cell that is a Python function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from . import made
from .arguments import check_layer, kind_of
from .base import RNNBase
from .features import Asked, States, with_dimension
from .programs import Cell
from .trees import map_tensors

State = Tensor | tuple[Tensor, ...]


class Recurrent(RNNBase):
    """Layers of a cell of one's own, as `LSTM` is of its cell: with the same features and kernels.

    Args:
        cell: a `Cell`, whose step is a function.
        input_size, hidden_size: I and H, features of the input and units of every state.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (N, T, features), not (T, N, features).
        dropout: probability of zeroing an element of what a layer gives the next one, in training.
        bidirectional: whether a second direction reads the sequence from its end; D is 2 then.
        proj_size: P, the width of a projected recurrent state, which the step cannot read; or 0.
        heads: equal parts of the units; W_hh connects the units of one part with each other only.
        device, dtype: of the parameters.

    Shapes of a call `output, state = layer(input, state)`, see `forward`:
        input: (T, N, I), (N, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        output: as the input, with D*P features: of the last layer, forward first.
        state: one tensor (D*L, N, H) for each of the cell's states, in their order, as a tuple if
            there are several; without N if unbatched; zeros if not given. The recurrent one has
            width P, which is H without a projection.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first, of layer k; those of the second
    direction end in `_reverse`. X gates have an input part, U gates a hidden part:
        weight_ih_lk: (X*H, I), or (X*H, D*P) above the first layer.
        weight_hh_lk: (U*H, P), if U is not 0; (U*H, H / heads) with heads.
        bias_ih_lk: (X*H,), bias_hh_lk: (U*H,).
        weight_hr_lk: (P, H), with `proj_size`.
        NAME_lk: (H,), for each of the cell's `params`; its `init` says how it begins.

    Raises:
        StepError: the step cannot be traced; see `Cell`.
        TypeError, ValueError: `cell` is no `Cell`; an argument is of a wrong kind or out of range.

    Example:
        >>> layer = fastrnn.Recurrent(fastrnn.zoo.CfC, 10, 20)
        >>> output, h = layer(torch.randn(5, 3, 10), inputs={"dt": torch.rand(5, 3, 1)})
        >>> output.shape, h.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

    torch_class = None  # nothing of torch.nn computes it

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        heads: int = 1,
    ) -> None:
        torch.nn.Module.__init__(self)
        if not isinstance(cell, Cell):
            raise TypeError(f"cell should be a fastrnn.Cell, got {type(cell).__name__}")
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        check_layer(input_size, hidden_size, num_layers, dropout, proj_size, heads, **flags)
        if dropout and num_layers == 1:
            warnings.warn("dropout is applied between layers, and there is one", stacklevel=2)
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.heads = heads
        self._register()
        self._flat_weights_names: list[str] = []
        self._all_weights: list[list[str]] = []
        shapes = made.parameter_shapes(cell, hidden_size, bias, proj_size, heads)
        for layer in range(num_layers):
            below = input_size if layer == 0 else (proj_size or hidden_size) * self._directions
            for direction in range(self._directions):
                names = []
                for name, shape in shapes.items():
                    shape = tuple(below if size is None else size for size in shape)
                    names.append(f"{name}_l{layer}" + "_reverse" * direction)
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(names[-1], torch.nn.Parameter(empty))
                self._flat_weights_names += names
                self._all_weights.append(names)
        self._init_flat_weights()
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        """Draws all parameters anew: uniform in (-1/sqrt(H), 1/sqrt(H)), or as `Cell.init` says."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            init = self.cell.init.get(name.rsplit("_l", 1)[0])
            with torch.no_grad():
                if init is None:
                    parameter.uniform_(-bound, bound)
                elif callable(init):
                    init(parameter)
                else:
                    parameter.fill_(init)

    def flatten_parameters(self) -> None:
        """Does nothing: cuDNN has no part in this."""

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__(saved)
        self._register()

    def _register(self) -> None:
        """Makes the cell known in this process."""
        name = made.register(self.cell, self.hidden_size, self.proj_size > 0, self.heads)
        self.mode = self._cell_ = name
        self._names = made.names_of(self)
        self._as_they_are = made.as_they_are(self)
        self._takes_inputs = bool(self.cell.inputs)
        self._is_pair = self.cell.states[:-1] == (self.cell.recurrent,)

    def extra_repr(self) -> str:
        """The arguments, those that are not the default."""
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        return f"{self.cell.name}, {super().extra_repr()}{heads}"

    @property
    def _several(self) -> bool:
        return len(self.cell.states) > 1

    def _each(self, hx: State) -> Sequence[Tensor]:
        return hx if self._several else (hx,)

    def _state_names_(self) -> tuple[str, ...]:
        return self.cell.states

    def _width(self, state: str) -> int:
        return (state == self.cell.recurrent and self.proj_size) or self.hidden_size

    def _zero_state_(self, input: Tensor, batch: int) -> State:
        zeros = input.new_zeros(self.num_layers * self._directions, batch, self.hidden_size)
        states = self.cell.states
        each = [zeros[..., : self._width(s)] if self.proj_size else zeros for s in states]
        return tuple(each) if self._several else each[0]

    def _check_state_rank_(self, hx: State, batched: bool) -> None:
        self._check_count(hx)
        rank = 3 if batched else 2
        try:
            ranks = [each.dim() for each in self._each(hx)]
        except AttributeError as error:
            raise TypeError(f"hx must hold tensors, got {kind_of(hx)}") from error
        for name, found in zip(self.cell.states, ranks, strict=True):
            if found != rank:
                kind = "batched" if batched else "unbatched"
                raise RuntimeError(
                    f"For {kind} input, state {name} should be {rank}-D, got {found}-D"
                )

    def _check_count(self, hx: State, name: str = "hx") -> None:
        states = self.cell.states
        if not self._several and not isinstance(hx, Tensor):
            expects = f"one tensor for its state {states[0]}"
        elif self._several and not (isinstance(hx, (tuple, list)) and len(hx) == len(states)):
            expects = f"a tuple of the states {', '.join(states)}"
        else:
            return
        raise RuntimeError(f"{self.cell.name} expects {expects}, got {kind_of(hx)} as {name}")

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:
        """Raises as `RNNBase.check_forward_args`, for all states."""
        self._check_count(hidden)
        self.check_input(input, batch_sizes)
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        for name, each in zip(self.cell.states, self._each(hidden), strict=True):
            expected = layers, batch, self._width(name)
            self.check_hidden_size(each, expected, f"Expected state {name} size {{}}, got {{}}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:
        """The states with their batch in the order of `permutation`."""
        change = None if permutation is None else lambda each: each.index_select(1, permutation)
        return hx if change is None else map_tensors(change, hx)

    def _unsqueeze_state_(self, hx: State) -> State:
        return map_tensors(lambda each: each.unsqueeze(1), hx)

    def _squeeze_state_(self, hx: State) -> State:
        return map_tensors(lambda each: each.squeeze(1), hx)

    def _parts_(self, hx: State) -> tuple[Tensor, Tensor | None]:
        """(h0, c0) of a `Call`: the recurrent state, and the others beside each other."""
        if self._is_pair or not self._several:
            return hx if self._is_pair else (hx, None)
        states = dict(zip(self.cell.states, hx, strict=True))
        return states.pop(self.cell.recurrent), torch.cat(tuple(states.values()), -1)

    def _joined_(self, h: Tensor, c: Tensor | None) -> State:
        """The states of (h, c)."""
        if c is None:
            return h
        if self._is_pair:
            return h, c
        others = iter(c.split(self.hidden_size, -1))
        return tuple(h if s == self.cell.recurrent else next(others) for s in self.cell.states)

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        inputs: Mapping[str, Tensor] | None = None,
        reset: Tensor | None = None,
        reset_state: State | None = None,
        lengths: Tensor | None = None,
        return_states: bool = False,
        detach_every: int | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Any, ...]:
        """All layers over all time steps.

        Args:
            input: (T, N, input_size), (N, T, input_size) if `batch_first`, (T, input_size)
                unbatched, or a PackedSequence.
            hx: the initial states, zeros if None; see `Recurrent`.
            inputs: a tensor or number for each of the cell's `inputs`, which all layers and
                directions see. It broadcasts to (T, N, H), or (N, T, H) if `batch_first`; for a
                PackedSequence it is a PackedSequence of the same lengths, (rows, H) or (rows, 1),
                or (H,). A tensor has the dtype of `input`, or is bool or integer.
            reset, reset_state, lengths, return_states, detach_every, grad_clip: as of `LSTM`.

        Returns:
            output and the final state, and with `return_states` a dict from the name of each state
            to a tuple of (T, N, D, H) of each layer; N comes first if `batch_first`.

        Raises:
            ValueError, RuntimeError: as of `LSTM`; an input is missing or does not broadcast.
        """
        given = asked = None
        if inputs is not None or self._takes_inputs:
            given = made.given(self.cell.name, self.cell.inputs, inputs)
        if reset_state is not None:
            reset_state = made.begun(self, reset_state)
        plain = given is reset is lengths is detach_every is grad_clip is reset_state is None
        if not plain or return_states:
            asked = Asked(
                reset, lengths, return_states, False, detach_every, grad_clip, reset_state, given
            )
        results = self._forward_(input, hx, asked)
        return (*results[:2], self._named(results[2])) if return_states else results

    def _named(self, states: States) -> dict[str, tuple[Tensor, ...]]:
        recurrent = self.cell.recurrent
        others = zip(*(c.split(self.hidden_size, -1) for c in states.c or ()), strict=True)
        return {s: states.h if s == recurrent else next(others) for s in self.cell.states}

    def _named_weights_(
        self, input: Tensor, batch_sizes: Tensor | None, asked: Asked | None
    ) -> tuple[str, Sequence[Tensor]]:
        return made.weights(self, input, batch_sizes, asked and asked.inputs)

    def step(
        self,
        input: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        reset_state: State | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """One time step of all layers, as `LSTM.step`; `inputs` broadcast to (N, H)."""
        inputs = with_dimension(inputs, 1 if self.batch_first else 0)
        return self._step_(input, state, reset, reset_state, inputs)
