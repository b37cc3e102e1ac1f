"""What this machine has: cores, memory, limits, clocks, GPUs."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import shutil
import time

from zmq_offload.common.cores import cpu_quota
from zmq_offload.doctor.checks.machine import Clock, Gpus, Machine
from zmq_offload.errors import one_line

_TIMEX_BYTES = 512
"""More than struct timex has on any architecture (208 on those with 64 bits). All zero, it only asks."""

_UNSYNCHRONIZED = 5
"""TIME_ERROR of adjtimex(2)."""

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


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
    """NVIDIA's GPUs, as the driver says. Neither CUDA nor TVM is needed for that."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Gpus(one_line(error), "", ())
    count, version = ctypes.c_int(), ctypes.c_int()
    if code := driver.cuInit(0):
        return Gpus(f"cuInit says {code}", "", ())
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for number in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(100)
        driver.cuDeviceGet(ctypes.byref(device), number)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        found.append((name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return Gpus("", f"{version.value // 1000}.{version.value % 1000 // 10}", found)
