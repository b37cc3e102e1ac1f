"""Copies between memory of this machine and of a GPU, on streams of their own, so that they pass while it computes.

What computes is on CUDA's default stream, as all that TVM gives a GPU: the pool that its virtual machines take memory
from knows no streams. The streams of the copies do not wait for the default stream by themselves. Events do that: a run
waits until its inputs are there, and its outputs are copied when it has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from zmq_offload.protocol.payload import Array

_DEFAULT_STREAM = None
_NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream and the default stream do not wait for each other."""
_NO_TIMING = 2
"""cudaEventDisableTiming."""
_PORTABLE = 1
"""cudaHostAllocPortable: the memory is page-locked for all GPUs."""
_IN, _OUT = 1, 4
"""cudaMemcpyHostToDevice; cudaMemcpyDefault, since a model may compute an output on the CPU, such as a shape."""

_OWN_CAPTURES = 1
"""cudaStreamCaptureModeThreadLocal: that another thread captures a CUDA graph forbids a thread nothing."""

_LEAST = 4096
"""Bytes. Page-locked memory comes in powers of two from here."""
_MOST_KEPT = 256 * 1024 * 1024
"""Bytes of page-locked memory that nobody uses and that are kept, as it is made by the driver, which takes time."""

_pointer, _number, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_TAKES: dict[str, Sequence[Any]] = {
    "cudaGetDeviceCount": (_pointer,),
    "cudaSetDevice": (_number,),
    "cudaThreadExchangeStreamCaptureMode": (_pointer,),
    "cudaStreamCreateWithFlags": (_pointer, ctypes.c_uint),
    "cudaStreamSynchronize": (_pointer,),
    "cudaStreamWaitEvent": (_pointer, _pointer, ctypes.c_uint),
    "cudaEventCreateWithFlags": (_pointer, ctypes.c_uint),
    "cudaEventRecord": (_pointer, _pointer),
    "cudaEventSynchronize": (_pointer,),
    "cudaHostAlloc": (_pointer, _size, ctypes.c_uint),
    "cudaFreeHost": (_pointer,),
    "cudaMemcpyAsync": (_pointer, _pointer, _size, _number, _pointer),
}
"""The functions that are used, and what they take. Each returns an error's code."""


class Cudart:
    """CUDA's runtime. Errors are RuntimeErrors in the words that TVM has for them."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, takes in _TAKES.items():
            getattr(library, name).argtypes = takes
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(library, name).restype = ctypes.c_char_p

    def call(self, name: str, *values: Any) -> None:
        """Call a function. Raises RuntimeError if it fails."""
        if code := getattr(self._library, name)(*values):
            kind, text = self._library.cudaGetErrorName(code), self._library.cudaGetErrorString(code)
            raise RuntimeError(f"CUDA Runtime Error: {kind.decode()} ({code}): {text.decode()}")

    def made(self, name: str, *values: Any) -> int:
        """What a function makes, whose first argument says where to write the address of that."""
        found = ctypes.c_void_p()
        self.call(name, ctypes.byref(found), *values)
        return found.value or 0


class Copies:
    """The copies of a GPU. Each copy may still go on when its method returns: page-locked memory must stay as it is
    until `wait`, other memory is read by then."""

    def __init__(self, cudart: Cudart, number: int) -> None:
        self._cuda, self._number = cudart, number
        self._kept: dict[int, list[int]] = {}
        self._events: list[int] = []
        self.use()
        self._in, self._out = (cudart.made("cudaStreamCreateWithFlags", _NON_BLOCKING) for _ in range(2))
        self._arrived, self._computed = self.event(), self.event()

    def use(self) -> None:
        """Have this thread's calls mean this GPU.

        TVM captures a CUDA graph so that calls of all threads, such as to wait for an event or to free memory, are
        errors meanwhile, and spoil the capture. A version that warms up captures while another thread serves. So each
        thread says that captures of others are nothing to it.
        """
        self._cuda.call("cudaSetDevice", self._number)
        self._cuda.call("cudaThreadExchangeStreamCaptureMode", ctypes.byref(ctypes.c_int(_OWN_CAPTURES)))

    def event(self) -> int:
        """A point of a stream, which others wait for."""
        return self._events.pop() if self._events else self._cuda.made("cudaEventCreateWithFlags", _NO_TIMING)

    def give_back(self, events: Sequence[int]) -> None:
        """Events that nobody uses any more."""
        self._events += events

    def into(self, there: int, array: Array) -> None:
        """Copy a contiguous array to an address of the GPU."""
        if array.nbytes:
            self._cuda.call("cudaMemcpyAsync", there, array.ctypes.data, array.nbytes, _IN, self._in)

    def compute_after(self) -> None:
        """What computes from now on waits for the copies into the GPU until now."""
        self._cuda.call("cudaEventRecord", self._arrived, self._in)
        self._cuda.call("cudaStreamWaitEvent", _DEFAULT_STREAM, self._arrived, 0)

    def copy_after(self) -> None:
        """The copies out of the GPU from now on wait for what computes until now."""
        self._cuda.call("cudaEventRecord", self._computed, _DEFAULT_STREAM)
        self._cuda.call("cudaStreamWaitEvent", self._out, self._computed, 0)

    def out_of(self, there: int, array: Array) -> None:
        """Copy from an address of the GPU to a contiguous array."""
        if array.nbytes:
            self._cuda.call("cudaMemcpyAsync", array.ctypes.data, there, array.nbytes, _OUT, self._out)

    def mark(self, event: int) -> None:
        """Let an event be the end of the copies out of the GPU until now."""
        self._cuda.call("cudaEventRecord", event, self._out)

    def wait(self, event: int) -> None:
        self._cuda.call("cudaEventSynchronize", event)

    def settle(self) -> None:
        """Wait for all that the GPU was given."""
        for stream in (self._in, _DEFAULT_STREAM, self._out):
            self._cuda.call("cudaStreamSynchronize", stream)

    def memory(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of page-locked memory, or of other memory if the system gives none. When nobody has it any more, its
        memory is kept for others."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        size = max(_LEAST, 1 << (nbytes - 1).bit_length())
        address = self._take(size) if nbytes else 0
        if not address:
            return np.empty(shape, dtype)
        memory: Any = (ctypes.c_char * nbytes).from_address(address)
        weakref.finalize(memory, self._keep, size, address).atexit = False
        return np.frombuffer(memory, dtype).reshape(shape)

    def _take(self, size: int) -> int:
        try:
            address = self._kept[size].pop()
        except (KeyError, IndexError):
            try:
                return self._cuda.made("cudaHostAlloc", size, _PORTABLE)
            except RuntimeError:
                return 0
        return address

    def _keep(self, size: int, address: int) -> None:
        """Any thread may call this, in the middle of anything: Python collects garbage when it likes."""
        if size + sum(each * len(kept) for each, kept in list(self._kept.items())) <= _MOST_KEPT:
            self._kept.setdefault(size, []).append(address)
        else:
            with contextlib.suppress(RuntimeError):  # of a GPU that is lost
                self.use()  # else a thread that has no GPU yet would take some memory of the first
                self._cuda.call("cudaFreeHost", address)
