"""Starts worker processes, restarts those that end, and passes SIGTERM on."""

from __future__ import annotations

import errno
import importlib.util
import logging
import math
import os
import subprocess
import time
from collections.abc import Sequence

from workers.config import Config
from workers.cores import Placement, place
from workers.peers import Peers
from workers.placed import written
from workers.words import LastWords
from zmq_offload.common.cores import cpu_quota, usable_cores
from zmq_offload.common.devices import ALL, CPU, all_of, number_of, of_seats
from zmq_offload.common.extras import needs
from zmq_offload.common.nvidia import cores_near, driver
from zmq_offload.common.seats import Seats
from zmq_offload.common.units import counted
from zmq_offload.console import programs
from zmq_offload.console.supervision import Supervision
from zmq_offload.errors import FailedPrecondition

log = logging.getLogger("workers.supervisor")

PARENT_FD = "ZMQ_OFFLOAD_PARENT_FD"
"""Variable with the descriptor of a child's lifeline, where it reads on which cores it runs (`workers.placed`)."""

_SETTLE = 0.3
"""Seconds in which supervisors that start together find each other before they share the cores. Meanwhile their
processes import what they need."""

SEAT = "ZMQ_OFFLOAD_SEAT"
"""Variable with a child's number among the processes of its supervisor, and how many had that before: SEAT,RESTARTS."""

LOG_FD = "ZMQ_OFFLOAD_LOG_FD"
"""Variable with the descriptor of the supervisor's stderr, for a child: there it writes its log."""


class Supervisor(Supervision):
    """Keeps `processes` children running, each `zmq-offload worker` with the same arguments."""

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        if config.executor == "graph" and importlib.util.find_spec("tvm") is None:
            # Reported once here, and not by every child at every start.
            with needs("tvm"):
                raise ImportError("No module named 'tvm'")
        self._devices, self._near = _devices(config)
        super().__init__("worker", Seats(len(self._devices)), log)
        self._config = config
        self._command = [*programs.command(), "worker", *arguments]
        self._cores = sorted(os.sched_getaffinity(0))
        self._kept: list[tuple[int, ...]] = [()] * len(self._devices)
        """The cores that the process of each seat is bound to."""
        self._words: dict[int, LastWords] = {}
        self._unplaced: set[int] = set()
        """Seats whose processes were not told yet on which cores they run."""
        self._settled_at = 0.0
        self._peers: Peers | None = None
        self._log_fd = os.dup(2)
        # NumPy imports a library that makes threads for all cores. A worker computes nothing with it.
        self._environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ | {LOG_FD: str(self._log_fd)}

    def run(self) -> int:
        quota = cpu_quota()
        log.info(
            "%s on %s%s",
            counted(len(self._kept), "process", "es"),
            counted(len(self._cores), "core"),
            "" if quota is None else f"; the CPU quota is {quota:g} cores",
        )
        if self._config.executor == "graph":
            self._peers = Peers(self._cores, len(self._kept))
            self._settled_at = time.monotonic() + _SETTLE
        try:
            return super().run()
        finally:
            if self._peers is not None:
                self._peers.close()

    def _launch(self, at: int, starts: int, lifeline: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._command,
            env=self._environment | {PARENT_FD: str(lifeline), SEAT: f"{at},{starts}"},
            stderr=subprocess.PIPE,
            pass_fds=[lifeline, self._log_fd],
            start_new_session=True,
        )
        try:
            self._words[at] = LastWords(process, at, self._config.name)
        except RuntimeError as error:  # the system has no means for a thread
            process.kill()
            process.communicate()
            raise OSError(errno.EAGAIN, str(error)) from error
        self._unplaced.add(at)
        return process

    def _ended(self, at: int) -> None:
        self._words.pop(at).wait()
        self._unplaced.discard(at)

    def _turn(self, now: float) -> float:
        """Tell processes on which cores they run, as soon as the other supervisors are known."""
        if not self._unplaced:
            return math.inf
        if now < self._settled_at:
            return self._settled_at
        for at in sorted(self._unplaced):
            where = self._place(at)
            self._write(at, written(where))
            cores = where.cores or ()
            bound = f", bound to core{'s' * (len(cores) > 1)} {','.join(map(str, cores))}" if cores else ""
            gpu = "" if number_of(where.device) is None else f" and {where.device}"
            log.info("worker %d has %s%s%s", at, counted(where.threads, "thread"), gpu, bound)
        self._unplaced.clear()
        return math.inf

    def _place(self, at: int) -> Placement:
        """The placement of the process of a seat. The other supervisors are told."""
        config = self._config
        self._kept[at] = ()
        earlier, later = ([], []) if self._peers is None else self._peers.look()
        where = place(
            at,
            len(self._kept),
            self._cores,
            usable=usable_cores(),
            threads=config.threads,
            earlier=earlier,
            later=later,
            held=self._kept,
            near=self._near.get(self._devices[at], ()),
        )
        cores = where.cores if config.pin and config.executor == "graph" else None
        if cores is not None:
            self._kept[at] = cores
            if self._peers is not None:
                self._peers.hold([kept for kept in self._kept if kept])
        return Placement(where.threads, cores, self._devices[at])


def _devices(config: Config) -> tuple[tuple[str, ...], dict[str, frozenset[int]]]:
    """The device of each process, and the cores near each GPU, as far as the driver tells. A GPU that is not there is
    an error of its own processes, which say so."""
    if config.devices == (CPU,):
        return of_seats(config.devices, config.processes), {}
    found = driver()
    if ALL in config.devices and not found.gpus:
        raise FailedPrecondition(
            f"{ALL} finds no GPU: {found.error or 'the driver has none'}; install NVIDIA's driver (in a container, "
            "docker run --gpus all), or use --device cpu"
        )
    near = {f"cuda:{number}": cores_near(gpu.address) for number, gpu in enumerate(found.gpus)}
    return of_seats(all_of(config.devices, len(found.gpus)), config.processes), near
