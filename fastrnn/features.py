"""What a call may ask of the loop besides its result: checks of it, and the states of every step.

T time steps, N batch, D directions, P width of h, H hidden units, G gates.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, reference, reference_ops


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


class Request(NamedTuple):
    """The features of one call of a stack; `options` is what concerns each layer."""

    options: ops.Options
    states: bool
    gates: bool


def request(
    cell: str,
    input: Tensor,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    return_states: bool,
    return_gates: bool,
    detach_every: int | None,
    grad_clip: float | None,
) -> Request:
    """Checks the features, described at `functional.lstm`, and brings tensors into the op's form.

    Waits for no device, but for lengths on one when the input is on the CPU.
    """
    if batch_sizes is not None:
        raise ValueError(
            "reset, lengths, return_states, return_gates, detach_every and grad_clip need padded "
            "input, got packed"
        )
    if detach_every is not None:
        detach_every = _whole_number("detach_every", detach_every)
    if grad_clip is not None:
        if isinstance(grad_clip, bool) or not grad_clip > 0:
            raise ValueError(f"grad_clip must be greater than 0, got {grad_clip!r}")
        grad_clip = float(grad_clip)
    reset, lengths = mask_of(reset, input), lengths_of(lengths)
    if reset is not None:
        if bidirectional:
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
    # h is the output; the cells and the gates have to be saved.
    trace = (return_states or return_gates) and (
        cell == "lstm" or (return_gates and reference.CELLS[cell].saved > 0)
    )
    options = ops.Options(reset, lengths, detach_every or 0, grad_clip or 0.0, trace)
    return Request(options, return_states or return_gates, return_gates)


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


def _whole_number(name: str, given) -> int:
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {given!r}")
    return int(given)


def _check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise RuntimeError(f"Expected {name} size {expected}, got {tuple(tensor.shape)}")


def _on_device_of(input: Tensor, lengths: Tensor, T: int) -> Tensor:
    """lengths as the ops take them. Those that leave the CPU are checked: the ops then do not."""
    if lengths.device == input.device:
        return lengths.to(torch.int64)
    reference_ops.check_lengths(lengths, T)
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
    cell: str, layers: list[tuple[Tensor, ...]], directions: int, batch_first: bool, gates: bool
) -> States:
    """The states of a call, as views.

    layers: of each what `ops.layer` returned: output (T, N, D*P), two final states and, where
        traced, gates (D, T*N, S, H) and cells (D, T*N, H).
    """

    def by_time(rows: Tensor, output: Tensor) -> Tensor:
        """(D, T*N, ...) as (T, N, D, ...), or (N, T, D, ...)."""
        planes = rows.unflatten(1, output.shape[:2]).movedim(0, 2)
        return planes.transpose(0, 1) if batch_first else planes

    h, c, activated = [], [], []
    for output, _, _, *traced in layers:
        user = output.transpose(0, 1) if batch_first else output
        h.append(user.unflatten(-1, (directions, -1)))
        if cell == "lstm":
            c.append(by_time(traced[1], output))
        if gates and traced:
            count = reference.CELLS[cell].gates
            activated.append(by_time(traced[0][:, :, :count], output))
        elif gates:
            activated.append(h[-1].detach().unsqueeze(-2))
    return States(tuple(h), tuple(c) or None, tuple(activated) if gates else None)
