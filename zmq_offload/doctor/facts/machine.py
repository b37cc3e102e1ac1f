"""What this machine has: cores, memory, limits, clocks, GPUs."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import shutil
import time

from zmq_offload.common import nvidia
from zmq_offload.common.cores import cpu_quota
from zmq_offload.doctor.checks.machine import Clock, Gpus, Machine

_TIMEX_BYTES = 512
"""More than struct timex has on any architecture (208 on those with 64 bits). All zero, it only asks."""

_UNSYNCHRONIZED = 5
"""TIME_ERROR of adjtimex(2)."""


def machine() -> Machine:
    """Cores, memory and limits of this machine, for a process like this one."""
    soft, hard = (None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    total, available = _memory()
    try:
        os.close(os.memfd_create("zmq-offload"))
        memfd = ""
    except OSError as error:
        memfd = error.strerror or str(error)
    try:
        shm: int | None = shutil.disk_usage("/dev/shm").free
    except OSError:
        shm = None
    cores = os.cpu_count() or 1
    return Machine(cores, len(os.sched_getaffinity(0)), cpu_quota(), total, available, soft, hard, memfd, shm)


def _memory() -> tuple[int, int]:
    """All memory and the available part, in bytes."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(":")
            found[key] = int(value.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]


def clock() -> Clock:
    """What the clocks say."""
    readings = [time.monotonic() for _ in range(1000)]
    backwards = any(later < before for before, later in itertools.pairwise(readings))
    return Clock(time.time(), _synchronized(), time.get_clock_info("monotonic").resolution, backwards)


def _synchronized() -> bool | None:
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _UNSYNCHRONIZED


def gpus() -> Gpus:
    """NVIDIA's GPUs, as the driver says."""
    found = nvidia.driver()
    return Gpus(found.error, found.cuda, [(gpu.title, gpu.capability) for gpu in found.gpus])
