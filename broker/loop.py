"""The broker's loop: events from its ports to the core, actions back. The core uses neither sockets nor a clock."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from broker import metrics
from broker.config import Config
from broker.core import Core
from broker.events import Event, Stop, Tick
from broker.ports import Ports
from broker.ports.streams import StreamPorts
from broker.security import check_exposure
from broker.tracing import Record, spans_of
from zmq_offload.common.accesslog import AccessLog
from zmq_offload.common.extras import needs
from zmq_offload.common.notes import Notes
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.console import logs
from zmq_offload.console.settings import NONE
from zmq_offload.net import transport
from zmq_offload.net.sharedmemory.sharing import sharing_of
from zmq_offload.telemetry import process
from zmq_offload.telemetry.server import MetricsServer
from zmq_offload.telemetry.traces.sender import Sender

log = logging.getLogger("broker")
access_log = logging.getLogger("broker.access")

_ARENA_BYTES = 4096
"""A broker passes references on and shares no memory of its own. It has an arena, so that peers can prove that they are
on its host."""


OpenPorts: TypeAlias = Callable[[Config, transport.Wake, Notes, Callable[[], float]], Ports]


def open_ports(config: Config, wake: transport.Wake, notes: Notes, clock: Callable[[], float]) -> Ports:
    """The ports of a broker that is a process of its own."""
    if config.server_key is None:
        return StreamPorts(config, wake, notes, clock, sharing_of(_ARENA_BYTES, log))
    from broker.ports.libzmq import LibzmqPorts

    return LibzmqPorts(config, config.server_key, wake, notes, clock)


def _sender(config: Config) -> Sender[Record]:
    """What sends spans, in a process of its own."""
    own: dict[str, object] = {"process": config.process} if len(config.places) > 1 else {}
    with needs("traces"):
        prepare = functools.partial(logs.start, "broker", config.log, own)
        return Sender(config.traces, "zmq-offload-broker", spans_of, prepare)


class Broker:
    """A broker. The constructor binds, so that `frontend` and `backend` have the real ports.

    `run` serves. An event loop of another program does that in turns: `handle` what has come, and `pass_time`.
    """

    def __init__(
        self, config: Config, clock: Callable[[], float] = time.monotonic, ports: OpenPorts = open_ports
    ) -> None:
        self._clock = clock
        self.core = Core(config.policy, clock(), config.max_frame_bytes, config.queue_limits)
        self._traces = None if config.traces == NONE else _sender(config)
        self._tracing = self.core.ledger.tracing
        self._access = None if config.access_log is None else AccessLog(config.access_log)
        self.core.ledger.access = self._access
        self.core.ledger.process, self.core.ledger.restarts = config.process, config.restarts
        self._tracing.enabled, self._tracing.share = self._traces is not None, config.trace_share
        self._wake = transport.Wake()
        try:
            self._ports = ports(config, self._wake, self.core.ledger.notes, clock)
        except BaseException:
            self._wake.close()
            if self._traces is not None:
                self._traces.close()
            raise
        self.core.frontend.ways = self._ports.ways
        self.frontend, self.backend = self._ports.frontend, self._ports.backend

    def stop(self) -> None:
        """Make `run` drain and return. May be called from any thread and from a signal handler."""
        self._wake.set()

    def stop_on(self, number: int) -> None:
        """Let a signal make `run` drain and return. Only the main thread may call this."""
        self._wake.set_on(number)

    def run(self) -> None:
        """Serve until `stop`, then close everything."""
        try:
            core, clock, wait = self.core, self._clock, self._ports.wait
            while True:
                due = self.pass_time()
                if core.finished:
                    break
                self.handle(wait(None if due == math.inf else max(0.0, due - clock())))
        finally:
            self.close()

    def handle(self, events: Sequence[Event]) -> None:
        """Do what these events ask for."""
        decide, clock = self.core.decide, self._clock
        for event in events:
            if type(event) is Stop:
                log.info("stopping: finishing %d requests within %.1f s", len(self.core.ledger.requests), event.grace)
            decide(event, clock())
        self._perform()

    def _perform(self) -> None:
        # All actions are performed together: messages that are sent together need fewer system calls.
        actions = self.core.take()
        if actions:
            self._ports.send(actions)
        if self.core.ledger.notes:
            self._write_notes()
        if self._access:
            self._write_access()
        if self._tracing.ended:
            self._export()

    def pass_time(self) -> float:
        """Do what is due. Returns when something will be, even if nothing happens."""
        next_deadline = self.core.next_deadline
        due = next_deadline()
        if due is not None and due <= (now := self._clock()):
            self.core.decide(Tick(), now)
            self._perform()
            due = next_deadline()
        own = self._ports.due
        return own if due is None or own < due else due

    def close(self) -> None:
        """Close the ports. Messages that are queued still go out."""
        self._ports.close()
        self._wake.close()
        if self._access is not None:
            self._access.flush()
            self._write_access()
        if self._traces is not None:
            self._traces.close()

    def _export(self) -> None:
        assert self._traces is not None  # else no request is traced
        for record in self._tracing.take():
            self._traces.put(record)

    def _write_access(self) -> None:
        assert self._access is not None  # else no request is logged
        logs.write(self._access, access_log)

    def _write_notes(self) -> None:
        for level, text in self.core.ledger.notes.take():
            log.log(level, "%s", text)


def serve(config: Config, parent: int | None = None) -> int:
    """Run a broker in this process until SIGTERM, SIGINT or SIGHUP, or until the pipe `parent` is closed."""
    check_exposure((config.frontend, config.backend), secured=config.server_key is not None, insecure=config.insecure)
    if config.metrics != NONE:
        remedy = "serve metrics at 127.0.0.1"
        check_exposure((f"tcp://{config.metrics}",), secured=False, insecure=config.insecure, remedy=remedy)
    raise_file_limit(log)
    broker = Broker(config)
    where = ""
    with contextlib.ExitStack() as stack:
        if config.metrics != NONE:
            try:
                served = MetricsServer(config.metrics, lambda: metrics.families(broker.core.ledger), process.families)
            except BaseException:
                broker.close()
                raise
            stack.callback(served.close)
            where = f" metrics={served.address}"
        _run(broker, where, parent)
    log.info("stopped")
    return 0


def _run(broker: Broker, where: str, parent: int | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets this
            broker.stop_on(number)
    if parent is not None:
        threading.Thread(target=_stop_after, args=(broker, parent), name="parent", daemon=True).start()
    # A program that starts a broker with port 0 reads the ports here.
    print(f"ready frontend={broker.frontend} backend={broker.backend}{where}", flush=True)
    broker.run()


def _stop_after(broker: Broker, parent: int) -> None:
    """Stop the broker when its supervisor has ended. Nothing is ever written to the pipe."""
    os.read(parent, 1)
    broker.stop()
