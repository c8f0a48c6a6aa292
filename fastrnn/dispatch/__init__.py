"""What computes a layer, and which of them a call takes.

A backend is a module with the functions of `Backend`, in a folder of its own here. `choose` takes
one for a stack of layers; it is then carried along.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from ..call import Call
from ..scopes import Choice, Scope
from ..torch_private import (
    are_transforms_active,
    are_transforms_backwards,
    in_forward_ad,
    is_tracing,
    members,
    unseen,
)
from . import choice, cpu, cuda, cudnn, gpu, race, reference, selftest, triton
from .cpu import op
from .protocol import Backend

BACKENDS = {module.NAME: module for module in (cpu, cuda, triton, cudnn, reference)}
LOOPS = (cuda, triton)  # kernels for GPUs; "auto" prefers the first
_NAMES = ("auto", *BACKENDS)


# The choice of the user's, for the whole process.


_chosen = "auto"
_set_override: Callable[[bool], None] = bool


def on_cpu_override(function: Callable[[bool], None]) -> None:
    """Has `function` told whether kernels for GPUs are to take CPU tensors: only in their tests."""
    global _set_override
    _set_override = function


def _apply(name: str) -> None:
    global _chosen
    _set_override(getattr(BACKENDS.get(name), "DEVICE", "cuda") == "cpu")
    choice.forced = name
    _chosen = name


_choice = Choice(_chosen, _apply)


def _checked(name: str) -> str:
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"unknown backend '{name}'. Select from {', '.join(_NAMES)}")
    if reason := status(name):
        raise cannot_run(name, reason)
    return name


def cannot_run(name: str, reason: str) -> RuntimeError:
    """What a backend that was forced raises."""
    return RuntimeError(f"backend '{name}' cannot run: {reason}")


def status(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    return None if name == "auto" else BACKENDS[name].status()


def status_on(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a GPU, or None."""
    return status(name) or (cuda.unfit(device) if name == cuda.NAME else None)


def backends() -> dict[str, str]:
    """Each backend by name, with "usable" or the reason why it is not.

    Example:
        >>> fastrnn.backends()["reference"]
        'usable'
    """
    return {name: status(name) or "usable" for name in BACKENDS}


def backend(name: str) -> Scope:
    """Context manager that chooses what computes the layers, in every thread of the process.

    Where several are active, in one thread or in several, the one entered last counts; they may be
    left in any order. It is a decorator, too. Without `with` it has no effect, and warns;
    `set_backend`, or FASTRNN_BACKEND in the environment, is for a choice that stays.

    Args:
        name: "auto", the fastest that can run; "cpu", the compiled kernels; "cuda" and "triton",
            the kernels for GPUs, which "auto" leaves alone until they have been tried on one;
            "cudnn", PyTorch's own, which on a GPU are cuDNN's wherever torch.nn takes these, and
            which take CPU tensors where no kernels are built; or "reference", plain PyTorch.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: the backend cannot run on this machine; or, from a call inside the `with`,
            it does not take the tensors of the call.

    Example:
        >>> lstm, x = fastrnn.LSTM(10, 20), torch.randn(5, 3, 10)
        >>> with fastrnn.backend("reference"):
        ...     slow = lstm(x)[0]
        >>> torch.allclose(slow, lstm(x)[0], atol=1e-6)
        True
    """
    unused = (
        f"fastrnn.backend({name!r}) has no effect without `with`; "
        f"fastrnn.set_backend({name!r}) chooses for good"
    )
    return Scope(_choice, _checked(name), unused)


def set_backend(name: str) -> None:
    """Chooses what computes the layers, at once and in every thread, until it is called again.

    A `with backend(...)` that is entered later counts while it lasts.

    Args:
        name: as of `backend`, with its errors.

    Example:
        >>> fastrnn.set_backend("reference")
        >>> fastrnn.set_backend("auto")
    """
    _choice.begin("set_backend", _checked(name))


def chosen() -> str:
    """The name that the user chose."""
    return _chosen


# The choice for a call.


def on_kernels() -> bool:
    """Whether the user's choice lets a call on the CPU go to the compiled kernels."""
    return _chosen in ("auto", "cpu") and cpu.not_built is None


def obstacle(backend: Backend, call: Call, traced: bool = False) -> str | None:
    """Why a backend cannot take a call, or None."""
    if reason := backend.obstacle(call, traced):
        return reason
    if not (call.input.size(-1) and call.h0.size(-1)):
        return "there are no features"
    # An op knows neither: its jvp would be zero, and vmap fails. Compiled code asks this as well.
    if in_forward_ad():
        return "forward-mode AD goes through the reference"
    if are_transforms_active() and not (backend is cpu and _is_transformed(call, traced)):
        return "torch.func transforms of such a call go through the reference"
    return None


def _is_transformed(call: Call, traced: bool) -> bool:
    """Whether `transforms` takes a call to the CPU kernels. An ensemble takes one call for each
    member there, which is slower than the reference if many small members take few steps."""
    plain = not (traced or call.kind.step) and call.batch_sizes is None
    if not plain or torch.compiler.is_compiling() or not are_transforms_backwards():
        return False
    return max(map(members, call.weights)) <= 4 * call.mean_steps()


