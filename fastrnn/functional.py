"""The stack: layers on top of each other with dropout between them, over flat lists of weights.

Weights are listed as `torch.nn` orders them: per layer, per direction: w_ih (G*H, in), w_hh
(G*H, P), then b_ih and b_hh (G*H,) if `bias`, then w_hr (P, H) if an LSTM is projected. Here
`in` is the input size for the first layer and D*P for the others, D is 1 or 2 directions, P is
the projection size or H.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cudnn, dispatch, features, gpu, ops
from .features import Request
from .torch_private import is_any_autocast_enabled
from .trees import map_tensors

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]

_CAST = (torch.float16, torch.bfloat16, torch.float32)


def _stack(
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
    request: Request | None = None,
) -> tuple[Tensor, ...]:
    """(output, h_n, c_n) of all layers, and States if the request wants them."""
    directions = 2 if bidirectional else 1
    options = None if request is None else request.options
    if request is None and _whole(cell, input, h0, c0, num_layers, batch_sizes):
        if not torch.is_autocast_enabled(input.device.type):
            ops.raise_mixed(input, (h0, *weights) if c0 is None else (h0, c0, *weights))
        return cudnn.stack(
            cell, input, h0, c0, weights, bias, num_layers, dropout, training, bidirectional,
            batch_first, batch_sizes,
        )  # fmt: skip
    if batch_sizes is None:
        if batch_first:
            input = input.transpose(0, 1)
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

    if num_layers == 1:
        if h0.size(0) != directions:
            raise RuntimeError(f"h0 must have {directions} states, got {h0.size(0)}")
        results = ops.layer(input, batch_sizes, h0, c0, weights, cell, bias, options)
        output, h_n, c_n = results if options is None else results[:3]
        layers = (results,)
    else:
        if h0.size(0) != num_layers * directions or len(weights) % num_layers:
            raise RuntimeError(
                f"{num_layers} layers of {directions} directions cannot take {h0.size(0)} "
                f"initial states and {len(weights)} weights"
            )
        h0s = h0.split(directions)
        c0s = (None,) * num_layers if c0 is None else c0.split(directions)
        count = len(weights) // num_layers
        output, layers = input, []
        for k, (h, c) in enumerate(zip(h0s, c0s, strict=True)):
            if k and training and dropout:
                output = F.dropout(output, dropout)
            layer_weights = weights[k * count : (k + 1) * count]
            results = ops.layer(
                output, batch_sizes, h, c, layer_weights, cell, bias, options, num_layers
            )
            output = results[0]
            layers.append(results)
        h_n, c_n = (torch.cat([results[k] for results in layers]) for k in (1, 2))

    if batch_first and batch_sizes is None:
        output = output.transpose(0, 1)
    if request is None or not request.states:
        return output, h_n, c_n
    states = features.states_of(cell, layers, directions, batch_first, request.gates)
    return output, h_n, c_n, states


def _whole(
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    num_layers: int,
    batch_sizes: Tensor | None,
) -> bool:
    """Whether PyTorch's own kernels compute the stack, in one call. A graph takes it by layers."""
    if torch.compiler.is_compiling() or not (gpu.on_gpu(input) or dispatch.chosen() == "cudnn"):
        return False
    packed = batch_sizes is not None
    plain = h0.size(0) == num_layers and (c0 is None or c0.size(-1) == h0.size(-1))
    return dispatch.choose(cell, input, h0, None, packed, plain, num_layers) == "cudnn"


def _run(
    cell: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    *options,
    keep_dtype: bool = False,
) -> tuple[Tensor, ...]:
    """The stack; under autocast it computes in float32, and in float64 what is float64.

    It then returns the dtypes of `torch.nn` on the CPU: LSTM and RNN the autocast dtype; GRU, or
    any cell with `keep_dtype`, that of the initial state. On a GPU everything returns the autocast
    dtype, in which all but the reference compute: `torch.nn` too, but for bfloat16 on cuDNN, of
    which it makes float16 (torch 2.11).
    """
    if not _autocast(input):
        return _stack(cell, input, h0, c0, weights, *options)
    device = input.device.type
    dtype = compute = torch.get_autocast_dtype(device)
    if gpu.on_gpu(input):
        # num_layers, batch_sizes and request
        layers, packed, request = options[1], options[6], (*options, None)[7]
        # PyTorch's own rule for cuDNN casts to float16, whatever autocast's dtype is.
        if request is None and (dtype is torch.float16 or not input.is_cuda):
            x = _cast(input, dtype) if input.is_cuda else input
            if _whole(cell, x, h0, c0, layers, packed):
                return _stack(cell, x, h0, c0, weights, *options)
        asked = None if request is None else request.options
        if dispatch.choose(cell, input, h0, asked, compiling=True) == "reference":
            compute = torch.float32
    else:
        compute = torch.float32
        dtype = h0.dtype if keep_dtype or cell == "gru" else dtype
    with torch.autocast(device, enabled=False):
        tensors = [_cast(t, compute) for t in (input, h0, *weights)]
        c0 = None if c0 is None else _cast(c0, compute)
        results = _stack(cell, tensors[0], tensors[1], c0, tensors[2:], *options)
    if results[0].dtype == torch.float64:
        return results
    return map_tensors(lambda result: result.to(dtype), tuple(results))


