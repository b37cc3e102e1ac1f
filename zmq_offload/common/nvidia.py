"""NVIDIA's GPUs as the driver tells of them. Neither CUDA nor TVM is needed for that."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from zmq_offload.errors import one_line

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

_PCI = Path("/sys/bus/pci/devices")


class NvidiaGpu(NamedTuple):
    """A GPU. `address` is its place on the PCI bus; "" if the driver does not tell."""

    title: str
    capability: str
    address: str


class Driver(NamedTuple):
    """The driver and its GPUs, in CUDA's order, which CUDA_VISIBLE_DEVICES may change."""

    error: str
    """Why it cannot be used; "" if it can."""
    cuda: str
    """The version of CUDA that it has."""
    gpus: tuple[NvidiaGpu, ...]


def driver() -> Driver:
    """Ask the driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Driver(one_line(error), "", ())
    if code := cuda.cuInit(0):
        return Driver(f"cuInit says {code}", "", ())
    count, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    found = tuple(_gpu(cuda, number) for number in range(count.value))
    return Driver("", f"{version.value // 1000}.{version.value % 1000 // 10}", found)


def _gpu(cuda: ctypes.CDLL, number: int) -> NvidiaGpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    title, address = ctypes.create_string_buffer(100), ctypes.create_string_buffer(20)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(title, len(title), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    cuda.cuDeviceGetPCIBusId(address, len(address), device)
    where = address.value.decode("ascii", "replace").lower()
    return NvidiaGpu(title.value.decode(errors="replace"), f"{major.value}.{minor.value}", where)


def cores_near(address: str, devices: Path = _PCI) -> frozenset[int]:
    """The cores of the processor that a PCI device is attached to; none if the system does not tell."""
    with suppress(OSError, ValueError):
        return cores_of((devices / address / "local_cpulist").read_text("ascii")) if address else frozenset()
    return frozenset()


def cores_of(listing: str) -> frozenset[int]:
    """The cores of a list as the kernel writes it: `0-3,8-11`."""
    found: set[int] = set()
    for part in listing.strip().split(","):
        first, _, last = part.partition("-")
        if part:
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
