"""Where a worker process runs: its supervisor writes that to the lifeline, and the process does as told.

A process is started before its place is known: what it imports takes as long as supervisors that start together need to
find each other.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from workers.cores import Placement

log = logging.getLogger("workers")


def written(where: Placement) -> bytes:
    """What the supervisor writes."""
    return msgspec.json.encode(where) + b"\n"


def take(lifeline: int) -> Placement | None:
    """Wait for the place, and run there with all threads. Returns it, with the cores that this process is bound to.

    Returns None if the supervisor is gone.
    """
    line = b""
    while not line.endswith(b"\n"):
        if not (more := os.read(lifeline, 4096)):
            return None
        line += more
    where = msgspec.json.decode(line, type=Placement)
    cores = _bound(where.cores or ())
    # Each process has its own thread pool. Together they must not exceed the cores.
    os.environ["TVM_NUM_THREADS"] = str(where.threads)
    # By default TVM binds its threads to the first cores, in every process to the same ones. The environment of a
    # device application may tell it not to bind them.
    os.environ["TVM_BIND_THREADS"] = "1" if cores else "0"
    return Placement(where.threads, cores, where.device)


def _bound(cores: tuple[int, ...]) -> tuple[int, ...]:
    """Bind this process to cores, with the threads that it has by now, and with those that these start."""
    if cores:
        try:
            for thread in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)
        except OSError as error:  # they were taken from this process since its supervisor looked
            log.warning("cannot run on cores %s: %s; the system chooses", ",".join(map(str, cores)), error)
            return ()
    return cores
