"""Recorders: `torch.jit.trace`, `torch.jit.script`, the ONNX exporters and `torch.fx`.

What they write is for `torch.nn` to run, or for a runtime that knows the operators of PyTorch. So
a recorded module is that of `torch.nn` on the same parameters, and what that has no way to say
raises. For `torch.fx` a module is a leaf, as those of `torch.nn` are.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from ..arguments import check_kind
from ..torch_private import is_tracing
from .classes import set_class, torchs_class


def recording() -> bool:
    """Whether calls are recorded for PyTorch's own operators, rather than just run."""
    if is_dynamo_compiling():
        return False
    if is_tracing():
        return True
    onnx = sys.modules.get("torch.onnx")  # which importing torch leaves out
    return onnx is not None and onnx.is_in_onnx_export()


def are_own_affair(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the class of one has a `__torch_function__` of its own, as the expanded weights of
    torch."""
    for tensor in tensors:
        if type(tensor) in (torch.Tensor, nn.Parameter) or is_dynamo_compiling():
            continue
        function = getattr(type(tensor).__torch_function__, "__func__", None)
        if function not in (None, torch.Tensor.__torch_function__.__func__):
            return True
    return False


def as_torch(module: nn.Module, input, hx, asked: dict | None = None):
    """What the module of `torch.nn` makes of the call.

    Raises:
        RuntimeError: the call asks for what only ours can do.
    """
    name = module.torch_class.__name__
    features = [key for key, value in (asked or {}).items() if not _off(value)]
    if features:
        raise RuntimeError(
            f"{', '.join(sorted(features))} cannot be used here: under torch.jit.trace, in export "
            "to ONNX, with expanded weights and with input that is no tensor, "
            f"torch.nn.{name} computes the call"
        )
    return module.torch_class.forward(module, input, hx)


def _off(value) -> bool:
    """Whether it is a default; a recorder makes tensors of numbers."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = bool(value)
    return value is None or value is False


def of_no_tensor(module: nn.Module, input, hx, asked: dict | None = None):
    """The call with an input that is no tensor: `torch.fx` records it, others look like tensors."""
    proxies = [each for each in (input, *_flat(hx)) if isinstance(each, torch.fx.Proxy)]
    if not proxies:
        if module.torch_class is None:
            check_kind("input", input, (torch.Tensor, PackedSequence), "a tensor or PackedSequence")
        return as_torch(module, input, hx, asked)
    tracer = proxies[0].tracer
    path = tracer.path_of_module(module)
    if not path:  # it is the whole model, so no leaf: fx says that it cannot record torch.nn's
        return as_torch(module, input, hx)
    asked = {key: value for key, value in (asked or {}).items() if value is not None}
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", path, arguments, asked)


def _flat(hx) -> tuple:
    return tuple(hx) if isinstance(hx, tuple | list) else (hx,)


class _BeingScripted:
    """A module that `torch.jit.script` reads as one of `torch.nn`, until anybody else uses it."""

    ours: type

    @property
    def __class__(self):
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return type(self) if asks.startswith("torch.") else self.ours

    @__class__.setter
    def __class__(self, new: type) -> None:
        set_class(self, new)

    def _end(self) -> None:
        set_class(self, self.ours)

    def __getattr__(self, name: str):
        if hasattr(self.ours, name):
            self._end()
            return getattr(self, name)
        return super().__getattr__(name)

    def __call__(self, *args, **kwargs):
        if recording():
            return super().__call__(*args, **kwargs)
        self._end()
        return self(*args, **kwargs)

    def __reduce_ex__(self, protocol: int):
        self._end()
        return self.__reduce_ex__(protocol)

    def __prepare_scriptable__(self) -> nn.Module:
        return self


@functools.cache
def _being_scripted(ours: type, torchs: type) -> type:
    # The compiler looks for the source of the class under its name.
    names = {name: getattr(torchs, name) for name in ("__module__", "__qualname__")}
    return type(torchs.__name__, (_BeingScripted, torchs), names | {"ours": ours})


def end_scripting(module: nn.Module) -> None:
    """Makes the module ours again if `torch.jit.script` has read it."""
    if isinstance(module, _BeingScripted):
        module._end()


class Recorded:
    """A module that `torch.jit` takes for that of `torch.nn`."""

    def _slow_forward(self, *input, **kwargs):
        """The call that `torch.jit.trace` makes. The ONNX exporter passes defaults by position."""
        keywords = list(inspect.signature(self.forward).parameters)[2:]
        given = dict(zip(keywords, input[2:], strict=False))
        kwargs |= {key: value for key, value in given.items() if not _off(value)}
        return super()._slow_forward(*input[:2], **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        """`self`, whose place in the model the compiler gives to what is returned."""
        ours = type(self)
        torchs = torchs_class(ours)
        if torchs is None:
            raise RuntimeError(
                f"torch.jit.script cannot compile {ours.__name__}, a class derived from fastrnn's; "
                "fastrnn.to_torch(model) gives it what is not derived or parametrized"
            )
        set_class(self, _being_scripted(ours, torchs))
        return self


def register(recursive: ModuleType) -> None:
    """Has `torch.jit.ScriptModule` prepare the modules in it, as `torch.jit.script` does."""
    create = getattr(recursive, "create_script_module", None)
    if create is None:
        return

    @functools.wraps(create)
    def create_script_module(nn_module: nn.Module, *args, **kwargs):
        if isinstance(nn_module, torch.jit.ScriptModule):
            for module in list(nn_module.modules()):
                if isinstance(module, Recorded):
                    module.__prepare_scriptable__()
        return create(nn_module, *args, **kwargs)

    recursive.create_script_module = create_script_module
