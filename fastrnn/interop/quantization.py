"""`torch.ao.quantization`, which looks modules up by their type and then sets their `qconfig`."""

from __future__ import annotations

import warnings

from .classes import set_class, torchs_class


class Quantizable:
    """A module that becomes that of `torch.nn` when it is given something to quantize by."""

    @property
    def qconfig(self):
        try:
            return vars(self)["qconfig"]
        except KeyError:
            raise AttributeError(f"{self._get_name()} has no qconfig") from None

    @qconfig.setter
    def qconfig(self, new) -> None:
        vars(self)["qconfig"] = new
        torchs = torchs_class(type(self))
        if new is not None and torchs is not None:
            set_class(self, torchs)
        else:
            warnings.warn(
                f"torch.ao.quantization leaves {self._get_name()} of fastrnn in floating point: "
                "fastrnn.to_torch(model) makes it a module that it finds",
                stacklevel=2,
            )

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]
