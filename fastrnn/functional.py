"""LSTM, GRU and RNN as functions over flat lists of weights.

The list has the order of `torch.nn`: for each layer and each direction w_ih (G*H, in), w_hh
(G*H, P), then b_ih and b_hh (G*H,) if `bias`, then w_hr (P, H) if an LSTM is projected. G is the
number of gates: 4 of an LSTM, 3 of a GRU, 1 of an RNN. `in` is the input size for the first layer
and D*P for the others, D is 1 or 2 directions, P is the projection size or H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from types import NoneType

import torch
from torch import Tensor

from . import autocast, direct, dispatch, ops, stack
from .arguments import check_flag, check_kind, check_rate, count_of
from .call import Call, Stack
from .checks import check_batch_sizes, check_dense
from .features import Asked
from .table import names_in

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]


def _run(
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    *asked,
) -> tuple[Tensor, ...]:
    """What the functions share: the stack described, and run. Errors name an argument of a wrong
    kind."""
    try:
        _check_rank("input", input, 3 if batch_sizes is None else 2)
        for name, state in (("h0", h0), ("c0", c0)):
            if state is not None:
                _check_rank(name, state, 3)
        if batch_sizes is not None:
            check_batch_sizes(input, batch_sizes)
        if type(num_layers) is not int:
            num_layers = count_of("num_layers", num_layers)
        D = 2 if bidirectional else 1
        names = names_in(cell, bias, len(weights) // (num_layers * D))
        call = Call(input, batch_sizes, h0, c0, weights, cell, names)
        whole = Stack(call, num_layers, D, dropout if training else 0.0, batch_first)
        features = Asked(*asked)
        features = features if features.any() else None
        returned = direct.run(whole, features)
        if returned is None:
            returned = stack.run_named(whole if features is None else features.of(whole))
        output, h_n, c_n, states = returned
        results = (output, h_n, c_n) if c0 is not None else (output, h_n)
        return results if states is None else (*results, states)
    except (AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError):
        _check_kinds(
            cell, input, h0, c0, weights, bias, num_layers, dropout, training, bidirectional,
            batch_first, batch_sizes, *asked,
        )  # fmt: skip
        raise


def _check_kinds(
    cell, input, h0, c0, weights, bias, num_layers, dropout, training, bidirectional, batch_first,
    batch_sizes, reset, lengths, return_states, return_gates, *_,
) -> None:  # fmt: skip
    """TypeError or ValueError if an argument that is not of `Asked` is of a wrong kind."""
    check_kind("input", input, Tensor, "a tensor")
    check_kind("h0", h0, Tensor, "a tensor")
    if cell == "lstm":
        check_kind("c0", c0, Tensor, "a tensor")
    check_kind("weights", weights, Iterable, "a list of tensors")
    for k, weight in enumerate(weights):
        check_kind(f"weights[{k}]", weight, Tensor, "a tensor")
        check_dense(f"weights[{k}]", weight)
    for name, given in (("input", input), ("h0", h0), ("c0", c0)):
        if given is not None:
            check_dense(name, given)
    count_of("num_layers", num_layers)
    check_rate("dropout", dropout, with_one=True)
    check_kind("batch_sizes", batch_sizes, (Tensor, NoneType), "a tensor")
    for name, flag in {
        "bias": bias,
        "training": training,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
        "return_states": return_states,
        "return_gates": return_gates,
    }.items():
        check_flag(name, flag)


def _check_rank(name: str, tensor: Tensor, rank: int) -> None:
    if tensor.dim() != rank:
        raise RuntimeError(f"{name} must have {rank} dimensions, got {tensor.dim()}")


def step(
    cell: str, input: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor], bias: bool
) -> tuple[Tensor, ...]:
    """One time step of one layer: (h',) or, for lstm, (h', c').

    Args:
        input: (N, in).
        h, c: (N, H); c is None but for lstm.
        weights: w_ih, w_hh, then b_ih and b_hh if `bias`.

    Raises:
        RuntimeError: ranks, sizes, dtypes or devices do not fit.
    """
    names = names_in(cell, bias, len(weights))
    call = Call(input, None, h, c, weights, cell, names)
    cast = autocast.is_on(input)
    if dispatch.takes_torch_step(call):
        if not cast:
            call.attached()  # and its checks
        results = getattr(torch, f"{cell}_cell")(input, h if c is None else (h, c), *weights)
        return (results,) if c is None else results
    if torch.compiler.is_compiling():
        call.check_weights(input.size(-1))
    try:
        if cast:
            _, *states, _ = stack.run(Stack(call.over_time(), 1, 1, 0.0, False), step=True)
            h, c_n = [t if t is None else t.squeeze(0) for t in states]
        else:
            h, c_n = ops.step(call)
    except (IndexError, RuntimeError):
        call.check_weights(input.size(-1))  # in the names of parameters, if that is what is wrong
        raise
    return (h,) if c is None else (h, c_n)


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    return_gates: bool = False,
    detach_every: int | None = None,
    grad_clip: float | None = None,
) -> tuple[Tensor, ...]:
    """A stack of LSTM layers: (output, h_n, c_n).

    Args:
        input: (T, N, in), (N, T, in) if `batch_first`, or (rows, in) with `batch_sizes`.
        hx: h0 (num_layers*D, N, P) and c0 (num_layers*D, N, H).
        weights: flat, in the order of `torch.nn`.
        bias: whether `weights` has b_ih and b_hh.
        num_layers, bidirectional, batch_first: as of `LSTM`.
        dropout: probability of zeroing an element of what a layer gives the next one.
        training: whether there is dropout.
        batch_sizes: (T,) int64 on the CPU for the data of a PackedSequence. `hx` and the final
            states are then in its sorted order, and `batch_first` has no meaning.

    The rest needs padded input. `reset` and `lengths` may be lists, tuples or numpy arrays, too:
        reset: (T, N) bool, (N, T) if `batch_first`. Where True, h and c of the row are zero before
            the step, in every layer. Not bidirectional.
        reset_state: h and c of such a row in place of zero: a pair in the form of `hx`, or of
            (T, num_layers, N, ...), one for each step. Gradients flow into it. With it, a
            call waits for a `reset` on a GPU, dropout draws other masks than without it, and a
            compiled graph takes one step at a time.
        lengths: (N,) of any integer dtype, on any device, each in [0, T], in any order. Past a
            row's length the input has no influence, and results are zero. h_n and c_n are those of
            the row's last step, and the reverse direction begins there.
        return_states: whether to return the `States` of every step.
        return_gates: whether to return `States` with the gates in them.
        detach_every: k >= 1, for truncated back-propagation through time. No gradient passes
            through h and c from step j*k to step j*k - 1, for any j.
        grad_clip: v > 0. The gradient that a step sends back through h, to the step before it or
            to h0, is clamped to [-v, v] before gradients of output, h_n and States are added.

    Returns:
        output (T, N, D*P), (N, T, D*P) or (rows, D*P); h_n and c_n in the shape of `hx`; `States`
        if asked for.

    Raises:
        TypeError: an argument is of a wrong kind, which the message names.
        ValueError: a feature is out of its range, of a wrong dtype, or does not go with the input.
        RuntimeError: ranks, sizes, dtypes or devices do not fit; there is no time step; or a
            length on the CPU is out of range. Lengths on a GPU are not read.

    Example:
        >>> lstm, x = fastrnn.LSTM(10, 20), torch.randn(5, 3, 10)
        >>> zeros = torch.zeros(1, 3, 20)
        >>> output, h_n, c_n = fastrnn.functional.lstm(x, (zeros, zeros), lstm._flat_weights)
        >>> torch.equal(output, lstm(x)[0])
        True
    """
    check_kind("hx", hx, Sized, "a pair of tensors (h0, c0)")
    if len(hx) != 2:
        raise RuntimeError("lstm expects two hidden states")
    return _run(
        "lstm", input, *hx, weights, bias, num_layers, dropout, training, bidirectional,
        batch_first, batch_sizes, reset, lengths, return_states, return_gates, detach_every,
        grad_clip, reset_state,
    )  # fmt: skip


def _without_cell_state(cell: str, title: str, owner: str) -> Callable[..., tuple[Tensor, ...]]:
    def function(
        input: Tensor,
        h0: Tensor,
        weights: Sequence[Tensor],
        bias: bool = True,
        num_layers: int = 1,
        dropout: float = 0.0,
        training: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
        batch_sizes: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
        lengths: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
        detach_every: int | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, ...]:
        return _run(
            cell, input, h0, None, weights, bias, num_layers, dropout, training, bidirectional,
            batch_first, batch_sizes, reset, lengths, return_states, return_gates, detach_every,
            grad_clip, reset_state,
        )  # fmt: skip

    function.__name__ = function.__qualname__ = cell
    function.__doc__ = f"""A stack of {title} layers: (output, h_n).

    Args:
        h0: (num_layers*D, N, H), in place of the pair `hx` of `lstm`.

    All other arguments, the results and the errors are those of `lstm`, without c.

    Example:
        >>> weights = fastrnn.{owner}._flat_weights
        >>> x, h0 = torch.randn(5, 3, 10), torch.zeros(1, 3, 20)
        >>> output, h_n = fastrnn.functional.{cell}(x, h0, weights)
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """
    return function


gru = _without_cell_state("gru", "GRU", "GRU(10, 20)")
rnn_tanh = _without_cell_state("rnn_tanh", "RNN (tanh)", "RNN(10, 20)")
rnn_relu = _without_cell_state("rnn_relu", "RNN (ReLU)", "RNN(10, 20)")
