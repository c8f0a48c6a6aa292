"""RNN, LSTM and GRU, as in `torch.nn`: same parameters, results and errors.

Construction, parameter bookkeeping and pickling are those of `torch.nn.RNNBase`. The modules do
not derive from `torch.nn.LSTM` and its siblings, because `torch.compile` refuses any instance of
these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import direct, functional
from .trees import map_tensors

__all__ = ["GRU", "LSTM", "RNN", "RNNBase"]

DIFFERENCES = """\
Where torch.nn accepts a mistake, or fails somewhere inside, the modules raise and say why:
- A weight of a wrong shape raises RuntimeError; torch.nn's LSTM may compute with it.
- hx is checked before it is permuted into the order of a PackedSequence, so a batch larger than
  the sequence's raises RuntimeError; torch.nn takes some of its rows.
- An LSTM given a PackedSequence checks the input, and that hx is a pair of the right sizes, as it
  does for a tensor (a wrong dtype stays a RuntimeError).
- batch_sizes that increase, or hold a zero, or do not sum to the rows raise RuntimeError.
- GRU and RNN refuse a proj_size by position as by keyword; torch.nn builds a projection that it
  does not use. In that place they take `device`, as documented.
- Tensors of different dtypes or devices raise RuntimeError that names both.
- A cell raises RuntimeError for an unbatched hx with batched input, and the reverse, and an
  LSTMCell for an hx that is not a pair.
Where torch.nn is limited, they work: vmap and per-sample gradients, forward-mode AD of the float32
LSTM, torch.compile(fullgraph=True), a bidirectional that is not a bool.
Under autocast on the CPU they compute in float32, and return the dtypes of torch.nn.
"""

_FUNCTIONS = {name.upper(): getattr(functional, name) for name in functional.__all__}
_PROJ_SIZE = "proj_size argument is only supported for LSTM, not RNN or GRU"


def _unsqueeze_features(asked: dict, batch_dim: int) -> None:
    """Makes what came with unbatched input fit the batch of one."""
    reset = asked["reset"]
    if asked["lengths"] is not None:
        raise ValueError("lengths need batched input, got unbatched")
    if reset is not None:
        if reset.dim() != 1:
            raise RuntimeError(f"For unbatched input, reset should be 1-D but got {reset.dim()}-D")
        asked["reset"] = reset.unsqueeze(batch_dim)


class RNNBase(torch.nn.RNNBase):
    """What RNN, LSTM and GRU share: the way from user input to the stack of layers.

    Derived classes are told apart by `mode`: LSTM, GRU, RNN_TANH or RNN_RELU.
    """

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

    def _zero_state(self, input: Tensor, batch: int):
        layers = self.num_layers * (2 if self.bidirectional else 1)
        return input.new_zeros(layers, batch, self.hidden_size)

    def _check_state_rank(self, hx: Tensor, batched: bool) -> None:
        if hx.dim() != (3 if batched else 2):
            kind, rank = ("batched 3-D", 3) if batched else ("unbatched 2-D", 2)
            raise RuntimeError(
                f"For {kind} input, hx should also be {rank}-D but got {hx.dim()}-D tensor"
            )

    def _unsqueeze_state(self, hx: Tensor) -> Tensor:
        return hx.unsqueeze(1)

    def _squeeze_state(self, hx: Tensor) -> Tensor:
        return hx.squeeze(1)

    def _run(self, input: Tensor, hx: Tensor, batch_sizes: Tensor | None, asked: dict | None):
        """(output, state) of the stack, and States if asked for."""
        function = _FUNCTIONS[self.mode]
        arguments = (
            input,
            hx,
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            batch_sizes,
        )
        return function(*arguments) if asked is None else function(*arguments, **asked)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx=None,
        *,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
        detach_every: int | None = None,
        grad_clip: float | None = None,
    ):
        """Runs all layers over all time steps.

        Args:
            input: (T, N, input_size), (N, T, input_size) if `batch_first`, (T, input_size)
                unbatched, or a PackedSequence.
            hx: initial state, zeros if None: (num_layers*D, N, H), without N if unbatched, in
                the order of the user's batch; D is 1 or 2 directions. An LSTM takes a pair
                (h, c), and its h has width `proj_size` if that is not 0.
            reset, lengths, return_states, return_gates, detach_every, grad_clip: as in
                `functional.lstm`, for input that is not packed. Unbatched input takes a `reset`
                of (T,) and no `lengths`.

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
        plain = reset is lengths is detach_every is grad_clip is None
        if not plain or return_states or return_gates:
            asked = {
                "reset": reset,
                "lengths": lengths,
                "return_states": return_states,
                "return_gates": return_gates,
                "detach_every": detach_every,
                "grad_clip": grad_clip,
            }
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, asked)
        rank = input.dim()
        if input.is_nested:
            raise RuntimeError("a nested tensor is not taken: give a PackedSequence, or lengths")
        if rank not in (2, 3):
            tensor = " tensor" if self.mode.startswith("RNN") else ""
            raise ValueError(
                f"{self.mode.split('_')[0]}: Expected input to be 2D or 3D, "
                f"got {rank}D{tensor} instead"
            )
        batched = rank == 3
        batch_dim = 0 if self.batch_first else 1
        if not batched:
            input = input.unsqueeze(batch_dim)
            if asked:
                _unsqueeze_features(asked, batch_dim)
        if hx is not None:
            self._check_state_rank(hx, batched)
            if not batched:
                hx = self._unsqueeze_state(hx)
        results = direct.stack(self, input, hx) if asked is None else None
        if results is None:
            self._update_flat_weights()
            if hx is None:
                self.check_input(input, None)
                hx = self._zero_state(input, input.size(batch_dim))
            else:
                self.check_forward_args(input, hx, None)
            results = self._run(input, hx, None, asked)
        if batched:
            return results
        output, state, *states = results
        states = map_tensors(lambda each: each.squeeze(batch_dim), states)
        return output.squeeze(batch_dim), self._squeeze_state(state), *states

    def step(self, input: Tensor, state=None, reset: Tensor | None = None):
        """One time step of all layers, for input that comes step by step.

        Args:
            input: (N, input_size).
            state: as `hx` of a call, and what the step before returned; zeros if None.
            reset: (N,) bool. Where True the row begins anew, from a state of zero.

        Returns:
            The last layer's output (N, P), and the state after the step.

        Raises:
            ValueError: the module is bidirectional, or as a call raises.
            RuntimeError: as a call raises.
        """
        if self.bidirectional:
            raise ValueError("step needs a network of one direction: this one is bidirectional")
        if input.dim() != 2:
            raise ValueError(f"step: Expected input to be 2D, got {input.dim()}D instead")
        if reset is not None and reset.dim() != 1:
            raise RuntimeError(f"Expected reset size {(len(input),)}, got {tuple(reset.shape)}")
        time = 1 if self.batch_first else 0
        reset = None if reset is None else reset.unsqueeze(time)
        output, state = self(input.unsqueeze(time), state, reset=reset)
        return output.squeeze(time), state

    def _forward_packed(self, packed: PackedSequence, hx, asked: dict | None):
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
            raise RuntimeError("batch_sizes must be a 1-D int64 tensor on the CPU")
        self._update_flat_weights()
        if hx is not None:
            self.check_forward_args(input, hx, batch_sizes)
            hx = self.permute_hidden(hx, sorted_indices)
        results = direct.stack(self, input, hx, batch_sizes) if asked is None else None
        if results is None:
            if hx is None:
                self.check_input(input, batch_sizes)
                hx = self._zero_state(input, int(batch_sizes[0]))
            results = self._run(input, hx, batch_sizes, asked)
        output, state = results
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(state, unsorted_indices)


