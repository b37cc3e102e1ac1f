"""`python -m tests.support.gpu_worker`: workers whose GPU is a stub, for machines without one.

GPUS says how many there are, all of compute capability 9.0; the CPU computes for them. GPU_FAULT names a file: if it
exists, the next run takes it away and fails with the error that it has, as TVM would. With a second line the file
stays, and all runs fail. GPU_SECONDS is how long a run takes, and GPU_OVERLAPPED names a file that is made when a run
began before the last one ended.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import workers.__main__
import workers.supervisor
from workers.supervisor import PARENT_FD, Supervisor
from zmq_offload.common.nvidia import Driver, NvidiaGpu
from zmq_offload.errors import FailedPrecondition
from zmq_offload.runtime import runtime_only

GPUS = int(os.environ.get("GPUS", "1"))
found = Driver("", "13.0", tuple(NvidiaGpu("Stub", "9.0", "") for _ in range(GPUS)))


def install() -> None:
    """Replace the GPUs of this process by stubs."""
    import workers.gauge
    from tests.support.gpus import StubNvml, stub_gpu
    from zmq_offload.runtime import copies, gpu

    workers.gauge.driver = lambda: found
    sys.modules["pynvml"] = StubNvml()  # type: ignore[assignment]

    def open_stub(name: str) -> gpu.Gpu:
        if int(name.removeprefix("cuda:")) >= GPUS:
            raise FailedPrecondition(f"{name} is not there; `nvidia-smi -L` lists the GPUs of this machine")
        return stub_gpu(name)

    results = gpu.GpuMachine._results

    def failing(self: Any, arguments: Any) -> Any:
        fault = Path(os.environ.get("GPU_FAULT", ""))
        if fault.is_file():
            text, stays = fault.read_text().splitlines()[0], "\n" in fault.read_text()
            if not stays:
                fault.unlink()
            raise RuntimeError(text)
        return results(self, arguments)

    wait = copies.Copies.wait

    def waiting(self: Any, event: int) -> None:
        time.sleep(float(os.environ.get("GPU_SECONDS", "0")))
        wait(self, event)

    add = gpu.Flight.__init__

    def added(self: Any, on: gpu.Gpu, *others: Any) -> None:
        if on.flights and (overlapped := os.environ.get("GPU_OVERLAPPED")):
            Path(overlapped).touch()
        add(self, on, *others)

    gpu.Flight.__init__ = added  # type: ignore[method-assign]
    copies.Copies.wait = waiting  # type: ignore[method-assign]
    gpu.open_gpu = open_stub
    gpu.GpuMachine._results = failing  # type: ignore[method-assign]


class StubSupervisor(Supervisor):
    """Starts this module, not `workers`, as its processes."""

    def __init__(self, config: Any, arguments: Sequence[str]) -> None:
        super().__init__(config, arguments)
        self._command = [sys.executable, "-m", "tests.support.gpu_worker", *arguments]


if __name__ == "__main__":
    if PARENT_FD in os.environ:
        runtime_only.use()
        install()
    workers.supervisor.driver = lambda: found
    workers.supervisor.Supervisor = StubSupervisor  # type: ignore[misc]
    sys.exit(workers.__main__.main())