def _autocast(input: Tensor) -> bool:
    return (
        is_any_autocast_enabled()
        and not input.is_meta
        and torch.is_autocast_enabled(input.device.type)
    )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the dtype if it is one that autocast changes."""
    return tensor.to(dtype) if tensor.dtype in _CAST else tensor


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
    if dispatch.takes_torch_step(cell, input, h):
        if not _autocast(input):
            ops.raise_mixed(input, (h, *weights) if c is None else (h, c, *weights))
        results = getattr(torch, f"{cell}_cell")(input, h if c is None else (h, c), *weights)
        return (results,) if c is None else results
    input, h = input.unsqueeze(0), h.unsqueeze(0)
    c = None if c is None else c.unsqueeze(0)
    if _autocast(input):
        options = (bias, 1, 0.0, False, False, False, None)
        results = _run(cell, input, h, c, weights, *options, keep_dtype=cell == "lstm")
    else:
        results = ops.layer(input, None, h, c, weights, cell, bias)
    _, h_n, c_n = results
    return (h_n.squeeze(0),) if c is None else (h_n.squeeze(0), c_n.squeeze(0))


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
        dropout: probability of zeroing an element between layers, if `training`.
        batch_sizes: (T,) int64 on the CPU for the data of a PackedSequence; `hx` and the final
            states are then in its sorted order, and `batch_first` has no meaning.

    The rest needs padded input. `reset` and `lengths` may be lists, tuples or arrays of numpy too:
        reset: (T, N) bool, (N, T) if `batch_first`. Where True, h and c of the row are zero before
            the step, in every layer. Not bidirectional.
        lengths: (N,) of any integer dtype, on any device, each in [0, T], in any order. Results
            are zero past a row's length, h_n and c_n are those of its own last step, and the
            reverse direction begins there. What the input holds past it plays no part.
        return_states, return_gates: whether to return States of every step, and with gates.
        detach_every: k >= 1: no gradient passes through h and c from step j*k to step j*k - 1, for
            any j: truncated back-propagation through time.
        grad_clip: v > 0: what each step sends back through h to the step before it, or to h0, is
            clamped to [-v, v], before gradients from output, h_n and States are added.

    Returns:
        output (T, N, D*P), (N, T, D*P) or (rows, D*P); h_n and c_n in the shape of `hx`; States
        if asked for.

    Raises:
        ValueError: a feature is out of its range, of a wrong dtype, or does not go with the input.
        RuntimeError: ranks, sizes, dtypes or devices do not fit, there is no time step, or, where
            lengths are on the CPU, one is out of range; elsewhere their values are not read.
    """
    if len(hx) != 2:
        raise RuntimeError("lstm expects two hidden states")
    request = None
    plain = reset is lengths is detach_every is grad_clip is None
    if not plain or return_states or return_gates:
        request = features.request(
            "lstm", input, bidirectional, batch_first, batch_sizes, reset, lengths, return_states,
            return_gates, detach_every, grad_clip,
        )  # fmt: skip
    return _run(
        "lstm", input, hx[0], hx[1], weights, bias, num_layers, dropout, training, bidirectional,
        batch_first, batch_sizes, request,
    )  # fmt: skip


def _without_cell_state(cell: str, title: str):
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
        lengths: Tensor | None = None,
        return_states: bool = False,
        return_gates: bool = False,
        detach_every: int | None = None,
        grad_clip: float | None = None,
    ) -> tuple[Tensor, ...]:
        request = None
        if (
            not (reset is lengths is detach_every is grad_clip is None)
            or return_states
            or return_gates
        ):
            request = features.request(
                cell, input, bidirectional, batch_first, batch_sizes, reset, lengths, return_states,
                return_gates, detach_every, grad_clip,
            )  # fmt: skip
        results = _run(
            cell, input, h0, None, weights, bias, num_layers, dropout, training, bidirectional,
            batch_first, batch_sizes, request,
        )  # fmt: skip
        return results[:2] + results[3:]

    function.__name__ = function.__qualname__ = cell
    function.__doc__ = f"""A stack of {title} layers: (output, h_n).

    Arguments, results and errors as in `lstm`, with h0 (num_layers*D, N, H) alone for a state.
    """
    return function


gru = _without_cell_state("gru", "GRU")
rnn_tanh = _without_cell_state("rnn_tanh", "RNN (tanh)")
rnn_relu = _without_cell_state("rnn_relu", "RNN (ReLU)")