class RNN(RNNBase):
    """Elman network, h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with ReLU; as `torch.nn.RNN`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        **kwargs,
    ) -> None:
        if "proj_size" in kwargs or isinstance(device, int):
            raise ValueError(_PROJ_SIZE)
        self.nonlinearity = nonlinearity
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **kwargs,
        )


class GRU(RNNBase):
    """Gated recurrent unit, reset after the product; as `torch.nn.GRU`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        **kwargs,
    ) -> None:
        if "proj_size" in kwargs or isinstance(device, int):
            raise ValueError(_PROJ_SIZE)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **kwargs,
        )


class LSTM(RNNBase):
    """Long short-term memory, optionally with a projection of h; as `torch.nn.LSTM`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The size of c: (num_layers*D, N, H)."""
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.hidden_size

    def check_forward_args(
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raises as `RNNBase.check_forward_args`, for a pair of states."""
        if len(hidden) != 2:
            raise RuntimeError("lstm expects two hidden states")
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises as `RNNBase.check_input`; for packed input a wrong dtype is a RuntimeError."""
        if batch_sizes is None:
            super().check_input(input, batch_sizes)
            return
        try:
            super().check_input(input, batch_sizes)
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    def permute_hidden(
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The pair of states with its batch in the order of `permutation`."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def _zero_state(self, input: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        c = super()._zero_state(input, batch)
        return c[..., : self.proj_size] if self.proj_size else c, c

    def _check_state_rank(self, hx: tuple[Tensor, Tensor], batched: bool) -> None:
        rank = 3 if batched else 2
        h, c = hx[0].dim(), hx[1].dim()
        if h != rank or c != rank:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {rank}-D but got ({h}-D, {c}-D) "
                "tensors"
            )

    def _unsqueeze_state(self, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return hx[0].unsqueeze(1), hx[1].unsqueeze(1)

    def _squeeze_state(self, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return hx[0].squeeze(1), hx[1].squeeze(1)

    def _run(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor],
        batch_sizes: Tensor | None,
        asked: dict | None,
    ):
        results = super()._run(input, hx, batch_sizes, asked)
        return results[0], results[1:3], *results[3:]
