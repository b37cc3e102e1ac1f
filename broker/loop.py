"""The broker's sockets: frames in, events to the core, actions out. The core uses neither zmq nor a clock."""

from __future__ import annotations

import errno
import logging
import math
import signal
import struct
import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from broker import routing_ids
from broker.config import Config
from broker.core import Core
from broker.events import (
    Action,
    Disconnected,
    Event,
    FromClient,
    FromWorker,
    Malformed,
    Stop,
    Tick,
    ToClient,
    Undelivered,
)
from broker.security import Security, check_exposure
from zmq_offload.common.open_files import raise_file_limit
from zmq_offload.errors import ProtocolError
from zmq_offload.net import transport
from zmq_offload.net.ipc import SocketFile
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

log = logging.getLogger("broker")

_BATCH = 16
"""Messages taken from one socket before the other has its turn."""

_UNREAD_BY_PEER = 256
"""Messages queued for one peer that does not read. Further ones come back undelivered. libzmq counts no bytes."""

_KEYS_EVERY = 1.0
"""Seconds between two looks at the key lists."""

_M = TypeVar("_M")

_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""

_UNREAD_HERE = 64
"""Messages of one peer that wait at the broker. Further ones stay in the peer's memory, so that a client that floods
does not fill the broker's."""


class Broker:
    """A broker process. The constructor binds, so that `frontend` and `backend` have the real ports; `run` serves."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self.core = Core(config.policy, clock(), config.max_frame_bytes, config.queue_limits)
        routing_ids.randomize()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 65536)
        self._security: Security | None = None
        self._files: list[SocketFile] = []
        try:
            if config.server_key is not None:
                self._security = Security(
                    self._context, config.server_key, config.authorized_clients, config.authorized_workers
                )
                self.core.handle(self._security.authorized, clock())
            self._front, self.frontend = self._bind(config.frontend, "clients", transport.CLIENTS_HEARTBEAT)
            self._back, self.backend = self._bind(config.backend, "workers", config.policy.heartbeat)
        except BaseException:
            if self._security is not None:
                self._security.close()
            self._remove_files()
            self._context.destroy(linger=0)
            raise
        self._look_at_keys_at = math.inf if self._security is None else clock() + _KEYS_EVERY
        keyed = self._security is not None
        refusals = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if keyed else 0
        self._monitor = transport.monitor(self._back, zmq.EVENT_DISCONNECTED | refusals)
        self._front_monitor = transport.monitor(self._front, refusals) if refusals else None
        self._wake = transport.Wake()
        self._from_workers = transport.Inbox(self._back, keyed=keyed)
        self._from_clients = transport.Inbox(self._front, keyed=keyed)
        self._undelivered: list[Undelivered] = []

    def _bind(self, endpoint: str, role: str, heartbeat: float) -> tuple[zmq.Socket[bytes], str]:
        socket = transport.make_socket(
            self._context,
            zmq.ROUTER,
            max_frame_bytes=self._config.max_frame_bytes,
            heartbeat=heartbeat,
            high_water_mark=_UNREAD_BY_PEER,
        )
        socket.setsockopt(zmq.RCVHWM, _UNREAD_HERE)
        if self._security is not None:
            self._security.protect(socket, role)
        bound, file = transport.bind(socket, endpoint)
        if file is not None:
            self._files.append(file)
        return socket, bound

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()

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
            for socket, monitor in ((self._back, self._monitor), (self._front, self._front_monitor)):
                if monitor is not None:
                    socket.disable_monitor()
                    monitor.close(linger=0)
            self._remove_files()
            # The last messages, which include replies, still go out.
            self._front.close(linger=1000)
            self._back.close(linger=1000)
            if self._security is not None:
                self._security.close()
            self._context.term()
            self._wake.close()

    def _serve(self) -> None:
        wake, monitor = self._wake.fileno(), self._monitor.fileno()
        front, back = self._from_clients, self._from_workers
        poll = transport.Poll((back, front), (wake, monitor))
        self._drain_monitor(self._monitor, "workers")
        core, clock = self.core, self._clock
        wait = 0
        while not core.finished:
            for source in poll.wait(wait):
                if source is back:
                    self._drain(back.take_after(poll, _BATCH), self._from_back)
                elif source is front:
                    self._drain(front.take_after(poll, _BATCH), self._from_front)
                elif source == monitor:
                    if self._drain_monitor(self._monitor, "workers"):
                        self._handle(Disconnected())
                else:
                    self._wake.clear()
                    log.info(
                        "stopping: finishing %d requests within %.1f s", len(core.ledger.requests), self._config.grace
                    )
                    self._handle(Stop(self._config.grace))
            if self._undelivered:
                self._report_undelivered()
            if core.ledger.notes:
                self._write_notes()
            wait = self._keep_time(clock())
        self._write_notes()

    def _keep_time(self, now: float) -> int:
        """Do what is due; return the milliseconds until something is due again, or -1 for never."""
        due = self.core.next_deadline()
        if due is not None and due <= now:
            self._handle(Tick())
            return 0
        if now >= self._look_at_keys_at:
            self._look_at_keys()
            return 0
        due = self._look_at_keys_at if due is None else min(due, self._look_at_keys_at)
        return -1 if due == math.inf else math.ceil((due - now) * 1000)

    def _look_at_keys(self) -> None:
        self._look_at_keys_at = self._clock() + _KEYS_EVERY
        if self._front_monitor is not None:
            self._drain_monitor(self._front_monitor, "clients")
        if self._security is not None and (authorized := self._security.reload()) is not None:
            self._handle(authorized)

    def _write_notes(self) -> None:
        for level, text in self.core.ledger.notes.take():
            log.log(level, "%s", text)

    def _drain_monitor(self, monitor: zmq.Socket[bytes], role: str) -> bool:
        """Read all events of a monitor, since its descriptor tells only of later ones. Whether a connection ended."""
        ended = False
        while (frames := transport.receive(monitor)) is not None:
            if struct.unpack_from("=H", frames[0])[0] == zmq.EVENT_DISCONNECTED:
                ended = True
            else:
                text = f"a connection to the port of {role} is refused: it has no keys, or a wrong key of this broker"
                self.core.ledger.notes.add(self._clock(), "keys", text)
        return ended

    def _report_undelivered(self) -> None:
        """Tell the core what could not be sent.

        Messages that workers sent before their connections ended come first, or finished work would be done again.
        """
        for _ in range((len(self.core.ledger.workers) + 1) * _UNREAD_HERE // _BATCH):
            if not self._from_workers.waiting():
                break
            self._drain(self._from_workers.take(_BATCH), self._from_back)
        undelivered, self._undelivered = self._undelivered, []
        for event in undelivered:
            self._handle(event)

    def _drain(self, messages: list[transport.Frames], read: Callable[[transport.Frames], Event]) -> None:
        """Handle a batch of messages, then perform all actions: messages that are sent together need fewer system
        calls."""
        handle, clock = self.core.handle, self._clock
        actions: list[Action] = []
        for frames in messages:
            actions += handle(read(frames), clock())
        self._perform(actions)

    def _from_front(self, frames: transport.Frames) -> Event:
        try:
            message = _decode(frames, wire.FROM_CLIENT)
            return _new(FromClient, (frames[0], message, frames[2:], _user(frames[0])))
        except ProtocolError as error:
            return Malformed(frames[0], True, error, _address(frames))

    def _from_back(self, frames: transport.Frames) -> Event:
        try:
            message = _decode(frames, wire.FROM_WORKER)
            address = _address(frames) if type(message) is wire.Announce else ""
            return _new(FromWorker, (frames[0], message, frames[2:], _user(frames[0]), address))
        except ProtocolError as error:
            return Malformed(frames[0], False, error, _address(frames))

    def _handle(self, event: Event) -> None:
        """Pass an event to the core and perform its actions."""
        self._perform(self.core.handle(event, self._clock()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            socket = self._front if type(action) is ToClient else self._back
            try:
                transport.forward(socket, [action.peer, wire.encode(action.message), *action.payload])
            except zmq.ZMQError as error:
                if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                    raise
                self._undelivered.append(Undelivered(action, error.errno == errno.EAGAIN))


def _user(peer: bytes) -> str:
    return peer.user if type(peer) is transport.Peer else ""


def _address(frames: transport.Frames) -> str:
    """The address of a message's sender; empty if no frame has it."""
    if type(frames[0]) is transport.Peer:
        return transport.address_of(frames[0].frame)
    return transport.address_of(frames[2]) if len(frames) > 2 else ""


def _decode(frames: transport.Frames, expected: frozenset[type[_M]]) -> _M:
    if len(frames) < 2:
        raise ProtocolError("the message has no envelope")
    if len(frames) > limits.FRAMES + 1:
        raise ProtocolError(f"a message has at most {limits.FRAMES} frames")
    if frames[0][0]:  # those of libzmq begin with a zero
        raise ProtocolError("a routing id was set; do not set a routing id, the broker assigns it")
    return wire.decode(frames[1], expected)


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
