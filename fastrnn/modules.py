"""RNN, LSTM and GRU, as in `torch.nn`: same parameters, results and errors.

Construction, parameter bookkeeping and pickling are those of `torch.nn.RNNBase`. The modules pass
for instances of `torch.nn.LSTM` and its siblings but do not derive from them, because
`torch.compile` refuses whatever does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import RNNBase
from .interop import AsTorch

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
On a CPU the kernels take denormal numbers, below 1.2e-38 or in float64 2.3e-308, for zeros.
torch.nn computes with them, slowly. The caller's own floating-point state is as before.
Under autocast on the CPU they return the dtypes of torch.nn. They compute small calls, and those in
float16, in float32.
"""

_PROJ_SIZE = "proj_size argument is only supported for LSTM, not RNN or GRU"


class RNN(AsTorch, RNNBase):
    """Elman network, h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with ReLU; as `torch.nn.RNN`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    torch_class = torch.nn.RNN

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


class GRU(AsTorch, RNNBase):
    """Gated recurrent unit, reset after the product; as `torch.nn.GRU`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    torch_class = torch.nn.GRU

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


class LSTM(AsTorch, RNNBase):
    """Long short-term memory, optionally with a projection of h; as `torch.nn.LSTM`.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.
    """

    torch_class = torch.nn.LSTM

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
