"""Starts worker processes, restarts those that end, and passes SIGTERM on."""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from workers.config import Config
from workers.cores import Placement, place
from workers.peers import Peers
from workers.words import LastWords
from zmq_offload.common.backoff import Backoff
from zmq_offload.common.cores import cpu_quota, usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.common.units import counted
from zmq_offload.console import programs

log = logging.getLogger("workers.supervisor")

PARENT_FD = "ZMQ_OFFLOAD_PARENT_FD"
"""Variable with a pipe's descriptor, for a child: the pipe is closed when its supervisor is gone."""

_SETTLE = 0.3
"""Seconds in which supervisors that start together find each other before they share the cores."""

SEAT = "ZMQ_OFFLOAD_SEAT"
"""Variable with a child's number among the processes of its supervisor, and how many had that before: SEAT,RESTARTS."""

LOG_FD = "ZMQ_OFFLOAD_LOG_FD"
"""Variable with the descriptor of the supervisor's stderr, for a child: there it writes its log."""

CORES = "ZMQ_OFFLOAD_CORES"
"""Variable with the cores that a child is bound to, separated by commas."""


@dataclass(slots=True)
class _Seat:
    """One of the processes that a supervisor keeps running."""

    backoff: Backoff
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    terminated: bool = False
    starts: int = 0
    """How many processes it has had."""
    words: LastWords | None = None
    kept: tuple[int, ...] = ()
    """The cores that its process is bound to."""


class Supervisor:
    """Keeps `processes` children running, each `zmq-offload worker` with the same arguments."""

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        if config.executor == "graph" and importlib.util.find_spec("tvm") is None:
            # Reported once here, and not by every child at every start.
            with needs("tvm"):
                raise ImportError("No module named 'tvm'")
        self._config = config
        self._command = [*programs.command(), "worker", *arguments]
        self._seats = [_Seat(Backoff()) for _ in range(config.processes)]
        self._stopping = False
        self._cores = sorted(os.sched_getaffinity(0))
        self._peers: Peers | None = None
        # Nothing is written to it. When this process ends, for any reason, its children read the end of file.
        self._alive_read, self._alive_write = os.pipe()
        self._log_fd = os.dup(2)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP. Returns 0 if then every child stops without an error."""
        quota = cpu_quota()
        log.info(
            "%s on %s%s",
            counted(len(self._seats), "process", "es"),
            counted(len(self._cores), "core"),
            "" if quota is None else f"; the CPU quota is {quota:g} cores",
        )
        previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
                signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            if self._config.executor == "graph":
                self._peers = Peers(self._cores, len(self._seats))
                select.select([self._wake_read], [], [], _SETTLE)
            codes: list[int] = []
            while True:
                # Read once a round: after a signal, children that ended before it do not count as stopped by it.
                stopping = self._stopping
                codes += self._reap()
                if stopping:
                    self._terminate()
                    if not any(seat.process for seat in self._seats):
                        # A child that had no handler yet ends by the signal. That is not an error.
                        return int(any(code not in (0, -signal.SIGTERM) for code in codes))
                else:
                    codes.clear()
                    self._start()
                if stopping == self._stopping:
                    self._sleep()
        finally:
            signal.set_wakeup_fd(previous)
            if self._peers is not None:
                self._peers.close()

    def _stop(self, *_: object) -> None:
        self._stopping = True  # the loop acts on it: a handler may run while a process is being started

    def _terminate(self) -> None:
        for seat in self._seats:
            if seat.process is not None and not seat.terminated:
                seat.process.terminate()
                seat.terminated = True

    def _start(self) -> None:
        now = time.monotonic()
        for at, seat in enumerate(self._seats):
            if seat.process is None and now >= seat.start_at:
                where = self._place(at)
                environment = os.environ | {
                    PARENT_FD: str(self._alive_read),
                    LOG_FD: str(self._log_fd),
                    SEAT: f"{at},{seat.starts}",
                    # Each process has its own thread pool. Together they must not exceed the cores.
                    "TVM_NUM_THREADS": str(where.threads),
                }
                if where.cores is not None:
                    # The environment of a device application may tell TVM not to bind its threads.
                    environment |= {CORES: ",".join(map(str, where.cores)), "TVM_BIND_THREADS": "1"}
                else:
                    # By default TVM binds its threads to the first cores, in every process to the same ones.
                    environment["TVM_BIND_THREADS"] = "0"
                with _on(where.cores):
                    # In its own session, a child does not get the terminal's Ctrl-C; this process passes it on.
                    seat.process = subprocess.Popen(
                        self._command,
                        env=environment,
                        stderr=subprocess.PIPE,
                        pass_fds=[self._alive_read, self._log_fd],
                        start_new_session=True,
                    )
                seat.words = LastWords(seat.process, at, self._config.name)
                seat.started = now
                seat.starts += 1
                log.info(
                    "worker %d is process %d: %s%s",
                    at,
                    seat.process.pid,
                    counted(where.threads, "thread"),
                    ""
                    if where.cores is None
                    else f", bound to core{'s' * (len(where.cores) > 1)} {','.join(map(str, where.cores))}",
                )

    def _place(self, at: int) -> Placement:
        """The placement of the process of a seat. The other supervisors are told."""
        config, own = self._config, self._seats[at]
        own.kept = ()
        earlier, later = ([], []) if self._peers is None else self._peers.look()
        where = place(
            at,
            len(self._seats),
            self._cores,
            usable=usable_cores(),
            threads=config.threads,
            earlier=earlier,
            later=later,
            held=[seat.kept for seat in self._seats],
        )
        if not config.pin or config.executor != "graph":
            return Placement(where.threads, None)
        own.kept = where.cores or ()
        if self._peers is not None:
            self._peers.hold([seat.kept for seat in self._seats if seat.kept])
        return where

    def _reap(self) -> list[int]:
        codes = []
        for at, seat in enumerate(self._seats):
            if seat.process is not None and (code := seat.process.poll()) is not None:
                if seat.words is not None:
                    seat.words.wait()
                now = time.monotonic()
                wait = seat.backoff.ended(now - seat.started)
                seat.process, seat.start_at = None, now + wait
                codes.append(code)
                if not self._stopping:
                    log.error("worker %d ended with code %d; starting another in %.1f s", at, code, wait)
        return codes

    def _sleep(self) -> None:
        """Wait until a signal arrives or a process is due to start."""
        due = [seat.start_at for seat in self._seats if seat.process is None]
        wait = max(0.0, min(due) - time.monotonic()) if due and not self._stopping else None
        if select.select([self._wake_read], [], [], wait)[0]:
            os.read(self._wake_read, 4096)


@contextmanager
def _on(cores: Sequence[int] | None) -> Iterator[None]:
    """Bind processes that are started in the body, with all their threads, to `cores`."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
