"""`torch.ao.quantization`, which looks modules up by their type and then sets their `qconfig`."""

from __future__ import annotations

import copy
import functools
import warnings
from types import ModuleType

from torch import nn

from .classes import set_class, torchs_class


class Quantizable:
    """A module that becomes that of `torch.nn` when it is given something to quantize by."""

    @property
    def qconfig(self) -> object:
        try:
            return vars(self)["qconfig"]
        except KeyError:
            raise AttributeError(f"{self._get_name()} has no qconfig") from None

    @qconfig.setter
    def qconfig(self, new: object) -> None:
        vars(self)["qconfig"] = new
        if new is None:
            return
        torchs = torchs_class(type(self))
        if torchs is None or torchs is nn.RNN:
            why = (
                "it has no quantized RNN"
                if torchs
                else "a class of its own, which fastrnn.to_torch(model) may make one that it finds"
            )
            warnings.warn(
                f"torch.ao.quantization leaves {self._get_name()} of fastrnn in floating point: "
                f"{why}",
                stacklevel=2,
            )
        else:
            set_class(self, torchs)

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]


def register(quantize: ModuleType) -> None:
    """Has `torch.ao.quantization` find our modules where those of `torch.nn` are asked for."""
    propagate = getattr(quantize, "propagate_qconfig_", None)
    if propagate is None:
        return

    @functools.wraps(propagate)
    def propagate_qconfig_(module: nn.Module, qconfig_dict=None, *args, **kwargs):
        asked = dict(qconfig_dict or {})
        for ours in {type(each) for each in module.modules() if isinstance(each, Quantizable)}:
            if ours.torch_class in asked:
                asked.setdefault(ours, asked[ours.torch_class])
        return propagate(module, asked, *args, **kwargs)

    quantize.propagate_qconfig_ = propagate_qconfig_


def register_graph_mode(quantize: ModuleType) -> None:
    """Has `torch.ao.quantization.prepare_fx` find our modules: while it looks they are those of
    `torch.nn`, and what it is to quantize stays so."""
    prepare = getattr(quantize, "_prepare_fx", None)
    if prepare is None:
        return

    @functools.wraps(prepare)
    def _prepare_fx(model: nn.Module, qconfig_mapping, *args, **kwargs):
        asked = copy.deepcopy(qconfig_mapping)
        for cls, qconfig in tuple(getattr(asked, "object_type_qconfigs", {}).items()):
            if isinstance(cls, type) and issubclass(cls, Quantizable):
                asked.object_type_qconfigs.setdefault(cls.torch_class, qconfig)
        ours = {each: type(each) for each in model.modules() if isinstance(each, Quantizable)}
        torchs = {each: torchs_class(cls) for each, cls in ours.items()}
        found = [each for each, cls in torchs.items() if cls not in (None, nn.RNN)]
        for each in found:
            set_class(each, torchs[each])
        try:
            return prepare(model, asked, *args, **kwargs)
        finally:
            for each in found:
                if vars(each).get("qconfig") is None:
                    set_class(each, ours[each])

    quantize._prepare_fx = _prepare_fx
