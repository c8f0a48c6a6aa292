"""Which backend computes a call: what can run here, what was asked for, what is the fastest."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import choice, cuda, cudnn, gpu, reference_ops, torch_private, triton
from .scopes import Choice, Scope

OPS = ("layer_inference", "layer_forward", "layer_backward")
_BACKENDS = ("auto", "cpu", "cuda", "triton", "cudnn", "reference")
_KERNELS = {"cuda": cuda, "triton": triton}  # which give `gpu.Loops`; "auto" prefers the first
_chosen = "auto"
_not_built: str | None = None


class Options(NamedTuple):
    """What a layer can do besides; the first four as in `reference.layer`."""

    reset: Tensor | None = None
    lengths: Tensor | None = None
    detach_every: int = 0
    grad_clip: float = 0.0
    trace: bool = False

    def any(self) -> bool:
        """Whether it is asked for anything that torch.nn lacks."""
        tensors = self.reset is not None or self.lengths is not None
        return tensors or bool(self.detach_every or self.grad_clip or self.trace)


def load(library: torch.library.Library) -> None:
    """Loads the compiled kernels, and registers what else the ops run on."""
    global _not_built
    try:
        importlib.import_module("fastrnn._C")
    except ImportError as error:
        _not_built = f"fastrnn._C cannot be imported ({error})"
        warnings.warn(f"{_not_built}: fastrnn runs on the reference path", stacklevel=5)
        for name in OPS:
            library.impl(name, getattr(reference_ops, name), "CPU")
    for name, function in ON_LOOPS.items():
        library.impl(name, function, "CUDA")


def _kernels(input: Tensor) -> str | None:
    """The kernels for GPUs that take a call with this input, if any do."""
    if _chosen in _KERNELS:
        return None if _KERNELS[_chosen].obstacle(input) else _chosen
    return next((name for name, kind in _KERNELS.items() if not kind.obstacle(input)), None)


def _on_loops(name: str) -> Callable:
    """The op of `gpu` on the kernels that take its input, else of `reference_ops`."""
    position = 4 if name == "layer_backward" else 0

    def call(*args, **kwargs):
        kernels = _kernels(args[position])
        if kernels is None and _chosen in _KERNELS:
            raise _cannot_run(_chosen, _KERNELS[_chosen].obstacle(args[position]))
        if kernels is None:
            return getattr(reference_ops, name)(*args, **kwargs)
        loops = cuda if kernels == "cuda" else importlib.import_module("fastrnn.triton.launch")
        return getattr(gpu, name)(loops, *args, **kwargs)

    return call


ON_LOOPS = {name: _on_loops(name) for name in OPS}  # behind the ops on a GPU
_override: torch.library.Library | None = None


def in_python(input: Tensor) -> bool:
    """Whether an op with this input comes to `ON_LOOPS`."""
    return input.is_cuda or (_override is not None and input.is_cpu)


def _set_override(on: bool) -> None:
    """Puts the kernels for GPUs in front of those for the CPU, for their tests without a GPU."""
    global _override
    if on and _override is None:
        _override = torch.library.Library("fastrnn", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "[\\s\\S]*Overriding a previously registered kernel")
            for name, function in ON_LOOPS.items():
                _override.impl(name, function, "CPU", allow_override=True)
    elif not on and _override is not None:
        _override._destroy()
        _override = None


def _cannot_run(name: str, reason: str) -> RuntimeError:
    return RuntimeError(f"backend '{name}' cannot run: {reason}")


def status(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    if name == "cpu":
        return _not_built
    if name == "cudnn":
        return cudnn.status()
    if name in _KERNELS:
        return _KERNELS[name].status()
    return None


def backends() -> dict[str, str]:
    """Each backend by name, with "usable" or the reason why it is not."""
    return {name: status(name) or "usable" for name in _BACKENDS[1:]}


def _choose(name: str) -> None:
    global _chosen
    _set_override(getattr(_KERNELS.get(name), "DEVICE", "cuda") == "cpu")
    _chosen = name


_choice = Choice(_chosen, _choose)


def _checked(name: str) -> str:
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend '{name}'. Select from {', '.join(_BACKENDS)}")
    if reason := status(name):
        raise _cannot_run(name, reason)
    return name


def backend(name: str) -> Scope:
    """Context manager that chooses what computes the layers, in every thread of the process.

    The last one entered that has not been left counts, whichever thread entered it; they may be
    left in any order. Also a decorator. Without `with` it has no effect, and warns of that:
    `set_backend` is for a choice that stays.

    Args:
        name: "auto", the fastest that can run; "cpu", the compiled kernels; "cuda" and "triton",
            the kernels for GPUs, which "auto" leaves alone until they have been tried on one;
            "cudnn", PyTorch's own for tensors that are not on the CPU, which are cuDNN's wherever
            torch.nn takes these; or "reference", plain PyTorch.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: the backend cannot run: here, or in a call whose tensors it does not take.
    """
    unused = (
        f"fastrnn.backend({name!r}) has no effect without `with`; "
        f"fastrnn.set_backend({name!r}) chooses for good"
    )
    return Scope(_choice, _checked(name), unused)


def set_backend(name: str) -> None:
    """Chooses what computes the layers, at once and in every thread, until it is called again.

    A later `with backend(...)` goes before it while that lasts. Names and errors as in `backend`.
    """
    _choice.begin("set_backend", _checked(name))


def chosen() -> str:
    """The backend that was asked for."""
    return _chosen


def on_kernels() -> bool:
    """Whether what was asked for lets a call on the CPU go to the compiled kernels."""
    return _chosen in ("auto", "cpu") and _not_built is None


def obstacle(
    name: str, input: Tensor, h0: Tensor, compiling: bool, options: Options | None = None
) -> str | None:
    """Why a backend cannot take a call, or None."""
    if name == "cpu":
        if not (input.is_cpu or (input.is_meta and _chosen == "auto")):
            return f"tensors are on {input.device}"
        if input.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            return f"dtype is {input.dtype}, the kernels take float32, float64 and bfloat16"
    elif name == "cudnn":
        if reason := cudnn.obstacle(input, options is not None and options.any()):
            return reason
    elif reason := _KERNELS[name].obstacle(input):
        return reason
    if not (input.size(-1) and h0.size(-1)):
        return "there are no features"
    # An op sees neither: jvp of one gives zero and vmap fails. Compiled code asks this as well.
    if torch_private.are_transforms_active() or torch_private.in_forward_ad():
        return "torch.func transforms and forward-mode AD go through the reference"
    return _not_built if name == "cpu" and not compiling else None


def choose(
    cell: str,
    input: Tensor,
    h0: Tensor,
    options: Options | None = None,
    packed: bool = False,
    plain: bool = True,
    layers: int = 1,
    compiling: bool = False,
) -> str:
    """The backend for a layer, one of `layers` of a stack; h0 is (..., N, P) of any layer. plain:
    one direction, no projection.

    Raises RuntimeError if one was forced that cannot take the call.
    """
    if _chosen == "reference":
        return "reference"
    if _chosen != "auto":
        if reason := obstacle(_chosen, input, h0, compiling, options):
            raise _cannot_run(_chosen, reason)
        return _chosen
    if not gpu.on_gpu(input):
        return "reference" if obstacle("cpu", input, h0, compiling) else "cpu"
    order = ["cudnn"]
    if (kernels := _tried(input)) is not None:
        # compiled graphs run PyTorch's own forward twice
        first = compiling or (plain and _faster(kernels, cell, input, h0, packed, layers))
        order.insert(0 if first else 1, kernels)
    for name in order:
        if obstacle(name, input, h0, compiling, options) is None:
            return name
    return "reference"


def _tried(input: Tensor) -> str | None:
    """The kernels for GPUs that "auto" may take for this input, if any."""
    kernels = _kernels(input)
    return kernels if (kernels, cudnn.capability(input)) in choice.TRIED else None


def _faster(kernels: str, cell: str, input: Tensor, h0: Tensor, packed: bool, layers: int) -> bool:
    """Whether these were measured faster than PyTorch's own in such calls."""
    batch = h0.size(-2)
    return choice.faster(
        kernels,
        cudnn.capability(input),
        cell,
        gpu.precision(input.dtype),
        packed,
        layers,
        input.numel() // max(1, input.size(-1) * batch),
        batch,
        h0.size(-1),
        input.is_cuda and torch.cuda.is_current_stream_capturing(),
    )


