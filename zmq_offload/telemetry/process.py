"""What the system knows of this process, by the names that all programs with metrics use."""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from zmq_offload.common.memory import resident
from zmq_offload.common.version import __version__
from zmq_offload.telemetry.exposition import Family

_LOADED_AT = time.time()


def families() -> Iterator[Family]:
    """The program's version, and its CPU time, memory and files."""
    build = Family("zmq_offload_build_info", "gauge", "The versions of zmq-offload and of Python, as labels.")
    build.add(1, {"version": __version__, "python": ".".join(map(str, sys.version_info[:3]))})
    yield build
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = Family("process_cpu_seconds_total", "counter", "CPU time of the process in seconds.")
    cpu.add(used.ru_utime + used.ru_stime)
    yield cpu
    for name, value, help in (
        ("process_start_time_seconds", _started_at(), "When the process started, in seconds since 1970."),
        ("process_resident_memory_bytes", resident(), "Bytes of the process that are in memory."),
        ("process_open_fds", _open_files(), "Files and sockets that the process has open."),
        ("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0], "Files that it may have open."),
    ):
        family = Family(name, "gauge", help)
        family.add(value)
        yield family


@functools.cache
def _started_at() -> float:
    """When the process started; when this module was loaded if the system does not tell."""
    try:
        # The name of the program, in parentheses, may have spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration):
        return _LOADED_AT


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
