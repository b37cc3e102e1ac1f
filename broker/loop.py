"""The broker's process: events from its ports to the core, actions back. The core uses neither sockets nor a clock."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable

from broker.config import Config
from broker.core import Core
from broker.events import Stop, Tick
from broker.ports import Ports
from broker.ports.streams import StreamPorts
from broker.security import check_exposure
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.net import transport
from zmq_offload.net.sharedmemory.sharing import sharing_of

log = logging.getLogger("broker")

_ARENA_BYTES = 4096
"""A broker passes references on and shares no memory of its own. It has an arena, so that peers can prove that they are
on its host."""


class Broker:
    """A broker process. The constructor binds, so that `frontend` and `backend` have the real ports; `run` serves."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.core = Core(config.policy, clock(), config.max_frame_bytes, config.queue_limits)
        self._wake = transport.Wake()
        try:
            self._ports = self._open(config)
        except BaseException:
            self._wake.close()
            raise
        self.frontend, self.backend = self._ports.frontend, self._ports.backend

    def _open(self, config: Config) -> Ports:
        notes = self.core.ledger.notes
        if config.server_key is None:
            return StreamPorts(config, self._wake, notes, self._clock, sharing_of(_ARENA_BYTES, log))
        from broker.ports.libzmq import LibzmqPorts

        return LibzmqPorts(config, config.server_key, self._wake, notes, self._clock)

    def stop(self) -> None:
        """Make `run` drain and return. May be called from any thread and from a signal handler."""
        self._wake.set()

    def stop_on(self, number: int) -> None:
        """Let a signal make `run` drain and return. Only the main thread may call this."""
        self._wake.set_on(number)

    def run(self) -> None:
        """Serve until `stop`, then close everything."""
        try:
            self._serve()
        finally:
            self._ports.close()
            self._wake.close()

    def _serve(self) -> None:
        core, clock, ports = self.core, self._clock, self._ports
        handle, wait, send = core.handle, ports.wait, ports.send
        notes = core.ledger.notes
        while not core.finished:
            now = clock()
            due = core.next_deadline()
            if due is None:
                due = math.inf
            elif due <= now:
                send(handle(Tick(), now))
            due = min(due, ports.due)
            events = wait(None if due == math.inf else max(0.0, due - now))
            # All actions are performed together: messages that are sent together need fewer system calls.
            actions = []
            for event in events:
                if type(event) is Stop:
                    log.info("stopping: finishing %d requests within %.1f s", len(core.ledger.requests), event.grace)
                actions += handle(event, clock())
            if actions:
                send(actions)
            if notes:
                self._write_notes()
        self._write_notes()

    def _write_notes(self) -> None:
        for level, text in self.core.ledger.notes.take():
            log.log(level, "%s", text)


def serve(config: Config) -> int:
    """Run a broker in this process until SIGTERM, SIGINT or SIGHUP."""
    check_exposure((config.frontend, config.backend), secured=config.server_key is not None, insecure=config.insecure)
    raise_file_limit(log)
    broker = Broker(config)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            broker.stop_on(number)
    # A program that starts a broker with port 0 reads the ports here.
    print(f"ready frontend={broker.frontend} backend={broker.backend}", flush=True)
    broker.run()
    log.info("stopped")
    return 0
