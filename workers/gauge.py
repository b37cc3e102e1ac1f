"""How much of its memory a GPU uses, and how busy it is: read in a thread, since NVIDIA's library may take its time."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from typing import Any

from zmq_offload.common.devices import number_of
from zmq_offload.common.nvidia import driver
from zmq_offload.errors import one_line
from zmq_offload.protocol.payload import encode_body

log = logging.getLogger("workers")


class Gauge(threading.Thread):
    """Reads every so many seconds, until the process ends. `body` is what a Heartbeat carries."""

    def __init__(self, nvml: Any, handle: Any, every: float) -> None:
        super().__init__(name="gauge", daemon=True)
        self._nvml, self._handle, self._every = nvml, handle, every
        self.body: tuple[bytes, ...] = ()

    def run(self) -> None:
        while True:
            self.read()
            threading.Event().wait(self._every)

    def read(self) -> None:
        """Make `body` anew: all that the GPU tells. It is empty for a GPU that tells nothing."""
        nvml, found = self._nvml, {}
        # NVML has errors of its own for what a GPU cannot tell, such as how busy a part of one is, and for a lost GPU.
        with contextlib.suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
            found["used_bytes"], found["total_bytes"] = int(memory.used), int(memory.total)
        with contextlib.suppress(nvml.NVMLError):
            found["busy_percent"] = int(nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        self.body = (encode_body({"gpu": found}),) if found else ()


def gauge_of(device: str, every: float) -> Gauge | None:
    """The gauge of a GPU, not started; None, and a line in the log, if what it uses cannot be known."""
    number = number_of(device)
    found = driver().gpus
    if number is None or number >= len(found):
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        # NVML counts all GPUs; CUDA those that CUDA_VISIBLE_DEVICES names.
        handle = nvml.nvmlDeviceGetHandleByPciBusId(found[number].address.encode())
    except Exception as error:
        log.info("how much of %s is used is not known: %s (pip install nvidia-ml-py)", device, one_line(error))
        return None
    return Gauge(nvml, handle, every)
