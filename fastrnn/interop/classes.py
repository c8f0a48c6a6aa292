"""Class checks: `isinstance(ours, torch.nn.LSTM)` is true though no class of ours derives from it.

`torch.compile` refuses every instance whose type derives from `torch.nn.LSTM` and its siblings, so
the type of a module cannot. `isinstance` asks twice, though: for the type, then for what the
instance says is its `__class__`. There a module names a stand-in, a class that derives from its
type and from the class of `torch.nn`. Nothing is an instance of a stand-in: what is called through
one, or derived from one, is called and derived of the type that it stands for.
"""

from __future__ import annotations

import abc
import copyreg
import functools
import sys

import torch
from torch import nn

# Who is told the type: what refuses torch's classes, what derives from `__class__` and sets
# attributes of that, and what gives such a class a metaclass of its own. The guards of compiled
# code run in a namespace that has no name.
_TOLD_THE_TYPE = ("torch._dynamo.", "torch.nn.", "pyro.nn.")


class _StandIn(abc.ABCMeta):
    """The class of stand-ins. `stands_for` is the type of the modules. Somebody may derive from a
    stand-in and an ABC at once."""

    stands_for: type

    def __new__(meta, name: str, bases: tuple[type, ...], namespace: dict):
        """The class that somebody derives from stand-ins."""
        return type(name, tuple(map(_type_behind, bases)), namespace)

    def __call__(cls, *args, **kwargs):
        return cls.stands_for(*args, **kwargs)

    def __instancecheck__(cls, instance) -> bool:
        return isinstance(instance, cls.stands_for)

    def __subclasscheck__(cls, other: type) -> bool:
        # Not issubclass: an ABC asks its subclasses, stand-ins too.
        return type.__subclasscheck__(cls.stands_for, other)

    def __eq__(cls, other) -> bool:
        return cls.stands_for is _type_behind(other)

    def __hash__(cls) -> int:
        return hash(cls.stands_for)

    def __setattr__(cls, name: str, value) -> None:
        setattr(cls.stands_for, name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(cls.stands_for, name)


def _type_behind(cls):
    return cls.stands_for if isinstance(cls, _StandIn) else cls


def _stand_in(cls: type) -> type:
    """The stand-in of `cls`, made once. A class that derives from torch's needs none: `cls`."""
    torchs = cls.torch_class
    if issubclass(cls, torchs):
        return cls
    made = cls.__dict__.get("_stand_in_")
    if made is None or made.stands_for is not cls:  # the namespace of another class was copied
        names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        made = type.__new__(
            _meta(type(cls)), cls.__name__, (cls, torchs), names | {"stands_for": cls}
        )
        cls._stand_in_ = made
    return made


def torchs_class(cls: type) -> type | None:
    """The class of `torch.nn` that does what `cls` does; None if a user's code is in between."""
    if "converted_from" in vars(cls):
        return cls.converted_from
    return vars(cls).get("torch_class")


@functools.cache
def _meta(base: type[type]) -> type[_StandIn]:
    """The class of the stand-ins of classes whose own class is `base`."""
    meta = _StandIn if base is type else type("_StandIn", (_StandIn, base), {})
    copyreg.pickle(meta, lambda stand_in: (_type_behind, (stand_in.stands_for,)))
    return meta


def _new(cls: type, *args):
    """Names of this module are in the files of users, who say which classes may be loaded."""
    return cls.__new__(cls, *args)


torch.serialization.add_safe_globals([_new])


def set_class(module: nn.Module, new: type) -> None:
    """Makes `new` the type of the module."""
    object.__dict__["__class__"].__set__(module, new)


class PassesFor:
    """A module whose class passes for `torch_class` where somebody asks for the class."""

    torch_class: type[nn.Module]

    @property
    def __class__(self):
        asks = sys._getframe(1).f_globals.get("__name__", "")
        if not asks or asks.startswith(_TOLD_THE_TYPE):
            return type(self)
        return _stand_in(type(self))

    @__class__.setter
    def __class__(self, new: type) -> None:
        set_class(self, _type_behind(new))

    def __reduce_ex__(self, protocol: int):
        """As the object's own, which pickle refuses where type and `__class__` differ."""
        function, *rest = object.__reduce_ex__(self, max(protocol, 2))
        return (_new if function is copyreg.__newobj__ else function, *rest)
