"""`torch.ao.quantization`, which looks modules up by their type and then sets their `qconfig`."""

from __future__ import annotations

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
