"""Libraries that several models of a process use: one is loaded once, so that its weights are in memory once."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from zmq_offload.runtime.machine import load_library
from zmq_offload.runtime.tvm_library import tvm_ffi


class SharedLibrary:
    """A library that is in use. It is unloaded when the last user drops this object and the machines on it."""

    __slots__ = ("__weakref__", "_loading", "_module")

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._module: tvm_ffi.Module | None = None

    def load(self, path: Path) -> tvm_ffi.Module:
        """The library's module, loaded from `path` if nobody else has loaded it."""
        with self._loading:
            if self._module is None:
                self._module = load_library(path)
            return self._module


_in_use: weakref.WeakValueDictionary[str, SharedLibrary] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_library(checksum: str) -> SharedLibrary:
    """The library with this checksum, which its file was found to have. Files with equal content are one library,
    whether they are links to one file or copies."""
    with _lock:
        library = _in_use.get(checksum)
        if library is None:
            library = _in_use[checksum] = SharedLibrary()
        return library
