"""What a call may ask of the loop besides its result: checks of it, and the states of every step.

T time steps, N batch, D directions, P width of h, H hidden units, G gates.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from .call import Stack, check_lengths
from .results import Results
from .table import Cell


class States(NamedTuple):
    """The state after every time step, in a tuple of one tensor for each layer.

    h: (T, N, D, P), the layer's output before dropout.
    c: (T, N, D, H); None where there is no cell state.
    gates: (T, N, D, G, H), activated, without gradient, in the order of `torch.nn`'s weights:
        i, f, g, o of an LSTM; r, z, n of a GRU; the activation, h itself, of an RNN. None where
        not asked for.

    N comes first if `batch_first`, and is missing for unbatched input.
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

    def any(self) -> bool:
        """Whether there is one."""
        reset, lengths, states, gates, detach_every, grad_clip = self
        given = not (reset is lengths is detach_every is grad_clip is None)
        return given or bool(states or gates)

    def of(self, stack: Stack) -> Stack:
        """The stack with the features, which are checked and brought into the form of `Call`.

        Waits for no device, but for lengths on one when the input is on the CPU.

        Raises:
            ValueError, RuntimeError: as `functional.lstm` says.
        """
        reset, lengths, states, gates, _, _ = self
        input, batch_first = stack.call.input, stack.batch_first
        if stack.call.batch_sizes is not None:
            raise ValueError(
                "reset, lengths, return_states, return_gates, detach_every and grad_clip need "
                "padded input, got packed"
            )
        detach_every, grad_clip = self.limits()
        reset, lengths = mask_of(reset, input), lengths_of(lengths)
        if reset is not None:
            if stack.directions == 2:
                raise ValueError("reset needs a network of one direction: one is bidirectional")
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
        return stack._replace(call=call, states=states or gates, gates=gates)

    def limits(self) -> tuple[int, float]:
        """detach_every and grad_clip as in `Call`; ValueError if one is out of its range."""
        k, v = self.detach_every, self.grad_clip
        if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
            raise ValueError(f"detach_every must be an integer of at least 1, got {k!r}")
        if v is not None and (isinstance(v, bool) or not v > 0):
            raise ValueError(f"grad_clip must be greater than 0, got {v!r}")
        return int(k or 0), float(v or 0.0)

    def of_one_row(self, batch_dim: int, input: Tensor) -> Asked:
        """The same for input that came without a batch and was given one of one row."""
        if self.lengths is not None:
            raise ValueError("lengths need batched input, got unbatched")
        reset = mask_of(self.reset, input)
        if reset is None:
            return self
        if reset.dim() != 1:
            raise RuntimeError(f"For unbatched input, reset should be 1-D but got {reset.dim()}-D")
        return self._replace(reset=reset.unsqueeze(batch_dim))


def mask_of(given, input: Tensor) -> Tensor | None:
    """`reset` as a tensor: it may be a list, a tuple or an array of numpy too."""
    if given is None or isinstance(given, Tensor):
        return given
    return torch.as_tensor(given, device=input.device)


def lengths_of(given) -> Tensor | None:
    """`lengths` likewise, on the CPU, where they are checked."""
    if given is None or isinstance(given, Tensor):
        return given
    tensor = torch.as_tensor(given)
    return tensor if tensor.numel() else tensor.long()  # an empty list has no dtype of its own


def _check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise RuntimeError(f"Expected {name} size {expected}, got {tuple(tensor.shape)}")


def _on_device_of(input: Tensor, lengths: Tensor, T: int) -> Tensor:
    """lengths as the ops take them. Those that leave the CPU are checked: the ops then do not."""
    if lengths.device == input.device:
        return lengths.to(torch.int64)
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
    """The states of a call, as views of what its layers gave, traced if `Stack.traced`."""

    def by_time(rows: Tensor, output: Tensor) -> Tensor:
        """(D, T*N, ...) as (T, N, D, ...), or (N, T, D, ...)."""
        planes = rows.unflatten(1, output.shape[:2]).movedim(0, 2)
        return planes.transpose(0, 1) if batch_first else planes

    h, c, activated = [], [], []
    for results in layers:
        output = results.output
        user = output.transpose(0, 1) if batch_first else output
        h.append(user.unflatten(-1, (directions, -1)))
        if kind.has_c:
            c.append(by_time(results.cells, output))
        if with_gates and kind.saved:
            activated.append(by_time(results.gates[:, :, : kind.gates], output))
        elif with_gates:
            activated.append(h[-1].detach().unsqueeze(-2))
    return States(tuple(h), tuple(c) or None, tuple(activated) if with_gates else None)
