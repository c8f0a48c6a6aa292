"""What a call may ask of the loop besides its result: checks of it, and the states of every step.

T time steps, N batch, D directions, P width of h, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from . import autocast
from .arguments import kind_of, number_of
from .call import Stack
from .checks import check_alike, check_dense, check_lengths, two_devices
from .results import Results
from .table import Cell
from .trees import map_tensors


class States(NamedTuple):
    """The state after every time step: what `return_states` and `return_gates` add to a call.

    Each field is a tuple with one tensor for each layer. N comes first if `batch_first`, and is
    missing for unbatched input.

    Attributes:
        h: (T, N, D, P), the layer's output before dropout; of a `Recurrent` the recurrent state.
        c: (T, N, D, H); None where there is no cell state.
        gates: (T, N, D, G, H), after the activation, without gradient, in the order of
            `torch.nn`'s weights: i, f, g, o of an LSTM; r, z, n of a GRU; h itself of an RNN. None
            without `return_gates`.

    Example:
        >>> gru = fastrnn.GRU(10, 20, num_layers=2)
        >>> output, h_n, states = gru(torch.randn(5, 3, 10), return_gates=True)
        >>> states.h[1].shape, states.c, states.gates[0].shape
        (torch.Size([5, 3, 1, 20]), None, torch.Size([5, 3, 1, 3, 20]))
    """

    h: tuple[Tensor, ...]
    c: tuple[Tensor, ...] | None
    gates: tuple[Tensor, ...] | None


class Asked(NamedTuple):
    """The features of a call, as the user gives them: described at `functional.lstm`."""

    reset: Tensor | None = None
    lengths: Tensor | None = None
    return_states: bool = False
    return_gates: bool = False
    detach_every: int | None = None
    grad_clip: float | None = None
    reset_state: Tensor | tuple[Tensor, Tensor] | None = None
    inputs: Mapping[str, Tensor] | None = None  # of a cell made of a function: see `Recurrent`

    def any(self) -> bool:
        """Whether there is one."""
        return self.inputs is not None or self.features()

    def features(self) -> bool:
        """Whether there is one that needs padded input."""
        reset, lengths, states, gates, detach_every, grad_clip, reset_state, _ = self
        given = not (reset is lengths is detach_every is grad_clip is reset_state is None)
        return given or bool(states or gates)

    def of(self, stack: Stack) -> Stack:
        """The stack with the features, which are checked and brought into the form of `Call`.

        Waits for no device, but for lengths on one when the input is on the CPU.

        Raises:
            ValueError, RuntimeError: as `functional.lstm` says.
        """
        reset, lengths, states, gates, *_ = self
        input, batch_first = stack.call.input, stack.batch_first
        if stack.call.batch_sizes is not None:
            if not self.features():
                return stack
            raise ValueError(
                "reset, reset_state, lengths, return_states, return_gates, detach_every and "
                "grad_clip need padded input, got packed"
            )
        detach_every, grad_clip = self.limits()
        reset, lengths = mask_of(reset, input), lengths_of(lengths)
        for name, mask in (("reset", reset), ("lengths", lengths)):
            if mask is not None:
                check_dense(name, mask)
        if reset is not None:
            if stack.directions == 2:
                raise ValueError("reset needs a network of one direction, not a bidirectional one")
            if reset.dtype != torch.bool:
                raise ValueError(f"reset: expected bool, got {reset.dtype}")
            _check_size("reset", reset, tuple(input.shape[:2]))
            reset = reset.t() if batch_first else reset
        if lengths is not None:
            if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
                raise ValueError(f"lengths: expected an integer dtype, got {lengths.dtype}")
            T, N = (1, 0) if batch_first else (0, 1)
            _check_size("lengths", lengths, (input.size(N),))
            lengths = _on_device_of(input, lengths, input.size(T))
        call = stack.call._replace(
            reset=reset,
            lengths=lengths,
            detach_every=detach_every,
            grad_clip=grad_clip,
        )
        stack = stack._replace(call=call, states=states or gates, gates=gates)
        return stack._replace(reset_state=self._given(stack))

    def _given(self, stack: Stack) -> tuple[Tensor, ...] | None:
        """`reset_state` as `Stack` has it; RuntimeError or ValueError as `of` says."""
        given, call = self.reset_state, stack.call
        if given is None:
            return None
        if call.reset is None:
            raise ValueError("reset_state needs reset, which says where rows begin from it")
        given = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if not all(isinstance(each, Tensor) for each in given):
            kinds = ", ".join(type(each).__name__ for each in given)
            raise ValueError(f"reset_state: expected tensors, got {kinds}")
        state = (call.h0,) if call.c0 is None else (call.h0, call.c0)
        if len(given) != len(state):
            wanted = "a pair (h, c)" if len(state) == 2 else "one tensor"
            raise ValueError(f"reset_state: expected {wanted}, got {len(given)} tensors")
        for new, old in zip(given, state, strict=True):
            shapes = tuple(old.shape), (call.reset.size(0), *old.shape)
            if tuple(new.shape) not in shapes:
                raise RuntimeError(
                    f"Expected reset_state size {shapes[0]} or {shapes[1]}, got {tuple(new.shape)}"
                )
        if not autocast.is_on(call.input):
            check_alike(call.input, given, "input and reset_state")
        return given

    def limits(self) -> tuple[int, float]:
        """detach_every and grad_clip as in `Call`; ValueError if one is out of its range."""
        k, v = self.detach_every, self.grad_clip
        if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
            raise ValueError(f"detach_every must be an integer of at least 1, got {k!r}")
        if v is not None and not number_of(v) > 0:
            raise ValueError(f"grad_clip must be greater than 0, got {v!r}")
        return min(int(k or 0), _MOST_STEPS), float(v or 0.0)

    def of_one_row(self, batch_dim: int, input: Tensor) -> Asked:
        """The same for input that came without a batch and was given one of one row."""
        if self.lengths is not None:
            raise ValueError("lengths need batched input, got unbatched")
        self = self._replace(inputs=with_dimension(self.inputs, batch_dim))
        reset = mask_of(self.reset, input)
        if reset is None:
            return self
        if reset.dim() != 1:
            raise RuntimeError(f"For unbatched input, reset should be 1-D but got {reset.dim()}-D")
        given = map_tensors(lambda each: each.unsqueeze(-2), self.reset_state)
        return self._replace(reset=reset.unsqueeze(batch_dim), reset_state=given)


_MOST_STEPS = 2**63 - 1  # of an op's integer; more than any sequence has


def with_dimension(inputs, dim: int):
    """The inputs of a call, planes among them with a dimension more."""
    if not isinstance(inputs, Mapping):
        return inputs
    return {
        name: each.unsqueeze(dim) if isinstance(each, Tensor) and each.dim() == 2 else each
        for name, each in inputs.items()
    }


def mask_of(given, input: Tensor) -> Tensor | None:
    """`reset` as a tensor: it may be a list, a tuple or an array of numpy too."""
    if given is None or isinstance(given, Tensor):
        return given
    return _read("reset", given, input.device)


def _read(name: str, given, device: torch.device | str) -> Tensor:
    """A copy: with an array that is read-only no memory may be shared. Compiled code has no arrays,
    but tensors in their place. TypeError of what holds no numbers."""
    if torch.compiler.is_compiling():
        return torch.as_tensor(given, device=device)
    try:
        read = torch.tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:  # as torch says what holds no numbers
        kind = kind_of(given)
        raise TypeError(
            f"{name} must be a tensor, or a list or an array of numbers, got {kind}: {error}"
        ) from error
    return read.to(device, non_blocking=True)  # a list straight to a GPU would wait for it


def lengths_of(given) -> Tensor | None:
    """`lengths` likewise, on the CPU, where they are checked."""
    if given is None or isinstance(given, Tensor):
        return given
    tensor = _read("lengths", given, "cpu")
    return tensor if tensor.numel() else tensor.long()  # an empty list has no dtype of its own


def _check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise RuntimeError(f"Expected {name} size {expected}, got {tuple(tensor.shape)}")


def _on_device_of(input: Tensor, lengths: Tensor, T: int) -> Tensor:
    """lengths as the ops take them. Those that leave the CPU are checked: the ops then do not."""
    if lengths.device == input.device:
        return lengths.to(torch.int64)
    if lengths.device.type == "meta":
        raise two_devices(input, lengths)
    check_lengths(lengths, T)
    # A copy from pinned memory reads it later, when the caller may have written to it again. But a
    # graph of the caller's is to read that memory, in each replay.
    captured = (
        input.is_cuda
        and not torch.compiler.is_compiling()
        and torch.cuda.is_current_stream_capturing()
    )
    own = lengths.to(torch.int64, copy=not captured)
    return own.to(input.device, non_blocking=not input.is_cpu)


def states_of(
    kind: Cell, directions: int, batch_first: bool, with_gates: bool, layers: list[Results]
) -> States:
    """The states of a call, as views of what its layers gave, traced if `Stack.traced`.

    Of packed input they are (rows, D, ...).
    """

    def by_time(rows: Tensor, output: Tensor) -> Tensor:
        """(D, T*N, ...) as (T, N, D, ...), or (N, T, D, ...)."""
        sizes = output.shape[:-1]
        planes = rows.unflatten(1, sizes).movedim(0, len(sizes))
        return planes.transpose(0, 1) if batch_first else planes

    h, c, activated = [], [], []
    for results in layers:
        output = results.output
        user = output.transpose(0, 1) if batch_first else output
        if kind.output:
            h.append(by_time(results.hidden, output))
        else:
            h.append(user.unflatten(-1, (directions, -1)))
        if kind.has_c:
            c.append(by_time(results.cells, output))
        if with_gates and kind.saved:
            activated.append(by_time(results.gates[:, :, : kind.gates], output))
        elif with_gates:
            activated.append(h[-1].detach().unsqueeze(-2))
    return States(tuple(h), tuple(c) or None, tuple(activated) if with_gates else None)
