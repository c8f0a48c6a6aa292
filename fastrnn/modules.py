"""RNN, LSTM and GRU, as in `torch.nn`: same parameters, results and errors.

Construction, parameter bookkeeping and pickling are those of `torch.nn.RNNBase`. The modules pass
for instances of `torch.nn.LSTM` and its siblings but do not derive from them, because
`torch.compile` refuses whatever does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from .base import RNNBase
from .interop import AsTorch

__all__ = ["GRU", "LSTM", "RNN", "RNNBase"]

_PROJ_SIZE = "proj_size argument is only supported for LSTM, not RNN or GRU"


class RNN(AsTorch, RNNBase):
    """Elman network (Elman 1990, "Finding structure in time"); as `torch.nn.RNN`.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        nonlinearity: "tanh" or "relu".
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (N, T, features), not (T, N, features).
        dropout: probability of zeroing an element of what a layer gives the next one, in training.
        bidirectional: whether a second direction reads the sequence from its end; D is 2 then.
        device, dtype: of the parameters.

    Shapes of a call `output, h_n = rnn(input, h_0)`, see `forward`:
        input: (T, N, I), (N, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        output: as the input, with D*H features: of the last layer, forward first.
        h_0, h_n: (D*L, N, H), without N if unbatched; zeros if not given.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first, of layer k; those of the second
    direction end in `_reverse`:
        weight_ih_lk: (H, I), or (H, D*H) above the first layer.
        weight_hh_lk: (H, H).
        bias_ih_lk, bias_hh_lk: (H,).

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.

    Example:
        >>> rnn = fastrnn.RNN(10, 20, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(5, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 20]), torch.Size([1, 20]))
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
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
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
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), in the form of cuDNN, which resets
    after the product; as `torch.nn.GRU`.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (N, T, features), not (T, N, features).
        dropout: probability of zeroing an element of what a layer gives the next one, in training.
        bidirectional: whether a second direction reads the sequence from its end; D is 2 then.
        device, dtype: of the parameters.

    Shapes of a call `output, h_n = gru(input, h_0)`, see `forward`:
        input: (T, N, I), (N, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        output: as the input, with D*H features: of the last layer, forward first.
        h_0, h_n: (D*L, N, H), without N if unbatched; zeros if not given.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first, of layer k; those of the second
    direction end in `_reverse`:
        weight_ih_lk: (3*H, I), or (3*H, D*H) above the first layer.
        weight_hh_lk: (3*H, H).
        bias_ih_lk, bias_hh_lk: (3*H,).
        The gates are in the order r, z, n.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.

    Example:
        >>> gru = fastrnn.GRU(10, 20, batch_first=True)
        >>> output, h_n = gru(torch.randn(3, 5, 10), torch.randn(1, 3, 20))
        >>> output.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    torch_class = torch.nn.GRU
    _cell_ = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
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
    """Long short-term memory (Gers, Schmidhuber & Cummins 2000, "Learning to forget"), optionally
    with a projection of h (Sak et al. 2014, arXiv 1402.1128); as `torch.nn.LSTM`.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      c' = f * c + i * g
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)      h' = o * tanh(c')
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)         or W_hr (o * tanh(c')) with `proj_size`
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        num_layers: L, layers on top of each other; each takes the output of the one below.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (N, T, features), not (T, N, features).
        dropout: probability of zeroing an element of what a layer gives the next one, in training.
        bidirectional: whether a second direction reads the sequence from its end; D is 2 then.
        proj_size: P, the width of a projected h; 0 for none.
        device, dtype: of the parameters.

    Shapes of a call `output, (h_n, c_n) = lstm(input, (h_0, c_0))`, see `forward`:
        input: (T, N, I), (N, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        output: as the input, with D*P features: of the last layer, forward first.
        h_0, h_n: (D*L, N, P), and c_0, c_n: (D*L, N, H), without N if unbatched; zeros if
            not given. P is H, or `proj_size` if that is not 0.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first, of layer k; those of the second
    direction end in `_reverse`:
        weight_ih_lk: (4*H, I), or (4*H, D*P) above the first layer.
        weight_hh_lk: (4*H, P).
        bias_ih_lk, bias_hh_lk: (4*H,).
        weight_hr_lk: (P, H), with `proj_size`. The gates are in the order i, f, g, o.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong type, as in `torch.nn`.

    Example:
        >>> lstm = fastrnn.LSTM(10, 20, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]), torch.Size([4, 3, 20]))
    """

    torch_class = torch.nn.LSTM
    _cell_ = "lstm"

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
        device: Device = None,
        dtype: torch.dtype | None = None,
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

    def _check_state_rank_(self, hx: tuple[Tensor, Tensor], batched: bool) -> None:
        rank = 3 if batched else 2
        h, c = hx[0].dim(), hx[1].dim()
        if h != rank or c != rank:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {rank}-D but got ({h}-D, {c}-D) "
                "tensors"
            )

    def _unsqueeze_state_(self, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return hx[0].unsqueeze(1), hx[1].unsqueeze(1)

    def _squeeze_state_(self, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return hx[0].squeeze(1), hx[1].squeeze(1)