def choose(call: Call, layers: int = 1, traced: bool = False) -> Backend:
    """The backend for a stack of so many layers; `call` is that of the first, or `Stack.call`.

    Raises:
        RuntimeError: the user chose one that cannot take the call.
    """
    if _chosen == "reference" or (call.kind.step and _is_recorded()):
        return reference
    if _chosen != "auto":
        forced = BACKENDS[_chosen]
        reason = obstacle(forced, call, traced)
        if reason is None and call.input.is_meta:
            reason = "tensors are on meta"  # which "auto" takes for shapes
        if reason:
            raise cannot_run(_chosen, reason)
        return forced
    on_gpu = gpu.on_gpu(call.input)
    if not on_gpu and (cpu.not_built is None or torch.compiler.is_exporting()):
        return reference if obstacle(cpu, call, traced) else cpu
    order, kernels = [cudnn], None
    if not on_gpu:
        order.append(cpu)  # the op, in compiled graphs
    else:
        kernels = loops_for(call)
        if kernels is not None:
            tried = _tried(kernels, call)
            if torch.compiler.is_compiling():
                first = tried  # compiled graphs run PyTorch's own forward twice
            else:
                first = race.won(kernels, call, layers)
                first = first and (tried or selftest.refused(kernels, call) is None)
            if first or tried:
                order.insert(0 if first else 1, kernels)
    found = next((b for b in order if obstacle(b, call, traced) is None), reference)
    return _untried(kernels or triton, call, traced) if on_gpu and found is reference else found


def _untried(kernels: ModuleType, call: Call, traced: bool) -> ModuleType:
    """Kernels that were not tried on such a GPU, if their self-test passes, or the reference."""
    reason = obstacle(kernels, call, traced) or selftest.refused(kernels, call)
    if reason is None:
        return kernels
    if call.kind.step:
        reference.warn_of_loop(call, reason)
    return reference


def _is_recorded() -> bool:
    """Whether `torch.jit.trace` or the ONNX exporter writes down what runs: it knows no ops of
    ours, and of a cell made of a function it gets the definition, unrolled."""
    return not torch.compiler.is_compiling() and is_tracing()


def takes_torch_step(call: Call) -> bool:
    """Whether PyTorch's own function of one step is to compute a cell; the call has no T."""
    if cpu.not_built or gpu.on_gpu(call.input):
        return choose(call) is cudnn
    # On a CPU a step of an RNN is two products and a tanh: there is nothing to fuse. With gradients
    # torch's own step takes 19 us, and a call of the layer 35 us (N = 1, H = 8). In bfloat16
    # torch's own step rounds more often than the kernels.
    return (
        call.cell in ("rnn_tanh", "rnn_relu")
        and call.input.dtype in _PLAIN
        and _chosen == "auto"
        and not (torch.compiler.is_compiling() or are_transforms_active())
        and obstacle(cpu, call) is None
    )


_PLAIN = (torch.float32, torch.float64)


def is_torch_step(input: Tensor, h: Tensor, weights: list[Tensor]) -> bool:
    """The same question for an RNN in training that nothing watches, answered in less time. The
    step of PyTorch checks sizes itself, but not that all is dense and on one device."""
    dtype = input.dtype
    for tensor in (h, *weights):
        dense = tensor.layout is torch.strided and tensor.is_cpu
        if not dense or tensor.dtype is not dtype:
            return False
    return (
        dtype in _PLAIN
        and input.is_cpu
        and input.layout is torch.strided
        and input.dim() == h.dim() == 2
        and _chosen == "auto"
        and unseen()
        and input.size(1) > 0  # of which torch.jit.trace, which sees, would warn
    )


def widens(backend: Backend, input: Tensor) -> bool:
    """Whether a layer with an input in half precision is computed in float32.

    The CPU kernels take no float16. The reference widens too where it stands in for these kernels,
    but not where the user chose it.
    """
    if gpu.on_gpu(input):
        return False
    if input.dtype is torch.float16:
        return _chosen in ("auto", "cpu")
    return input.dtype is torch.bfloat16 and backend is reference and _chosen == "auto"


def loops_for(call: Call) -> ModuleType | None:
    """The kernels for GPUs that take a call, if any do."""
    forced = BACKENDS.get(_chosen)
    for kernels in (forced,) if forced in LOOPS else LOOPS:
        if kernels.obstacle(call) is None:
            return kernels
    return None


def _tried(kernels: ModuleType, call: Call) -> bool:
    """Whether "auto" may take kernels as they are."""
    major = gpu.nvidia(call.input.device)
    return choice.tried(kernels.NAME, major, call.kind.step is not None)


def way(kernels: Backend, call: Call) -> ModuleType:
    """The kernels; or the op where something wants to see ops. The op costs more than a small
    layer."""
    return kernels if type(call.input) in (Tensor, torch.nn.Parameter) and unseen() else op
