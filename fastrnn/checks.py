"""Checks of the tensors that meet in a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .arguments import check_kind
from .torch_private import are_transforms_active, in_forward_ad, is_batched

if TYPE_CHECKING:
    from .base import RNNBase

NO_STEPS = "Expected sequence length to be larger than 0 in RNN"


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """RuntimeError if the tensor, which the message names, has another shape."""
    if tensor.shape != shape:
        raise wrong_shape(name, tensor, shape)


def wrong_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> RuntimeError:
    return RuntimeError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def check_param(name: str, param: Tensor, first: Tensor, input: Tensor, H: int) -> None:
    """RuntimeError if it is not (H,), and has not the rows of the input and H columns or one; or
    if `first`, that of the first direction, has another shape."""
    check_shape(name + "_reverse", param, tuple(first.shape))
    rows = tuple(input.shape[:-1])
    if tuple(param.shape) not in ((H,), (*rows, H), (*rows, 1)):
        raise RuntimeError(
            f"{name} must have shape {(H,)}, {(*rows, H)} or {(*rows, 1)}, got {tuple(param.shape)}"
        )


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """RuntimeError if there is one, of another shape or dtype."""
    if mask is not None:
        check_shape(name, mask, shape)
        if mask.dtype != dtype:
            raise RuntimeError(f"{name} must have dtype {dtype}, got {mask.dtype}")


def check_batch_sizes(input: Tensor, batch_sizes: Tensor) -> None:
    """RuntimeError if these cannot be the batch sizes of packed input, whatever is in them."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise RuntimeError("batch_sizes must be a 1-D tensor of dtype torch.int64")
    device = batch_sizes.device.type
    if device != "cpu" and not device == input.device.type == "meta":
        raise RuntimeError("batch_sizes should always be on CPU")