def takes_torch_step(cell: str, input: Tensor, h: Tensor) -> bool:
    """Whether PyTorch's own function of one step is to compute a cell."""
    if gpu.on_gpu(input):
        return choose(cell, input, h) == "cudnn"
    # On a CPU an RNN is one product each and a tanh: nothing to fuse. torch's own step takes 28 us
    # where a call of the layer takes 36 (N = 1, H = 8). But in bfloat16 torch's rounds more often
    # than the kernels, and autocast would change dtypes.
    return (
        cell in ("rnn_tanh", "rnn_relu")
        and _chosen == "auto"
        and input.dtype is not torch.bfloat16
        and not torch.compiler.is_compiling()
        and not torch_private.is_any_autocast_enabled()
        and obstacle("cpu", input, h, False) is None
    )


def report() -> list[tuple[str, str]]:
    """Rows on which backend "auto" takes for tensors of a device, and why not another."""
    if (reason := status("cudnn")) is not None:
        on_gpu = f"none: {reason}"
    else:
        major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
        usable = [n for n in _KERNELS if status(n) is None and (n, major) in choice.TRIED]
        first = usable[0] if usable else "reference"
        measured = any(row[:2] == (first, major) for row in choice.FASTER)
        on_gpu = "; ".join(
            [
                f"cudnn{f', {first} where measured faster' if measured else ''}",
                f"what torch.nn lacks: {first}",
                *(
                    f"not {name}: {status(name) or 'not yet tried on such a GPU'}"
                    for name in _KERNELS
                    if name not in usable
                ),
            ]
        )
    on_cpu = "cpu" if _not_built is None else f"reference; not cpu: {_not_built}"
    return [("cpu tensors", on_cpu), ("cuda tensors", on_gpu)]
