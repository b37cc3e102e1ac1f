"""Several broker processes on one host: starts them, restarts one that ends, and stops all.

The processes do not know of each other. Each has ports of its own, which it keeps over a restart, so that its clients
and workers find it again.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.config import Config
from broker.places import Place
from zmq_offload.common.backoff import Backoff
from zmq_offload.common.units import counted
from zmq_offload.console import programs
from zmq_offload.console.settings import NONE

log = logging.getLogger("broker.supervisor")

SEAT = "ZMQ_OFFLOAD_BROKER_SEAT"
"""Variable for a child: its number, how many had that before, and the descriptor of a pipe that is closed when its
supervisor is gone: NUMBER,RESTARTS,FD."""

_READY = re.compile(r"ready frontend=(\S+) backend=(\S+)(?: metrics=(\S+))?")

_MARGIN = 5.0
"""Seconds after the grace in which a process that was stopped has to end. One that hangs is killed then."""


@dataclass(slots=True)
class _Seat:
    """One of the processes."""

    place: Place
    backoff: Backoff = field(default_factory=Backoff)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    starts: int = 0
    said: bytes = b""
    """What the process wrote on stdout."""
    was_ready: bool = False
    terminated: bool = False


class Supervisor:
    """Keeps a broker process running at each of the places, with the same arguments otherwise."""

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        self._grace = config.grace
        self._command = [*programs.command(), "broker", *arguments]
        self._seats = [_Seat(place) for place in config.places]
        self._stopping = False
        self._told = False
        # Nothing is written to it. When this process ends, for any reason, its children read the end of file.
        self._alive_read, self._alive_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP. Returns 0 if then every process stops without an error.

        A process that ends before it was ever ready cannot serve there: then all are stopped, and 1 is returned.
        """
        log.info("%s", counted(len(self._seats), "process", "es"))
        previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
                signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        failed = False
        kill_at = 0.0
        try:
            while True:
                # Read once a round: after a signal, processes that ended before it do not count as stopped by it.
                stopping = self._stopping
                for seat, code in self._reap():
                    # One that had no handler yet ends by the signal. That is not an error.
                    failed |= not seat.was_ready if not stopping else code not in (0, -signal.SIGTERM)
                    if not seat.was_ready:
                        self._stopping = True
                if stopping:
                    kill_at = kill_at or time.monotonic() + self._grace + _MARGIN
                    self._end(kill=time.monotonic() >= kill_at)
                    if not any(seat.process for seat in self._seats):
                        return int(failed)
                else:
                    self._start()
                    self._tell()
                if stopping == self._stopping:
                    self._wait(kill_at)
        finally:
            signal.set_wakeup_fd(previous)

    def _stop(self, *_: object) -> None:
        self._stopping = True  # the loop acts on it: a handler may run while a process is being started

    def _start(self) -> None:
        now = time.monotonic()
        for number, seat in enumerate(self._seats):
            if seat.process is None and now >= seat.start_at:
                where = [f"--{name}={endpoint}" for name, endpoint in seat.place._asdict().items()]
                # In its own session, a process does not get the terminal's Ctrl-C; this one passes it on.
                seat.process = subprocess.Popen(
                    [*self._command, "--processes=1", *where],
                    env=os.environ | {SEAT: f"{number},{seat.starts},{self._alive_read}"},
                    stdout=subprocess.PIPE,
                    pass_fds=[self._alive_read],
                    start_new_session=True,
                )
                seat.started, seat.starts, seat.said = now, seat.starts + 1, b""
                log.info("broker %d is process %d", number, seat.process.pid)

    def _reap(self) -> list[tuple[_Seat, int]]:
        ended = []
        for number, seat in enumerate(self._seats):
            if seat.process is not None and (code := seat.process.poll()) is not None:
                assert seat.process.stdout is not None
                seat.process.stdout.close()
                now = time.monotonic()
                wait = seat.backoff.ended(now - seat.started)
                seat.process, seat.start_at = None, now + wait
                ended.append((seat, code))
                if self._stopping:
                    continue
                if not seat.was_ready:
                    log.error("broker %d ended with code %d before it was ready; stopping", number, code)
                else:
                    log.error("broker %d ended with code %d; starting another in %.1f s", number, code, wait)
        return ended

    def _end(self, *, kill: bool) -> None:
        for number, seat in enumerate(self._seats):
            if seat.process is None:
                continue
            if kill:
                log.error("broker %d did not end in time; killing it", number)
                seat.process.kill()
            elif not seat.terminated:
                seat.process.terminate()
                seat.terminated = True

    def _tell(self) -> None:
        """A program that starts brokers with port 0 reads all ports here, once each of them listens."""
        if not self._told and all(seat.was_ready for seat in self._seats):
            self._told = True
            places = [seat.place for seat in self._seats]
            metrics = [place.metrics for place in places if place.metrics != NONE]
            where = f" metrics={','.join(metrics)}" if metrics else ""
            fronts, backs = (",".join(each) for each in zip(*(place[:2] for place in places), strict=True))
            print(f"ready frontend={fronts} backend={backs}{where}", flush=True)

    def _wait(self, kill_at: float) -> None:
        """Wait until a signal arrives, a process says something, or something is due."""
        talking = {
            seat.process.stdout.fileno(): seat
            for seat in self._seats
            if seat.process is not None and seat.process.stdout is not None and not seat.process.stdout.closed
        }
        due = [kill_at] if self._stopping else [seat.start_at for seat in self._seats if seat.process is None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        readable = select.select([self._wake_read, *talking], [], [], wait)[0]
        for descriptor in readable:
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                self._hear(talking[descriptor])

    def _hear(self, seat: _Seat) -> None:
        assert seat.process is not None and seat.process.stdout is not None
        more = os.read(seat.process.stdout.fileno(), 4096)
        if not more:
            seat.process.stdout.close()  # it ends, or has closed its output
            return
        seat.said = (seat.said + more)[-4096:]
        line, end, _ = seat.said.partition(b"\n")
        if end and (ready := _READY.fullmatch(line.decode(errors="replace"))) is not None:
            seat.was_ready = True
            # Restarted, it listens at the same ports, also those that the system chose.
            seat.place = Place(ready[1], ready[2], ready[3] or NONE)
