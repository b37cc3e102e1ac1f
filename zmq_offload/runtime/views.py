"""TVM's tensors as NumPy arrays that can be written to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from zmq_offload.protocol.payload import Array


def writable_view_of(tensor: Any) -> Array:
    """A view of the memory of a tensor, which is contiguous, whatever DLPack's views are."""
    view = np.from_dlpack(tensor)
    return view if view.flags.writeable else _writable(view)


view_of: Callable[[Any], Array] = np.from_dlpack if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else writable_view_of
"""A view of the memory of a tensor, which is contiguous. Before NumPy 2.1, DLPack's own views are read-only."""


def _writable(view: Array) -> Array:
    if not view.nbytes:
        return np.empty(view.shape, view.dtype)
    memory: Any = (ctypes.c_char * view.nbytes).from_address(view.ctypes.data)
    memory.owner = view  # which keeps the tensor
    return np.frombuffer(memory, view.dtype).reshape(view.shape)
