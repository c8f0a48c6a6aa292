"""What RNN, LSTM and GRU share: the way from user input to the stack of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import direct, stack
from .arguments import check_state
from .call import Call, Stack
from .checks import check_dense, check_packed, check_step_state, has_own_checks
from .features import Asked, mask_of
from .interop import tracing
from .table import cell_of, weight_names
from .trees import map_tensors


class RNNBase(torch.nn.RNNBase):
    """What RNN, LSTM, GRU and Recurrent share: `forward`, and `step` for one time step.

    Use it with `isinstance`, and build one of the four. An RNN reads its attribute `mode`, which is
    RNN_TANH or RNN_RELU. The others do not, as in `torch.nn`: you may change it.

    Example:
        >>> isinstance(fastrnn.LSTM(10, 20), fastrnn.RNNBase)
        True
    """

    # Names of methods end in _: a user's subclass may have a `_step` or `_weights` of its own.
    torch_class: type[torch.nn.RNNBase] | None = None  # that does the same
    _cell_: str | None = None  # the cell's name, but of an RNN: `cell_of`
    _has_own_checks_ = False  # which the short way would pass over

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._has_own_checks_ = has_own_checks(cls)

    def _update_flat_weights(self) -> None:
        parameters = self._parameters
        for name, weight in zip(self._flat_weights_names, self._flat_weights, strict=True):
            if parameters.get(name) is not weight or weight is None:
                super()._update_flat_weights()
                break
        else:
            return
        for name, weight in zip(self._flat_weights_names, self._flat_weights, strict=True):
            if weight is None:
                raise TypeError(f"{name} is None, expected a tensor")

    def _are_weights_for_torch_(self) -> bool:
        """Whether weights, which are brought up to date, know torch's own functions alone."""
        if not torch.compiler.is_compiling():
            self._update_flat_weights()
        return self.torch_class is not None and tracing.are_own_affair(self._weights_())

    def _weights_(self) -> list[Tensor]:
        """The weights of all layers, which are up to date; another thread may replace those of the
        module meanwhile. A compiled graph reads the parameters: if it wrote to the module's list,
        the list might afterwards hold what a transform of `torch.func` had put in the place of the
        parameters."""
        if not torch.compiler.is_compiling():
            return list(self._flat_weights)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        for name, weight in zip(self._flat_weights_names, weights, strict=True):
            if weight is None:
                raise TypeError(f"{name} is None, expected a tensor")
        return weights

    def _is_recorded_(self) -> bool:
        """Whether the call is recorded as one of torch.nn."""
        return self.torch_class is not None and tracing.recording()

    def _zero_state_(self, input: Tensor, batch: int) -> Tensor | tuple[Tensor, Tensor]:
        planes = self.num_layers * (2 if self.bidirectional else 1)
        zeros = input.new_zeros(planes, batch, self.hidden_size)
        if self._cell_ != "lstm":
            return zeros
        return zeros[..., : self.proj_size] if self.proj_size else zeros, zeros

    def _state_names_(self) -> tuple[str, ...]:
        return ("h", "c") if self._cell_ == "lstm" else ("h",)

    def _check_form_(self, input: Tensor) -> None:
        if input.is_nested:
            raise RuntimeError("a nested tensor is not taken: give a PackedSequence, or lengths")
        check_dense("input", input)
        if input.dim() not in (2, 3):
            tensor = "" if self._cell_ else " tensor"
            name = self.torch_class.__name__ if self.torch_class else "Recurrent"
            got = f"got {input.dim()}D{tensor} instead"
            raise ValueError(f"{name}: Expected input to be 2D or 3D, {got}")

    def _check_state_rank_(self, hx: Tensor, batched: bool) -> None:
        if hx.dim() != (3 if batched else 2):
            kind, rank = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
            raise RuntimeError(
                f"For {kind} input, hx should also be {rank}-D but got {hx.dim()}-D tensor"
            )

    def _unsqueeze_state_(self, hx: Tensor) -> Tensor:
        return hx.unsqueeze(1)

    def _squeeze_state_(self, hx: Tensor) -> Tensor:
        return hx.squeeze(1)

    def _parts_(self, hx) -> tuple[Tensor, Tensor | None]:
        """The user's state as (h, c)."""
        return hx if self._cell_ == "lstm" else (hx, None)

    def _joined_(self, h: Tensor, c: Tensor | None):
        """(h, c) as the user's state."""
        return h if c is None else (h, c)

    def _named_weights_(
        self, input: Tensor, batch_sizes: Tensor | None, asked: Asked | None
    ) -> tuple[str, Sequence[Tensor]]:
        """The names of a direction's weights as in a `Call`, and those of all layers."""
        return weight_names(self.bias, self.proj_size > 0), self._weights_()

    def _run_(self, input: Tensor, hx, batch_sizes: Tensor | None, asked: Asked | None):
        """(output, state) of the stack, and States if asked for."""
        h0, c0 = self._parts_(hx)
        names, weights = self._named_weights_(input, batch_sizes, asked)
        directions, dropout = 2 if self.bidirectional else 1, self.dropout if self.training else 0.0
        count = self.num_layers * directions * (names.count(" ") + 1)  # may be less by now
        call = Call(input, batch_sizes, h0, c0, weights[:count], cell_of(self), names)
        whole = Stack(call, self.num_layers, directions, dropout, self.batch_first)
        whole = whole if asked is None else asked.of(whole)
        output, h_n, c_n, states = stack.run_named(whole)
        state = self._joined_(h_n, None if c0 is None else c_n)
        return (output, state) if states is None else (output, state, states)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        reset: Tensor | None = None,
        reset_state: Tensor | tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
        detach_every: int | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Any, ...]:
        """Runs all layers over all time steps.

        Args:
            input: (T, N, input_size), (N, T, input_size) if `batch_first`, (T, input_size)
                unbatched, or a PackedSequence.
            hx: initial state, zeros if None: (num_layers*D, N, H), without N if unbatched, in
                the order of the user's batch; D is 1 or 2 directions. An LSTM takes a pair
                (h, c), and its h has width `proj_size` if that is not 0.
            reset, reset_state, lengths, return_states, return_gates, detach_every, grad_clip: as
                in `functional.lstm`, for input that is not packed; `reset_state` in the form of
                `hx`. Unbatched input takes a `reset` of (T,) and no `lengths`.

        Returns:
            output, in the form of `input` with D*H features (D*proj_size for a projected LSTM;
            a transposed view if `batch_first`), and the final state, in the form of `hx`. With
            `return_states` or `return_gates` also States.

        Raises:
            ValueError: input has a wrong rank, or another dtype than the weights; a feature is out
                of its range, of a wrong dtype, or does not go with the input.
            RuntimeError: another size, dtype or device does not fit, there is no time step, or a
                length on the CPU is out of range.
        """
        asked = None
        plain = reset is lengths is detach_every is grad_clip is reset_state is None
        if not plain or return_states or return_gates:
            asked = Asked(
                reset, lengths, return_states, return_gates, detach_every, grad_clip, reset_state
            )
        return self._forward_(input, hx, asked)

    def _forward_(self, input: Tensor | PackedSequence, hx, asked: Asked | None):
        if type(input) is not Tensor:
            if isinstance(input, PackedSequence):
                return self._forward_packed_(input, hx, asked)
            if not isinstance(input, Tensor):
                return tracing.of_no_tensor(self, input, hx, asked and asked._asdict())
        batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        if not batched:
            self._check_form_(input)
            input = input.unsqueeze(batch_dim)
            asked = asked and asked.of_one_row(batch_dim, input)
        if hx is not None:
            self._check_state_rank_(hx, batched)
            if not batched:
                hx = self._unsqueeze_state_(hx)
        results = direct.stack(self, input, hx, None, asked)
        if results is None:
            self._check_form_(input)
            if self._is_recorded_() or self._are_weights_for_torch_():
                results = tracing.as_torch(self, input, hx, asked and asked._asdict())
        if results is None:
            if hx is None:
                self.check_input(input, None)
                hx = self._zero_state_(input, input.size(batch_dim))
            else:
                self.check_forward_args(input, hx, None)
            results = self._run_(input, hx, None, asked)
        if batched:
            return results
        output, state, *states = results
        states = map_tensors(lambda each: each.squeeze(batch_dim), states)
        return output.squeeze(batch_dim), self._squeeze_state_(state), *states

    def step(
        self,
        input: Tensor,
        state: Tensor | tuple[Tensor, Tensor] | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """One time step of all layers, for input that comes step by step.

        Args:
            input: (N, input_size).
            state: in the form of `hx`: what the step before returned; zeros if None.
            reset: (N,) bool. Where True the row begins anew, from zeros or from `reset_state`.
            reset_state: in the form of `state`.

        Returns:
            The last layer's output (N, P), and the state after the step.

        Raises:
            TypeError: input or state is not made of tensors.
            ValueError: the module is bidirectional, or as a call raises.
            RuntimeError: as a call raises.

        Example:
            >>> gru, h = fastrnn.GRU(10, 20), None
            >>> for frame in torch.randn(5, 3, 10):
            ...     y, h = gru.step(frame, h)
        """
        return self._step_(input, state, reset, reset_state)

    def _step_(self, input: Tensor, state, reset, reset_state, inputs=None):
        if self.bidirectional:
            raise ValueError("step needs a network of one direction: this one is bidirectional")
        try:
            rank = input.dim()
        except AttributeError as error:
            raise TypeError(f"input must be a tensor, got {type(input).__name__}") from error
        if rank != 2:
            raise ValueError(f"step: Expected input to be 2D, got {rank}D instead")
        reset = mask_of(reset, input)
        if reset is not None and reset.dim() != 1:
            raise RuntimeError(f"Expected reset size {(len(input),)}, got {tuple(reset.shape)}")
        time = 1 if self.batch_first else 0
        reset = None if reset is None else reset.unsqueeze(time)
        given = {} if inputs is None else {"inputs": inputs}
        try:
            output, state = self(
                input.unsqueeze(time), state, reset=reset, reset_state=reset_state, **given
            )
        except (AttributeError, TypeError, LookupError):  # as torch says what is no state
            if state is not None:
                check_state(state, self._state_names_())
            raise
        except RuntimeError as error:  # whose words are of a reset with a time
            check_step_state(self, input, state)
            due, got = input.shape[:1], None if reset is None else reset.squeeze(time).shape
            if got not in (None, due):
                raise RuntimeError(f"Expected reset size {(*due,)}, got {(*got,)}") from error
            raise
        return output.squeeze(time), state

    def _forward_packed_(self, packed: PackedSequence, hx, asked: Asked | None):
        if self._is_recorded_():
            return tracing.as_torch(self, packed, hx, asked and asked._asdict())
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        check_packed(input, batch_sizes, None, None)
        given = hx
        if hx is not None:
            if torch.compiler.is_compiling():
                self.check_input(input, batch_sizes)  # the op knows how many rows there are
            else:
                self._update_flat_weights()
                self.check_forward_args(input, hx, batch_sizes)
            hx = self.permute_hidden(hx, sorted_indices)
        results = direct.stack(self, input, hx, batch_sizes, asked)
        if results is None:
            if self._are_weights_for_torch_():
                return tracing.as_torch(self, packed, given, asked and asked._asdict())
            if hx is None:
                self.check_input(input, batch_sizes)
                hx = self._zero_state_(input, int(batch_sizes[0]))
            results = self._run_(input, hx, batch_sizes, asked)
        output, state = results
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(state, unsorted_indices)
