"""RNNCell, GRUCell and LSTMCell, as in `torch.nn`: same parameters, results and errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.types import Device

from . import direct, dispatch, functional
from .arguments import kind_of
from .checks import check_dense
from .interop import AsTorch, tracing

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _CellBase(torch.nn.RNNCellBase):
    """What the cells share: a cell is a layer of one time step. Names end in _ as in `RNNBase`."""

    def _step_(self, name: str, cell: str, input: Tensor, states: tuple[Tensor, ...] | None):
        """The states after one step of `cell`; zeros if None. `name` is the class in messages."""
        rank = input.dim()
        if rank not in (1, 2):
            check_dense(f"{name}: input", input)
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {rank}D instead")
        if states is not None:
            self._check_state_ranks_(name, states, rank)
        if rank == 1:
            check_dense(f"{name}: input", input)
            input = input.unsqueeze(0)
            states = states and tuple(state.unsqueeze(0) for state in states)
        results = direct.step(self, cell, input, states)
        if results is None:
            check_dense(f"{name}: input", input)
        if results is None and tracing.recording():
            hx = states if states is None or cell == "lstm" else states[0]
            results = tracing.as_torch(self, input, hx)
            results = results if cell == "lstm" else (results,)
        if results is None:
            results = self._long_step_(cell, input, states)
        return results if rank == 2 else tuple(state.squeeze(0) for state in results)

    def _long_step_(self, cell: str, input: Tensor, states: tuple[Tensor, ...] | None):
        """`_step_` of batched input through the op, with all checks."""
        weights, bias = self._weights_()
        if states is None:
            h = input.new_zeros(input.size(0), self.hidden_size)
            states = (h, h) if cell == "lstm" else (h,)
        for name, weight in zip(("weight_ih", "weight_hh"), weights, strict=False):
            if weight.dim() != 2:
                raise RuntimeError(f"{name} must have 2 dimensions, got {weight.dim()}")
        batch, width = input.shape
        if width != weights[0].size(1):
            raise RuntimeError(
                f"input has inconsistent input_size: got {width} expected {weights[0].size(1)}"
            )
        for k, state in enumerate(states):
            self._check_state_sizes_(k, state, batch, weights[1].size(-1))
        h, c = states if cell == "lstm" else (*states, None)
        try:
            return functional.step(cell, input, h, c, weights, bias)
        except RuntimeError:
            alike = all(each.dtype == h.dtype for each in (input, *weights))
            if c is None or c.dtype == h.dtype or not alike:
                raise
        return tracing.as_torch(self, input, states)  # which computes c in the wider dtype

    def _weights_(self) -> tuple[list[Tensor], bool]:
        """The weights in the order of the op, and whether there are biases."""
        p = self._parameters
        try:
            w_ih, w_hh, b_ih, b_hh = p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
        except KeyError:  # a parametrization, or a plain tensor in place of the parameter
            w_ih, w_hh, b_ih, b_hh = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        for name, weight in (("weight_ih", w_ih), ("weight_hh", w_hh)):
            if weight is None:
                raise TypeError(f"{name} is None, expected a tensor")
        if b_ih is None and b_hh is None:
            return [w_ih, w_hh], False
        b_ih = torch.zeros_like(b_hh) if b_ih is None else b_ih
        b_hh = torch.zeros_like(b_ih) if b_hh is None else b_hh
        return [w_ih, w_hh, b_ih, b_hh], True

    def _check_state_ranks_(self, name: str, states: tuple[Tensor, ...], rank: int) -> None:
        """ValueError for ranks that no input has, RuntimeError if not that of this input, TypeError
        for a tensor in place of a pair, AttributeError, as of torch.nn, for what is no tensor."""
        if isinstance(states, Tensor) and rank == 2:
            raise TypeError(f"{name}: hx must be a pair of tensors (h, c), got one tensor")
        pair = name == "LSTMCell"
        try:
            ranks = [state.dim() for state in states]
        except AttributeError as error:
            wanted = "a pair of tensors (h, c)" if pair else "a tensor"
            given = kind_of(states if pair else states[0])
            raise AttributeError(f"{name}: hx must be {wanted}, got {given}") from error
        for k, found in enumerate(ranks):
            if found not in (1, 2):
                hx = f"hx[{k}]" if pair else "hidden"
                raise ValueError(f"{name}: Expected {hx} to be 1D or 2D, got {found}D instead")
        if pair and len(states) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        for k, found in enumerate(ranks):
            if found != rank:
                raise RuntimeError(
                    f"{name}: For {rank}D input, hidden{k} should also be {rank}D, got {found}D"
                )

    def _check_state_sizes_(self, k: int, state: Tensor, batch: int, width: int) -> None:
        if state.size(0) != batch:
            raise RuntimeError(
                f"Input batch size {batch} doesn't match hidden{k} batch size {state.size(0)}"
            )
        if state.size(1) not in (self.hidden_size, width):  # torch.nn goes by the weight alone
            raise RuntimeError(
                f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, "
                f"expected {self.hidden_size}"
            )


class RNNCell(AsTorch, _CellBase):
    """One step of RNN; as `torch.nn.RNNCell`.

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        bias: whether there are bias_ih and bias_hh.
        nonlinearity: "tanh" or "relu".
        device, dtype: of the parameters.

    Shapes of a call `h' = cell(input, h)`:
        input: (N, I), or (I,) unbatched.
        h, h': (N, H), or (H,) unbatched; h is zeros if not given.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first:
        weight_ih: (H, I).
        weight_hh: (H, H).
        bias_ih, bias_hh: (H,).

    Example:
        >>> cell, h = fastrnn.RNNCell(10, 20), torch.zeros(3, 20)
        >>> for x in torch.randn(5, 3, 10):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 20])
    """

    torch_class = torch.nn.RNNCell
    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' (N, H), or (H,) for input (input_size,). hx is zeros if None.

        Raises:
            ValueError: a wrong rank.
            RuntimeError: a size, dtype or device does not fit, or the nonlinearity is unknown.
        """
        if not isinstance(input, Tensor):
            return tracing.of_no_tensor(self, input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        cell = f"rnn_{self.nonlinearity}"
        if torch.is_grad_enabled() and input.dim() == 2 and not input.is_nested:
            weights, _ = self._weights_()
            h = input.new_zeros(input.size(0), self.hidden_size) if hx is None else hx
            if isinstance(h, Tensor) and dispatch.is_torch_step(input, h, weights):
                return getattr(torch, f"{cell}_cell")(input, h, *weights)
        return self._step_("RNNCell", cell, input, None if hx is None else (hx,))[0]


class GRUCell(AsTorch, _CellBase):
    """One step of GRU; as `torch.nn.GRUCell`.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        bias: whether there are bias_ih and bias_hh.
        device, dtype: of the parameters.

    Shapes of a call `h' = cell(input, h)`:
        input: (N, I), or (I,) unbatched.
        h, h': (N, H), or (H,) unbatched; h is zeros if not given.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first:
        weight_ih: (3*H, I).
        weight_hh: (3*H, H).
        bias_ih, bias_hh: (3*H,).
        The gates are in the order r, z, n.

    Example:
        >>> cell = fastrnn.GRUCell(10, 20)
        >>> cell(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    torch_class = torch.nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h' (N, H), or (H,) for input (input_size,). hx is zeros if None.

        Raises:
            ValueError: a wrong rank.
            RuntimeError: a size, dtype or device does not fit.
        """
        if not isinstance(input, Tensor):
            return tracing.of_no_tensor(self, input, hx)
        return self._step_("GRUCell", "gru", input, None if hx is None else (hx,))[0]


class LSTMCell(AsTorch, _CellBase):
    """One step of LSTM; as `torch.nn.LSTMCell`.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      c' = f * c + i * g
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)      h' = o * tanh(c')
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)

    Args:
        input_size, hidden_size: I and H, features of the input and of the state.
        bias: whether there are bias_ih and bias_hh.
        device, dtype: of the parameters.

    Shapes of a call `h', c' = cell(input, (h, c))`:
        input: (N, I), or (I,) unbatched.
        h, c, h', c': (N, H), or (H,) unbatched; h and c are zeros if not given.

    Parameters, uniform in (-1/sqrt(H), 1/sqrt(H)) at first:
        weight_ih: (4*H, I).
        weight_hh: (4*H, H).
        bias_ih, bias_hh: (4*H,).
        The gates are in the order i, f, g, o.

    Example:
        >>> cell = fastrnn.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10), (torch.zeros(3, 20), torch.zeros(3, 20)))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    torch_class = torch.nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(h', c'), each (N, H), or (H,) for input (input_size,). hx is zeros if None.

        Raises:
            ValueError: a wrong rank.
            RuntimeError: a size, dtype or device does not fit. c alone may have another dtype.
        """
        if not isinstance(input, Tensor):
            return tracing.of_no_tensor(self, input, hx)
        return self._step_("LSTMCell", "lstm", input, hx)
