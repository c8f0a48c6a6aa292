"""The swap in a model that exists: `torch.nn` modules become ours and back, in place.

Ours and torch's modules hold the same things under the same names, so all that changes is the class
of a module. Whatever refers to the module or belongs to it stays: parameters and the optimizer over
them, hooks, tied weights, parametrizations, the training flag, its place in the model.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from . import base as rnn_base
from . import cells, modules
from .arguments import check_kind
from .interop.classes import torchs_class
from .interop.tracing import end_scripting
from .scopes import Choice, Scope

Module = TypeVar("Module", bound=nn.Module)
Filter = Callable[[str, nn.Module], bool]

_OURS = {
    getattr(nn, name): getattr(module, name)
    for module, names in ((modules, ("RNN", "LSTM", "GRU")), (cells, cells.__all__))
    for name in names
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}


def _reduce(module: nn.Module):
    """Copies and pickles refer to the user's class: that of `module` has no name."""
    return _restore, (type(module).converted_from,), module.__getstate__()


def _restore(cls: type) -> nn.Module:
    """An instance, without its state, of the class made of the user's `cls`."""
    ours = _to_ours(cls)
    return ours.__new__(ours)


def _to_ours(cls: type) -> type:
    """The class to put in the place of `cls`, which is one of `torch.nn` or derived from one.

    In a user's subclass the methods of ours come before those of torch's class.
    """
    if cls in _OURS:
        return _OURS[cls]
    made = vars(cls).get("_as_ours")  # made once, and kept as long as the user's class
    if made is not None and made.converted_from is cls:
        return made
    names = ("__module__", "__qualname__", "__doc__")
    members = {name: getattr(cls, name) for name in names}
    members |= {"converted_from": cls, "__reduce__": _reduce}
    torchs = next(base for base in cls.__mro__ if base in _OURS)

    class Meta(type(cls)):
        def mro(cls) -> list[type]:
            """Ours comes right before torch's, where `super()` of a user's method finds it."""
            order = super().mro()
            at = order.index(torchs)
            ours = [base for base in _OURS[torchs].__mro__ if base not in order]
            return order[:at] + ours + order[at:]

    made = cls._as_ours = Meta(cls.__name__, (cls,), members)
    return made


# Methods of torch.nn.RNNBase that its forward calls, and ours not in every call.
_OF_TORCH = (
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_hidden_size",
    "permute_hidden",
)


def _overridden(cls: type) -> str | None:
    """A method that a call of ours is made of and that `cls`, derived from torch's, overrides.

    Not a `forward` that calls that of the class above it: this one is then ours.
    """
    torchs = next(base for base in cls.__mro__ if base in _OURS)
    derived = cls.__mro__[: cls.__mro__.index(torchs)]
    own = {name for base in derived for name in vars(base)}
    if all(map(_calls_super, (vars(base).get("forward") for base in derived))):
        own -= {"forward"}
    call = {"__call__", *_OF_TORCH}
    for base in _OURS[torchs].__mro__:
        if base.__module__ in (rnn_base.__name__, modules.__name__, cells.__name__):
            call |= {name for name in vars(base) if not name.startswith("__")}
    return min(own & call - {"step"}, default=None)  # which a call does without


def _calls_super(forward: Callable | None) -> bool:
    """Whether a method is a plain function with `super()` in it, or there is none."""
    code = getattr(inspect.unwrap(forward), "__code__", None) if forward else None
    return forward is None or (code is not None and "super" in code.co_names)


