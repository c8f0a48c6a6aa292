"""What was found out on a machine, kept for the next process: JSON in the user's cache folder."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..version import VERSION
from . import gpu

try:
    import fcntl
except ImportError:  # Windows: of two processes that write at once, the later one counts
    fcntl = None

FORMAT = 1  # of the files; one of another format is foreign


def folder() -> Path:
    """Where the files are: FASTRNN_CACHE, or a folder in that of the user's caches.

    Raises:
        FileNotFoundError: the user has no home, as in some containers.
    """
    if own := os.environ.get("FASTRNN_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        caches = "~/Library/Caches"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(caches).expanduser() / "fastrnn"
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} FASTRNN_CACHE names another folder.") from error


@functools.cache
def machine(device: torch.device) -> str:
    """What a result holds for: the GPU, its driver, and the versions of torch and of this package.
    For a CPU, where kernels for GPUs are emulated, it is the versions alone."""
    versions = f"torch {torch.__version__}, fastrnn {VERSION}"
    if device.type != "cuda":
        return f"{device.type}, {versions}"
    name, capability = torch.cuda.get_device_name(device), gpu.capability(device)
    return f"{name}, sm_{capability[0]}{capability[1]}, driver {gpu.driver()}, {versions}"


def is_of(key: str, device: torch.device) -> bool:
    """Whether the key of an entry, which ends with the machine, is of this one."""
    return key.endswith((f", {machine(device)}", f": {machine(device)}"))


class File:
    """A file of entries by key. Threads and processes may read and change it at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned = False

    @property
    def path(self) -> Path:
        return folder() / self._name

    def read(self) -> dict:
        """The entries. A file that is damaged or foreign gives none, and one warning."""
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["format"] == FORMAT and isinstance(held["entries"], dict):
                return held["entries"]
            reason = f"its format is {held['format']}, this version reads {FORMAT}"
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"fastrnn ignores {self.path}, which it cannot read ({reason}). The file is "
                "written anew when there is something to keep.",
                stacklevel=2,
            )
        return {}

    def change(self, change: Callable[[dict], None]) -> None:
        """Has `change` alter the entries, with no other process in between.

        Whoever reads meanwhile sees the file as it was or as it will be.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            entries = self.read()
            change(entries)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump({"format": FORMAT, "entries": entries}, file, indent=1)
                os.replace(name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system gives up when the process ends.

    It is given up by name: a child that another thread forks meanwhile has the file open, too, and
    would hold the lock for as long as it lives.
    """
    with open(path, "a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_UN)
