"""A call of one layer, described once: the form in which everything below the modules takes it.

A *layer* is one layer in all its directions over all time steps. `Call` holds what it is asked to
do, in the order of the custom ops' schemas: `Call(*arguments)` is what an op was given, and
`op(*call)` calls it.

Sizes: T time steps, N batch, I inputs, H hidden units, G gates, D directions (1 or 2), P width of
h (H, or the projection size), K planes of c (1 of an LSTM), each of H. `rows` is T*N for padded
input and sum(batch_sizes) for packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .table import Cell, cell_named, parameter, weight_shapes


class Sizes(NamedTuple):
    """The sizes of a call."""

    T: int
    N: int
    I: int
    H: int
    P: int
    D: int
    rows: int


class Call(NamedTuple):
    """What one layer is asked to do.

    A new feature of the loop over time is a field here, with a default that means "off".
    """

    input: Tensor  # (T, N, I), or (rows, I) of a PackedSequence
    batch_sizes: Tensor | None  # (T,) int64 on the CPU for packed input
    h0: Tensor  # (D, N, P)
    c0: Tensor | None  # (D, N, K*H) where the cell has a c
    weights: Sequence[Tensor]  # of each direction those that `names` says
    cell: str  # a name in the table
    # "w_ih w_hh b_ih b_hh w_hr", without what the layer does not have, and then "p_..." for each of
    # the cell's parameters: (H,), or (T, N, H) or (T, N, 1), of packed input (rows, ...)
    names: str
    # (T, N) bool, for one direction: where True, h and c are zero before the step.
    reset: Tensor | None = None
    # (N,) int64 in [0, T], in any order, on the device of the input. A row ends after its own
    # length, and the reverse direction begins there. What comes later is zero in every result and
    # is not read in the input. h_n and c_n are those of the row's last step.
    lengths: Tensor | None = None
    # k > 0 stops the gradient that h and c carry between steps j*k - 1 and j*k.
    detach_every: int = 0
    # v > 0 clamps to [-v, v] what each step sends back through h to the step before it, or to h0,
    # before what comes from output, h_n and elsewhere is added.
    grad_clip: float = 0.0
    # Of the three bfloat16 that a float32 is the sum of, how many its products may use: see
    # `dispatch.cpu.allowed`. Backward uses as many as its forward.
    parts: int = 3

    @property
    def kind(self) -> Cell:
        """The cell's line in the table."""
        return cell_named(self.cell)

    @property
    def projected(self) -> bool:
        """Whether h is a projection of o * tanh(c), by w_hr."""
        return "w_hr" in self.names

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weights[0].size(0) // self.kind.gates

    @property
    def has_features(self) -> bool:
        """Whether it asks the loop for anything that torch.nn lacks."""
        limits = bool(self.detach_every or self.grad_clip)
        return limits or not (self.reset is self.lengths is None)

    def mean_steps(self) -> int:
        """The steps of a row, of packed input their mean; also where the batch comes first."""
        return self.input.numel() // max(1, self.input.size(-1) * self.h0.size(-2))

    def by_name(self) -> list[dict[str, Tensor]]:
        """Each direction's weights by name."""
        names, flat = self.names.split(), self.weights
        starts = range(0, len(flat), len(names))
        return [dict(zip(names, flat[at : at + len(names)], strict=True)) for at in starts]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of one dtype and one device, which are those that have gradients."""
        state = (self.h0,) if self.c0 is None else (self.h0, self.c0)
        return (self.input, *state, *self.weights)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Call:
        """The same call of others in the place of `tensors()`."""
        input, h0, *rest = tensors
        c0 = None if self.c0 is None else rest.pop(0)
        return self._replace(input=input, h0=h0, c0=c0, weights=rest)

    @property
    def is_step(self) -> bool:
        """Whether it is that of a cell, in which nothing has a time: (N, I) and (N, H)."""
        return self.h0.dim() == 2

    def over_time(self) -> Call:
        """The call of a cell as that of a layer, of one time step and one direction."""
        c0 = None if self.c0 is None else self.c0.unsqueeze(0)
        return self._replace(input=self.input.unsqueeze(0), h0=self.h0.unsqueeze(0), c0=c0)

    def attached(self) -> bool:
        """Whether a gradient is wanted of any of the tensors. Raises as `check_alike`."""
        dtype, on_cpu, attached = self.input.dtype, self.input.is_cpu, False
        for tensor in self.tensors():
            alike = tensor.dtype is dtype and tensor.is_cpu is on_cpu
            if not alike or tensor.layout is not torch.strided:
                self.check_alike()
            attached = attached or tensor.requires_grad
        if not on_cpu or self.reset is not None or self.lengths is not None:
            self.check_alike()
        return attached and torch.is_grad_enabled()

    def check_alike(self, suffix: str = "") -> None:
        """RuntimeError that names the first tensor, a weight as `parameter` does with `suffix`, if
        the tensors do not share one dtype and one device."""
        given = ("input", "h0", "c0")[: 2 if self.c0 is None else 3]

        def name_of(k: int) -> str:
            at = k - len(given)
            return given[k] if at < 0 else parameter(self.names, at, suffix)

        checks.check_alike(self.input, self.tensors(), name_of=name_of)
        for mask in (self.reset, self.lengths):
            if mask is not None and mask.device != self.input.device:
                raise checks.two_devices(self.input, mask)

    def check_weights(self, I: int, suffix: str = "") -> None:
        """RuntimeError that names the first weight, as `parameter` does with `suffix`, whose shape
        does not fit the states and an input of width I."""
        kind, P = cell_named(self.cell), self.h0.size(-1)
        H = P
        if self.projected:
            H = self.hidden_size if self.c0 is None else self.c0.size(-1) // kind.own
        shapes, names = weight_shapes(kind, I, H, P), self.names.split()
        width = self.weights[1].size(-1) if self.weights[1].dim() else 0
        if kind.step is not None and width and P % width == 0:
            shapes["w_hh"] = kind.hidden_gates * H, width  # of heads
        for k, weight in enumerate(self.weights):
            name = names[k % len(names)]
            if name in shapes and weight.shape != shapes[name]:
                raise checks.wrong_shape(parameter(self.names, k, suffix), weight, shapes[name])

    def sizes(self) -> Sizes:
        """The sizes, from shapes that fit each other. Reads no tensor data.

        Raises:
            RuntimeError: a rank, a size, or the dtype of what is no number does not fit, or a
                feature does not go with the input.
        """
        kind = cell_named(self.cell)
        input, h0 = self.input, self.h0
        packed = self.batch_sizes is not None
        rank = 2 if packed else 3
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if h0.dim() != 3 or h0.size(0) not in (1, 2):
            raise RuntimeError(f"h0 must have shape (1 or 2, N, P), got {tuple(h0.shape)}")
        D, N, P = h0.shape
        names = self.names.split()
        projectable = kind.has_c or kind.step is not None
        params = [name for name in names if name.startswith("p_")]
        fits = len(params) == kind.params and (projectable or not self.projected)
        if len(self.weights) != D * len(names) or not fits:
            raise RuntimeError(
                f"{self.cell} of {D} directions cannot take {len(self.weights)} weights for "
                f"'{self.names}'"
            )
        H = self.weights[names.index("w_hr")].size(-1) if self.projected else P
        I = input.size(-1)
        if kind.has_c != (self.c0 is not None):
            verb = "needs" if kind.has_c else "has no"
            raise RuntimeError(f"{self.cell} {verb} initial cell state")
        if self.c0 is not None:
            checks.check_shape("c0", self.c0, (D, N, kind.own * H))
        self.check_weights(I)
        for k, weight in enumerate(self.weights):
            if (name := names[k % len(names)]).startswith("p_"):
                checks.check_param(name, weight, self.weights[k % len(names)], input, H)
        if self.reset is not None and D == 2:
            raise RuntimeError("reset needs a single direction, got 2")
        if packed:
            checks.check_packed(input, self.batch_sizes, self.reset, self.lengths)
            return Sizes(self.batch_sizes.size(0), N, I, H, P, D, input.size(0))
        T = input.size(0)
        checks.check_shape("input", input, (T, N, I))
        checks.check_mask("reset", self.reset, (T, N), torch.bool)
        checks.check_mask("lengths", self.lengths, (N,), torch.int64)
        return Sizes(T, N, I, H, P, D, T * N)

    def steps(self, size: Sizes) -> list[int]:
        """The number of active rows at each time step.

        Raises:
            RuntimeError: batch_sizes do not fit the input, or there is no time step.
        """
        if self.batch_sizes is None:
            steps = [size.N] * size.T
        else:
            steps = self.batch_sizes.tolist()
            falling = all(a >= b for a, b in zip(steps, steps[1:], strict=False))
            if not falling or min(steps, default=1) < 1 or sum(steps) != size.rows:
                raise RuntimeError(
                    "batch_sizes must be positive, non-increasing and sum to the rows of input"
                )
            if steps and steps[0] != size.N:
                raise RuntimeError(f"h0 must have batch size {steps[0]}, got {size.N}")
        if not steps:
            raise RuntimeError(checks.NO_STEPS)
        return steps

    def output_shape(self, size: Sizes) -> tuple[int, ...]:
        """(T, N, D*P), or (rows, D*P) of packed input."""
        width = size.D * size.P
        return (size.T, size.N, width) if self.batch_sizes is None else (size.rows, width)


# The arguments of a custom op that takes a call. Not keyword-only, which torch.library gives no
# derivative to where they are tensors.
SCHEMA = (
    "Tensor input, Tensor? batch_sizes, Tensor h0, Tensor? c0, Tensor[] weights, str cell, "
    "str names, Tensor? reset=None, Tensor? lengths=None, int detach_every=0, float grad_clip=0., "
    "int parts=3"
)


class Stack(NamedTuple):
    """What a stack of layers is asked to do: layers on top of each other, dropout between them."""

    # The call of the first layer, but h0 (layers*D, N, P), c0 and the weights are those of all
    # layers, one after the other. The input is (N, T, I) if `batch_first`, unless it is packed.
    call: Call
    layers: int
    directions: int  # D
    dropout: float  # probability of zeroing an element between layers; 0 but in training
    batch_first: bool
    states: bool = False  # whether the states of every step are wanted,
    gates: bool = False  # and with them the gates
    # The states from which rows begin anew where `call.reset` is True; None stands for zeros. Each
    # has the shape of h0 or c0, or (T, ...) of that. A layer does not know it: see `restart`.
    reset_state: tuple[Tensor, ...] | None = None

    @property
    def traced(self) -> bool:
        """Whether layers have to return what each step computed: h alone is the output."""
        kind = self.call.kind
        return self.states and (kind.has_c or (self.gates and kind.saved > 0))

    @property
    def transposed(self) -> bool:
        """Whether the user has the batch before the time."""
        return self.batch_first and self.call.batch_sizes is None

    def each(self) -> Iterable[Call]:
        """The call of each layer in turn, as the first one's but for states and weights.

        Raises:
            RuntimeError: the states or the weights are not those of so many layers.
        """
        call, layers, D = self.call, self.layers, self.directions
        weights = layers * D * (call.names.count(" ") + 1)
        planes = [state.size(0) for state in (call.h0, call.c0) if state is not None]
        if any(n != layers * D for n in planes) or len(call.weights) != weights or not layers:
            raise RuntimeError(
                f"{layers} layers of {D} directions take {layers * D} initial states and {weights} "
                f"weights, got {', '.join(map(str, planes))} and {len(call.weights)}"
            )
        return [call] if layers == 1 else self._each_of_several()

    def _each_of_several(self) -> Iterator[Call]:
        call, layers, count = self.call, self.layers, len(self.call.weights) // self.layers
        c0s = (None,) * layers if call.c0 is None else call.c0.chunk(layers)
        for k, (h0, c0) in enumerate(zip(call.h0.chunk(layers), c0s, strict=True)):
            yield call._replace(h0=h0, c0=c0, weights=call.weights[k * count : (k + 1) * count])

    def check_weights(self, alike: bool) -> None:
        """RuntimeError that names the parameter, as `torch.nn` does, whose shape does not fit, or
        first, where `alike`, whose dtype or device does not."""
        width = self.call.input.size(-1)
        for k, layer in enumerate(self.each()):
            if alike:
                layer.check_alike(f"_l{k}")
            layer.check_weights(width, f"_l{k}")
            width = self.directions * layer.h0.size(-1)
