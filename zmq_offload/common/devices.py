"""Which device each process of a worker runs on: the CPU, or one of several GPUs. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

CPU = "cpu"
ALL = "cuda:all"
"""All GPUs that the driver finds."""

WANTED = "cpu, GPUs such as cuda:0 or cuda:0,cuda:1, or cuda:all"
_GPU = re.compile(r"cuda:(0|[1-9][0-9]?)")


def named(text: str) -> tuple[str, ...]:
    """The devices of an option's value. Raises ValueError for others than `WANTED` says, and for one named twice."""
    devices = tuple(part.strip() for part in text.split(","))
    several = all(_GPU.fullmatch(device) for device in devices) and len(set(devices)) == len(devices)
    if not several and devices not in ((CPU,), (ALL,)):
        raise ValueError(text)
    return devices


def number_of(device: str) -> int | None:
    """The number of a GPU; None: the CPU."""
    match = _GPU.fullmatch(device)
    return None if match is None else int(match[1])


def all_of(devices: Sequence[str], gpus: int) -> tuple[str, ...]:
    """The devices, with each of a machine's GPUs for `cuda:all`."""
    return tuple(f"cuda:{number}" for number in range(gpus)) if tuple(devices) == (ALL,) else tuple(devices)


def of_seats(devices: Sequence[str], processes: int) -> tuple[str, ...]:
    """The device of each seat of a supervisor, with so many processes for each device. Processes of one GPU are
    neighbors, as their cores then are."""
    return tuple(device for device in devices for _ in range(processes))
