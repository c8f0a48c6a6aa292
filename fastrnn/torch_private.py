"""The private names of torch that fastrnn uses. No other file uses one.

If a torch lacks a name, calls take longer and nothing else happens. A question that cannot be asked
is answered with yes. The call then takes the long way or the reference, which are always right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable)

missing: list[str] = []  # names that this torch lacks


def _private(name: str, otherwise, where=torch._C):
    if not hasattr(where, name):
        missing.append(f"{where.__name__}.{name}")
    return getattr(where, name, otherwise)


def _taken_to_be_so() -> bool:
    return True


# Whether autocast is on for any device, in one question instead of one for each.
is_any_autocast_enabled: Callable[[], bool] = _private("_is_any_autocast_enabled", _taken_to_be_so)

# Whether vmap, grad or another transform of torch.func is active, which an op does not see.
are_transforms_active: Callable[[], bool] = _private(
    "_are_functorch_transforms_active", _taken_to_be_so
)

# Whether a tensor stands for another that functionalization writes to.
is_functional: Callable[[torch.Tensor], bool] = _private(
    "_is_functional_tensor", lambda _: True, torch
)

_fp32_precision = _private("_get_fp32_precision_getter", None)


def precision_of_onednn(products: str) -> str:
    """`torch.backends.mkldnn.<products>.fp32_precision` in less time: "none", "ieee", "tf32" or
    "bf16". `products` are "rnn" or "matmul"."""
    if _fp32_precision is not None:
        return _fp32_precision("mkldnn", products)
    settings = getattr(torch.backends.mkldnn, products, None)
    return getattr(settings, "fp32_precision", "none")


_functorch = _private("_functorch", None)
# What tells which transforms are active, and what `vmap` made of a tensor.
_of_transforms = (
    "get_interpreter_stack",
    "is_functorch_wrapped_tensor",
    "is_batchedtensor",
    "maybe_get_bdim",
    "get_unwrapped",
)
_tells_transforms = all(hasattr(_functorch, name) for name in _of_transforms)
_backwards = {"Vmap", "Grad"}


def are_transforms_backwards() -> bool:
    """Whether the transforms that are active derive at most twice, and not forwards."""
    if not _tells_transforms:
        return not are_transforms_active()
    kinds = _transforms()
    return _backwards.issuperset(kinds) and kinds.count("Grad") <= 2


def may_derive() -> bool:
    """Whether a transform, or autograd below all, may ask for gradients of what is computed now."""
    return torch.is_grad_enabled() or "Grad" in _transforms()


def _transforms() -> list[str]:
    """The kinds of the transforms that are active, the outermost first."""
    return [each.key().name for each in _functorch.get_interpreter_stack() or ()]


def members(tensor: torch.Tensor) -> int:
    """How many tensors `vmap` makes of this one, where `are_transforms_backwards`."""
    count = 1
    while _tells_transforms and _functorch.is_functorch_wrapped_tensor(tensor):
        inner = _functorch.get_unwrapped(tensor)
        if _functorch.is_batchedtensor(tensor):
            count *= inner.size(_functorch.maybe_get_bdim(tensor))
        tensor = inner
    return count


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether `vmap` is active and made this one of many."""
    while _tells_transforms and _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


# How many modes of __torch_dispatch__ and of __torch_function__ want to see every op.
dispatch_modes = _private("_len_torch_dispatch_stack", _taken_to_be_so)
_function_modes = _private("_len_torch_function_stack", _taken_to_be_so)

# Whether `torch.jit.trace` records what is called.
is_tracing: Callable[[], bool] = _private("_is_tracing", torch.jit.is_tracing)

# Whether a dispatch key of this name is set for the thread.
_is_set = _private("_dispatch_tls_is_dispatch_key_included", None)
_key_named = _private("_dispatch_key_parse", None)

# Context manager that takes a dispatch key out of those that are passed over, or puts it in.
_set_excluded = _private("_SetExcludeDispatchKeyGuard", None)


for _module, _name in ((forward_ad, "_current_level"), (profiler, "_is_profiler_enabled")):
    _private(_name, None, _module)  # both change, and are read at each call


def in_forward_ad() -> bool:
    """Whether forward-mode AD is active, which an op does not see either."""
    return getattr(forward_ad, "_current_level", 0) >= 0


_will_execute = _private("_will_engine_execute_node", lambda _: True)


def is_wanted(node: torch.autograd.graph.Node | None) -> bool:
    """Whether the backward pass that runs wants a gradient for a node of autograd's graph.

    Autograd's own nodes know that. A Function is told only which of its tensors require gradients.
    """
    if node is None:
        return False
    try:
        return _will_execute(node)
    except RuntimeError:  # 10 us: a leaf whose gradient the pass returns
        return True


_function_base = _private("_FunctionBase", None)
_unwrap_if_dead = getattr(_functorch, "unwrap_if_dead", None)


def apply_outside_transforms(function: type[torch.autograd.Function]) -> Callable:
    """`function.apply(other, other, other, input, h0, *tensors)` where no transform of torch.func
    is active, without what readies it for one: 5 us of a call.

    A state may come from a transform that has ended: it is taken as a plain tensor.
    """
    if _function_base is None or _unwrap_if_dead is None:
        return function.apply
    base, plain = super(torch.autograd.Function, function).apply, _unwrap_if_dead
    return lambda a, b, c, input, h0, c0, *rest: base(
        a, b, c, plain(input), plain(h0), plain(c0), *rest
    )


_VMAP = _key_named and _key_named("VmapMode")


def in_vmap() -> bool:
    """Whether a backward may be given many cotangents at once, by `torch.func.vmap` or by
    `torch.autograd.grad(is_grads_batched=True)`, which has a vmap of its own."""
    return are_transforms_active() or not (_is_set and _VMAP) or _is_set(_VMAP)


def unseen() -> bool:
    """Whether nothing wants to see an op."""
    return not (
        is_compiling()
        or dispatch_modes()
        or _function_modes()
        or are_transforms_active()
        or getattr(forward_ad, "_current_level", 0) >= 0
        or is_tracing()
        or getattr(profiler, "_is_profiler_enabled", True)
    )


def recording(function: Callable[[], Result]) -> Result:
    """What `function` returns, called with autograd on, even inside the implementation of an op,
    where autograd is passed over."""
    if _set_excluded is not None:
        autograd = torch._C.DispatchKey.AutogradFunctionality
        with torch.enable_grad(), _set_excluded(autograd, False):
            return function()
    # A new thread passes over nothing.
    on_gpu = torch.accelerator.is_available()
    stream = torch.accelerator.current_stream() if on_gpu else contextlib.nullcontext()

    def call() -> Result:
        with stream:
            return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def constant_in_graphs(function: Function) -> Function:
    """Has `torch.compile` call a function while it traces and keep the result: what
    `torch.compiler.assume_constant_result` does after importing the compiler, which takes long."""
    function._dynamo_marked_constant = True
    return function


def for_recording() -> tuple[type, dict[Callable, Callable]]:
    """(the base class of a mode that sees every op below autograd, how torch decomposes ops).

    Nothing can stand in for them: a torch without one says here what it lacks.
    """
    from torch._decomp import decomposition_table
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode, decomposition_table
