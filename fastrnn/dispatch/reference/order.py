"""The order in which a direction of a layer takes its rows, as tensors of all time steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Call


class Order:
    """From each row's own first step to its own last: (T, N, ...), zeros where it takes no step.

    keep: (T, N, 1), False where a step sees zeros in the place of the states before it, or None.
    passes: (T, N, 1), 0 where no gradient goes to the states before a step, or None.
    """

    def __init__(self, call: Call, reverse: bool) -> None:
        T = len(call.input if call.batch_sizes is None else call.batch_sizes)
        N = call.h0.size(1)
        device, self.size, self.reverse = call.input.device, (T, N), reverse
        steps = torch.arange(T, device=device).unsqueeze(1)
        self.lengths, self.packed, self.index, self.taken = call.lengths, None, None, None
        if call.batch_sizes is not None:
            taken = torch.arange(N, device="cpu") < call.batch_sizes.unsqueeze(1)
            self.packed = taken.flatten().nonzero().squeeze(1).to(device)
            self.lengths = taken.sum(0).to(device)
        if self.lengths is not None:
            self.taken = (steps < self.lengths).unsqueeze(-1)
            if reverse:
                self.index = torch.where(self.taken[..., 0], self.lengths - 1 - steps, steps)
        self.keep = None if call.reset is None else ~self._turned(call.reset).unsqueeze(-1)
        self.passes = self.keep
        if call.detach_every:
            at = self._turned(steps.expand(T, N)) + int(reverse)
            within = ((at % call.detach_every != 0) | (steps == 0)).unsqueeze(-1)
            self.passes = within if self.keep is None else within & self.keep
        if self.passes is not None:
            self.passes = self.passes.to(call.input.dtype)

    def _turned(self, tensor: Tensor) -> Tensor:
        """(T, N, ...) from the order of time to this one, and back."""
        if not self.reverse:
            return tensor
        if self.index is None:
            return tensor.flip(0)
        index = self.index[(...,) + (None,) * (tensor.dim() - 2)]
        return tensor.gather(0, index.expand_as(tensor))

    def cleared(self, tensor: Tensor) -> Tensor:
        if self.lengths is None:
            return tensor
        return tensor.where(self.taken[(...,) + (None,) * (tensor.dim() - 3)], 0)

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """From the order of the call: (T, N, ...), or (rows, ...) of packed input."""
        if tensor is None:
            return None
        if self.packed is not None:
            T, N = self.size
            whole = tensor.new_zeros(T * N, *tensor.shape[1:])
            tensor = whole.index_copy(0, self.packed, tensor).unflatten(0, (T, N))
            return self._turned(tensor)
        return self.cleared(self._turned(tensor))

    def back(self, tensor: Tensor) -> Tensor:
        """Into the order of the call."""
        tensor = self._turned(self.cleared(tensor))
        return tensor if self.packed is None else tensor.flatten(0, 1)[self.packed]

    def before(self, states: Tensor, first: Tensor, at: slice) -> Tensor:
        """The states that some steps see, from those that all steps leave."""
        if at.start:
            before = states[at.start - 1 : at.stop - 1]
        else:
            before = torch.cat((first.unsqueeze(0), states[: at.stop - 1]))
        before = before[: len(states) - at.start]
        return before if self.keep is None else before.where(self.keep[at], 0)

    def with_last(self, states: Tensor | None, last: Tensor | None) -> Tensor | None:
        """What arrives at the states of all steps, and at those of the last one of each row."""
        if last is None:
            return states
        T, N = self.size
        if self.lengths is None:
            ended = torch.arange(T, device=last.device) == T - 1
            ended = ended.view(T, 1, 1)
        else:
            ended = torch.arange(T, device=last.device).unsqueeze(1) == self.lengths - 1
            ended = ended.unsqueeze(-1)
        last = last.where(ended, 0)
        return last if states is None else states + last

    def last(self, states: Tensor, first: Tensor) -> Tensor:
        """The states after the last step of each row."""
        if self.lengths is None:
            return states[-1]
        at = (self.lengths - 1).clamp(min=0).view(1, -1, 1)
        found = states.gather(0, at.expand(1, *states.shape[1:])).squeeze(0)
        return found.where(self.lengths.unsqueeze(1) > 0, first)

    def of_no_step(self, last: Tensor | None) -> Tensor | None:
        """What arrives at the last states of rows without a step, which are the initial ones."""
        if last is None or self.lengths is None:
            return None
        return last.where(self.lengths.unsqueeze(1) == 0, 0)