def check_packed(
    input: Tensor, batch_sizes: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> None:
    """RuntimeError if these are not the batch sizes of packed input, or there is a mask, too."""
    if reset is not None or lengths is not None:
        raise RuntimeError("reset and lengths need padded input, got batch_sizes")
    check_batch_sizes(input, batch_sizes)
    if not torch.compiler.is_compiling() and is_batched(batch_sizes):
        raise RuntimeError(
            "batch_sizes of a sequence that was packed inside vmap cannot be read: "
            "give padded input and lengths="
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """RuntimeError if a tensor is sparse or nested."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise RuntimeError(f"{name} must be a dense tensor, got {kind}")


def check_alike(
    input: Tensor,
    tensors: Sequence[Tensor],
    names: str = "input, hx and weights",
    name_of: Callable[[int], str] | None = None,
) -> None:
    """RuntimeError if the tensors are not dense, or not of the input's dtype and device.

    `names` is what the message calls all of them, `name_of` the k-th.
    """
    check_dense("input", input)
    for k, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"{names} must be dense tensors, got {tensor.layout}")
        if tensor.dtype != input.dtype:
            of = f" of {name_of(k)}" if name_of else ""
            raise RuntimeError(
                f"{names} must have the same dtype, but got {input.dtype} and {tensor.dtype}{of}"
            )
        if tensor.device != input.device:
            raise two_devices(input, tensor)


def two_devices(input: Tensor, tensor: Tensor) -> RuntimeError:
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{input.device} and {tensor.device}!"
    )


def check_outside_transforms() -> None:
    """RuntimeError inside a transform of `torch.func`, which sees nothing of a `Streamer`."""
    if are_transforms_active():
        raise RuntimeError(
            "a Streamer does not work inside grad, vmap and other transforms of torch.func: "
            "call module.step(x, state) there"
        )


def check_no_tangent(name: str, tensor: Tensor) -> None:
    """RuntimeError if it has a tangent of forward-mode AD, which a `Streamer` would lose."""
    if not in_forward_ad():
        return
    check_outside_transforms()
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(
            f"{name} has a tangent of forward-mode AD, which a Streamer would lose: "
            "call module.step(x, state) there"
        )


def parts_of(state: Any) -> tuple[Tensor, ...]:
    """The tensors of the state of a `Streamer`.

    Raises:
        TypeError: there is something else among them.
        RuntimeError: one has a tangent.
    """
    parts = (state,) if isinstance(state, Tensor) else state
    if not isinstance(parts, tuple | list):
        raise TypeError(f"state must be a tensor or a pair of them, got {type(state).__name__}")
    for part in parts:
        check_kind("each part of state", part, Tensor, "a tensor")
        check_no_tangent("state", part)
    return tuple(parts)


def check_states(module: RNNBase, own: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """ValueError if states cannot take the place of a module's own; RuntimeError if one is not
    dense or has no memory."""
    names = module._state_names_()
    if len(own) != len(given):
        raise ValueError(f"state has {len(own)} parts ({', '.join(names)}), got {len(given)}")
    for name, to, tensor in zip(names, own, given, strict=True):
        if to.shape != tensor.shape:
            raise ValueError(_wrong_state(module, name, to, tensor))
        check_dense(f"state {name}", tensor)
        if tensor.is_meta:
            raise RuntimeError(f"state {name} must have memory, got a tensor on meta")
        if not torch.can_cast(tensor.dtype, to.dtype):
            raise ValueError(f"state {name} must be of {to.dtype}, got {tensor.dtype}")


def check_step_state(module: RNNBase, input: Tensor, state: Any) -> None:
    """RuntimeError that says which tensor of the `state` of a step has another shape than it must
    have, and nothing where that is not what is wrong."""
    due = module._zero_state_(input, input.size(0))
    if isinstance(state, Tensor) and not isinstance(due, Tensor):
        names = ", ".join(module._state_names_())
        raise RuntimeError(f"state must be ({names}), got one tensor {tuple(state.shape)}")
    parts = [(each,) if isinstance(each, Tensor) else each for each in (due, state)]
    if isinstance(parts[1], tuple | list):
        for name, to, tensor in zip(module._state_names_(), *parts, strict=False):
            if isinstance(tensor, Tensor) and to.shape != tensor.shape:
                raise RuntimeError(_wrong_state(module, name, to, tensor))


def _wrong_state(module: RNNBase, name: str, due: Tensor, got: Tensor) -> str:
    layers, batch, width = due.shape
    projected = module.proj_size and width == module.proj_size
    of = "proj_size" if projected else "hidden_size"
    sizes = f"(num_layers={layers}, batch_size={batch}, {of}={width})"
    return f"state {name} must be {sizes}, got {tuple(got.shape)}"


def rows_of(given: Any, N: int) -> Tensor | slice:
    """Some of N rows, as an index of a tensor on the CPU.

    Raises:
        TypeError: they are neither integers nor a bool mask.
        IndexError: there is no such row, or the mask is not (N,).
    """
    if isinstance(given, slice):
        return given
    try:
        rows = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:  # as torch says what holds no numbers
        if isinstance(given, Integral):  # beyond those of torch
            raise IndexError(f"rows must be between {-N} and {N - 1}, got {given}") from error
        kind = type(given).__name__
        raise TypeError(f"rows must be integers or a bool mask, got {kind}") from error
    if not rows.numel():
        return slice(0)
    if rows.dtype == torch.bool:
        if rows.shape != (N,):
            raise IndexError(f"a mask of rows must have shape {(N,)}, got {tuple(rows.shape)}")
        return rows
    if rows.dtype == torch.uint8 or rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"rows must be integers or a bool mask, got {rows.dtype}")
    rows = rows.long()  # also of types that torch does not compare
    if not -N <= rows.min() <= rows.max() < N:
        raise IndexError(f"rows must be between {-N} and {N - 1}, got {rows.tolist()}")
    return rows


def address_of(x: Tensor, name: str = "x") -> int:
    """Where the input or a weight of a `Streamer` lies. ValueError without memory, as where the
    storage was freed; RuntimeError as above."""
    check_no_tangent(name, x)
    try:
        address = x.data_ptr()
    except RuntimeError:
        address = 0
    if not address and x.numel():
        check_outside_transforms()
        raise ValueError(f"{name} must be a tensor with memory, got {type(x).__name__} without")
    return address


def check_lengths(lengths: Tensor | None, T: int) -> None:
    """RuntimeError if a length is not in [0, T].

    Only where reading costs nothing: on the CPU, and neither traced nor in a transform.
    """
    if (
        lengths is not None
        and lengths.is_cpu
        and type(lengths) is Tensor
        and lengths.numel()
        and not torch.compiler.is_compiling()
        and not are_transforms_active()
        and not 0 <= lengths.min() <= lengths.max() <= T
    ):
        raise RuntimeError(f"lengths must be between 0 and {T}, got {lengths.tolist()}")


_OF_TORCH = {
    "check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size",
    "get_expected_cell_size", "_update_flat_weights",
}  # fmt: skip


def has_own_checks(kind: type) -> bool:
    """Whether a layer's class was derived by a user and has a check in the place of torch's."""
    ours = ("torch", "fastrnn")
    users = [each for each in kind.__mro__ if each.__module__.split(".")[0] not in ours]
    return any(_OF_TORCH & vars(each).keys() for each in users)
