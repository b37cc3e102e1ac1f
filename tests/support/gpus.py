"""What stands in for NVIDIA's driver and GPUs."""

from __future__ import annotations

import json
from pathlib import Path
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


def stub_gpu(name: str = "cuda:0", capability: str = "9.0") -> Any:
    """The CPU, in the place of a GPU."""
    from zmq_offload.runtime.gpu import Gpu
    from zmq_offload.runtime.tvm_library import CPU

    return Gpu(name, capability, CPU, "Stub")


def for_a_gpu(repository: Path, model: str = "mlp", architecture: str = "sm_90") -> Path:
    """Let version 1 of a model say that it was built for a GPU. Its library is the CPU's, for the stub."""
    file = repository / model / "1" / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpu": {"architecture": architecture}}))
    return repository
