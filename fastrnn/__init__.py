"""LSTM, GRU and RNN as in `torch.nn`, computed by fused kernels."""

from importlib import metadata

from . import functional
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, install, patch, to_torch, uninstall
from .dispatch import backend, backends, set_backend
from .features import States
from .memory import release_memory
from .modules import GRU, LSTM, RNN, RNNBase
from .streamer import Streamer

try:
    __version__ = metadata.version("fastrnn")
except metadata.PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "0+unknown"

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "RNN",
    "RNNBase",
    "RNNCell",
    "States",
    "Streamer",
    "backend",
    "backends",
    "convert",
    "functional",
    "install",
    "patch",
    "release_memory",
    "set_backend",
    "to_torch",
    "uninstall",
]
