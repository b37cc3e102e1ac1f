"""What stands in for NVIDIA's driver and GPUs."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zmq_offload.artifacts.repository import DESCRIPTION


class StubDriver:
    """A driver with some GPUs, as `ctypes` calls it. `code` is what its start says."""

    def __init__(self, gpus: int, code: int = 0) -> None:
        self._gpus = gpus
        self.cuInit = lambda _: code

    def cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12040

    def cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self._gpus

    def cuDeviceGet(self, device: Any, number: int) -> None:
        device._obj.value = number

    def cuDeviceGetName(self, name: Any, _: int, device: Any) -> None:
        name.value = b"GPU %d" % device.value

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> None:
        value._obj.value = {75: 9, 76: device.value}[which]

    def cuDeviceGetPCIBusId(self, address: Any, _: int, device: Any) -> None:
        address.value = b"0000:%02X:00.0" % (0x3B + device.value)


class StubNvml:
    """NVML for one GPU, as its Python module is. `lost`: it says nothing any more. `parted`: not how busy it is."""

    class NVMLError(Exception):
        """What NVML raises."""

    def __init__(self, lost: bool = False, parted: bool = False) -> None:
        self.lost, self.parted = lost, parted
        self.address = b""

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:
        self.address = address
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        if self.lost:
            raise self.NVMLError
        return SimpleNamespace(used=5 * 1024**3, total=80 * 1024**3)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        if self.lost or self.parted:
            raise self.NVMLError
        return SimpleNamespace(gpu=87)


class _Function:
    """A function of a library, as `ctypes` has it."""

    argtypes: Any = None
    restype: Any = None

    def __init__(self, does: Callable[..., int]) -> None:
        self._does = does

    def __call__(self, *values: Any) -> Any:
        return self._does(*values)


class StubCudart:
    """CUDA's runtime for one GPU that is the CPU.

    What is put on a stream of copies is done when something waits for it, in the order of the stream, and no sooner. So
    a program that does not wait finds old bytes. What is on the default stream is done at once.
    """

    def __init__(self, memory: int = 1 << 40) -> None:
        self.memory = memory
        """Bytes of page-locked memory that there are."""
        self.code = 0
        """What the next call returns."""
        self.waiting: dict[int, list[Callable[[], object]]] = {}
        self.done: list[str] = []
        """What was done, in this order."""
        self._events: dict[int, tuple[int, int]] = {}
        self._begun: dict[int, int] = {}
        self._locked: dict[int, Any] = {}
        self._made = 0
        self._modes: dict[int, int] = {}
        self.capturing: int | None = None
        """The thread that captures a CUDA graph, in CUDA's strictest mode, as TVM does."""

    def __getattr__(self, name: str) -> _Function:
        function = _Function(getattr(type(self), f"_{name}").__get__(self))
        setattr(self, name, function)
        return function

    def _new(self, where: Any) -> int:
        self._made += 1
        where._obj.value = self._made
        return 0

    def _cudaSetDevice(self, number: int) -> int:
        return 0

    def _cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        thread = threading.get_ident()
        self._modes[thread], mode._obj.value = mode._obj.value, self._modes.get(thread, 0)
        return 0

    def _forbidden(self) -> bool:
        """Whether a thread captures so that this one may not wait, and not free memory."""
        thread = threading.get_ident()
        return self.capturing is not None and (self.capturing == thread or not self._modes.get(thread, 0))

    def _cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:
        assert flags == 1, "it would wait for the default stream"
        self._new(stream)
        self.waiting[stream._obj.value], self._begun[stream._obj.value] = [], 0
        return 0

    def _cudaEventCreateWithFlags(self, event: Any, flags: int) -> int:
        return self._new(event)

    def _cudaEventRecord(self, event: int, stream: int | None) -> int:
        if stream is not None:
            self._events[event] = stream, self._begun[stream] + len(self.waiting[stream])
        return 0

    def _cudaStreamWaitEvent(self, stream: int | None, event: int, flags: int) -> int:
        if stream is None:
            return self._cudaEventSynchronize(event)
        assert event not in self._events, "copies wait for what computes, which is done"
        return 0

    def _cudaEventSynchronize(self, event: int) -> int:
        if self._forbidden():
            return 900
        code, self.code = self.code, 0
        stream, end = self._events[event]
        while self._begun[stream] < end:
            self._begun[stream] += 1
            self.waiting[stream].pop(0)()
        return code

    def _cudaStreamSynchronize(self, stream: int | None) -> int:
        while stream is not None and self.waiting[stream]:
            self._begun[stream] += 1
            self.waiting[stream].pop(0)()
        return 0

    def _cudaMemcpyAsync(self, there: int, source: int, nbytes: int, kind: int, stream: int) -> int:
        name = {1: "in", 4: "out"}[kind]
        if not self._is_locked(source if kind == 1 else there):
            # The source is read before this returns, and the destination written: by CUDA's own staging.
            self._cudaStreamSynchronize(stream)
            ctypes.memmove(there, source, nbytes)
            self.done.append(f"{name}, not locked")
            return 0

        def copy() -> None:
            ctypes.memmove(there, source, nbytes)
            self.done.append(name)

        self.waiting[stream].append(copy)
        return 0

    def _is_locked(self, address: int) -> bool:
        return any(first <= address < first + len(memory) for first, memory in self._locked.items())

    def _cudaHostAlloc(self, where: Any, size: int, flags: int) -> int:
        if size > self.memory:
            return 2
        self.memory -= size
        memory = ctypes.create_string_buffer(size)
        where._obj.value = ctypes.addressof(memory)
        self._locked[ctypes.addressof(memory)] = memory
        return 0

    def _cudaFreeHost(self, address: int) -> int:
        if self._forbidden():
            return 900
        self.memory += len(self._locked.pop(address))
        return 0

    def _cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = 1
        code, self.code = self.code, 0
        return code

    def _cudaGetErrorName(self, code: int) -> bytes:
        return {
            2: b"cudaErrorMemoryAllocation",
            35: b"cudaErrorInsufficientDriver",
            700: b"cudaErrorIllegalAddress",
            900: b"cudaErrorStreamCaptureUnsupported",
        }[code]

    def _cudaGetErrorString(self, code: int) -> bytes:
        return {
            2: b"out of memory",
            35: b"CUDA driver version is insufficient",
            700: b"an illegal memory access was encountered",
            900: b"operation not permitted when stream is capturing",
        }[code]


def stub_gpu(name: str = "cuda:0", capability: str = "9.0", cudart: StubCudart | None = None) -> Any:
    """The CPU, in the place of a GPU."""
    from zmq_offload.runtime.copies import Copies, Cudart
    from zmq_offload.runtime.gpu import Gpu
    from zmq_offload.runtime.tvm_library import CPU

    return Gpu(name, capability, CPU, "Stub", Copies(Cudart(cudart or StubCudart()), 0))


def for_a_gpu(repository: Path, model: str = "mlp", architecture: str = "sm_90") -> Path:
    """Let version 1 of a model say that it was built for a GPU. Its library is the CPU's, for the stub."""
    file = repository / model / "1" / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpu": {"architecture": architecture}}))
    return repository
