"""LSTM, GRU and RNN as in `torch.nn`, computed by fused kernels."""

import os
import re


def _check_torch() -> None:
    """One line where torch is missing or too old, in place of whatever would fail first."""
    needs = "fastrnn needs torch >= 2.11"
    try:
        from torch import __version__ as version
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{needs}, and none is installed here") from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 11):
        raise ImportError(f"{needs}, got {version}: install a newer one")


_check_torch()

from . import functional, zoo
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, install, patch, to_torch, uninstall
from .dispatch import backend, backends, set_backend
from .features import States
from .interop.registered import register as _register
from .memory import release_memory
from .modules import GRU, LSTM, RNN, RNNBase
from .programs import Cell, StepError
from .quantization import quantization_error
from .recurrent import Recurrent
from .streamer import Streamer
from .tuning import tune
from .version import VERSION

__version__ = VERSION

_register()


def _set_backend_from_environment() -> None:
    """What `set_backend` does, for the name in FASTRNN_BACKEND, if there is one.

    Raises:
        ImportError: that backend does not exist or cannot run.
    """
    if name := os.environ.get("FASTRNN_BACKEND"):
        try:
            set_backend(name)
        except (ValueError, RuntimeError) as error:
            raise ImportError(f"FASTRNN_BACKEND={name}: {error}") from None


_set_backend_from_environment()

__all__ = [
    "Cell",
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNBase",
    "RNNCell",
    "Recurrent",
    "States",
    "StepError",
    "Streamer",
    "backend",
    "backends",
    "convert",
    "functional",
    "install",
    "patch",
    "quantization_error",
    "release_memory",
    "set_backend",
    "to_torch",
    "tune",
    "uninstall",
    "zoo",
]