def _class_of(module: nn.Module) -> type:
    """The class of the module, but for the one that parametrize derived from it."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def _set_class(module: nn.Module, new: type) -> None:
    if parametrize.is_parametrized(module):
        cls = type(module)
        members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), members)
    module.__class__ = new


def _list(left: list[str]) -> None:
    if left:
        warnings.warn(f"not converted: {', '.join(left)}", stacklevel=3)


def convert(module: Module, filter: Filter | None = None) -> Module:
    """Makes every RNN, LSTM, GRU and cell of `torch.nn` in a model compute with fastrnn.

    The conversion is in place: the modules stay the same objects, and only their class changes.
    Parameters, hooks, names, tied weights, parametrizations and the training flag are kept. An
    optimizer or a variable that holds a module goes on working.

    An instance of a subclass gets a class that derives from the subclass and from ours. A subclass
    or an instance that overrides `forward`, or a method that `forward` calls, is left alone. A
    `forward` that calls `super().forward` is no obstacle: the call reaches ours.

    Args:
        module: a model, or a recurrent module by itself.
        filter: called with the name within the model ("" for the model itself) and the module. A
            module for which it returns False stays as it is.

    Returns:
        `module`.

    Warns:
        UserWarning: modules were left alone, which the warning lists; or the model has nothing to
            convert.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.LSTM(10, 20))
        >>> fastrnn.convert(model) is model, type(model[0])
        (True, <class 'fastrnn.modules.LSTM'>)
    """
    check_kind("module", module, nn.Module, "a torch.nn.Module")
    if filter is not None and not callable(filter):
        raise TypeError(f"filter must be a function, got {type(filter).__name__}")
    left, found = [], False
    for name, child in list(module.named_modules()):
        end_scripting(child)
        cls = _class_of(child)
        found = found or issubclass(cls, (*_OURS, *_TORCHS))
        if not issubclass(cls, tuple(_OURS)) or issubclass(cls, tuple(_TORCHS)):
            continue
        if filter is not None and not filter(name, child):
            continue
        method = "forward" if "forward" in vars(child) else _overridden(cls)
        if method == "forward" and method not in vars(child):
            method = "forward without super().forward"
        if method:
            left.append(f"{name or 'the module'} ({cls.__name__} overrides {method})")
        else:
            _set_class(child, _to_ours(cls))
    _list(left)
    if not found:
        warnings.warn(
            f"nothing to convert: {type(module).__name__} has no LSTM, GRU, RNN or cell",
            stacklevel=2,
        )
    return module


def to_torch(module: Module) -> Module:
    """The reverse of `convert`: every module of ours in a model becomes that of `torch.nn`.

    It serves tools that know only `torch.nn`. It works in place, on the same parameters;
    `to_torch(copy.deepcopy(model))` leaves the model as it is.

    Args:
        module: a model, or a recurrent module by itself, whether `convert` made it or not.

    Returns:
        `module`.

    Warns:
        UserWarning: modules stay ours, which the warning lists: instances of subclasses of ours,
            and those with a `forward` of their own.

    Example:
        >>> type(fastrnn.to_torch(fastrnn.GRU(10, 20)))
        <class 'torch.nn.modules.rnn.GRU'>
    """
    check_kind("module", module, nn.Module, "a torch.nn.Module")
    left = []
    for name, child in list(module.named_modules()):
        end_scripting(child)
        cls = _class_of(child)
        if not issubclass(cls, tuple(_TORCHS)):
            continue
        if "forward" in vars(child):
            left.append(f"{name or 'the module'} ({cls.__name__} overrides forward)")
        elif torchs := torchs_class(cls):
            _set_class(child, torchs)
        else:
            left.append(f"{name or 'the module'} ({cls.__name__} is a subclass of fastrnn's)")
    _list(left)
    return module


_MAKERS = ("__init__", "__setstate__")  # constructors call the one; copies and pickles, the other
# Of each class and name, what we put there and what stood there, None if it was inherited.
_made: dict[tuple[type, str], tuple[Callable, Callable | None]] = {}


def _making_ours(cls: type, original: Callable) -> Callable:
    @functools.wraps(original)
    def make(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if type(self) is cls and _patched.value:
            self.__class__ = _OURS[cls]

    return make


def _set_patched(on: bool) -> None:
    """Puts our makers into the classes of torch.nn, or takes them out where they still stand.

    If somebody else has wrapped one since, the wrapper stays, and ours in it then do nothing.
    """
    for cls, name in itertools.product(_OURS, _MAKERS):
        if on:
            ours = _making_ours(cls, getattr(cls, name))
            _made[cls, name] = ours, vars(cls).get(name)
            setattr(cls, name, ours)
        elif vars(cls).get(name) is _made[cls, name][0]:
            original = _made[cls, name][1]
            delattr(cls, name) if original is None else setattr(cls, name, original)


_patched = Choice(False, _set_patched)


def patch() -> Scope:
    """Context manager in which `torch.nn.LSTM(...)` and its siblings build ours, in every thread.

    It reaches the code of other libraries, however they imported the classes, and modules that are
    unpickled or copied. Subclasses are built as they are; `convert` takes those that can be
    replaced. Several threads may enter it, and leave in any order: the classes are torch's own
    again when all have left. Without `with` it has no effect, and warns; `install` is for a swap
    that stays.

    Example:
        >>> with fastrnn.patch():
        ...     model = torch.nn.Sequential(torch.nn.LSTM(10, 20))
        >>> type(model[0])
        <class 'fastrnn.modules.LSTM'>
    """
    unused = "fastrnn.patch() has no effect without `with`; fastrnn.install() swaps for good"
    return Scope(_patched, True, unused)


def install() -> None:
    """Does what `patch` does, in the whole process and until `uninstall`.

    It serves libraries that build or load modules of `torch.nn` where no `with` can be put around
    them. A second call changes nothing.

    Example:
        >>> fastrnn.install()
        >>> type(torch.nn.GRU(10, 20))
        <class 'fastrnn.modules.GRU'>
        >>> fastrnn.uninstall()
    """
    _patched.begin("install", True)


def uninstall() -> None:
    """Ends what `install` began. Modules that were built meanwhile stay ours; a `patch` goes on.

    Example:
        >>> fastrnn.install()
        >>> fastrnn.uninstall()
        >>> type(torch.nn.GRU(10, 20))
        <class 'torch.nn.modules.rnn.GRU'>
    """
    _patched.end("install")
