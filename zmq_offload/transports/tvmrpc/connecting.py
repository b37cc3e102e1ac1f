"""How a session begins: the address of a server, perhaps from a tracker, the connection, and the greeting."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import Any, NamedTuple

from zmq_offload.errors import OffloadError, ProtocolError, Unavailable, one_line, printable
from zmq_offload.transports.names import looked_up
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.tvmrpc import values, wire
from zmq_offload.transports.tvmrpc.leaving import leave

_REQUEST, _SUMMARY = 4, 6
_TRACKER_BYTES = 1 << 20


class Target(NamedTuple):
    """A server's place and its key."""

    host: str
    port: int
    key: str

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Line:
    """A new connection, read and written within the time to connect."""

    def __init__(self, target: Target, what: str, attempt: Attempt) -> None:
        self._attempt, self._what = attempt, f"the {what} at {target.address}"
        self.socket = self._connected(target)

    def send(self, data: bytes) -> None:
        self.socket.settimeout(self._attempt.seconds_to_connect())
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise self._failure(error) from None

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            self.socket.settimeout(self._attempt.seconds_to_connect())
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # see `Session`
            try:
                piece = self.socket.recv(count - len(data))
            except OSError as error:
                raise self._failure(error) from None
            if not piece:
                raise Unavailable(f"{self._what} closed the connection before it answered")
            data += piece
        return data

    def packet(self) -> bytes:
        (length,) = struct.unpack("<Q", self.receive(wire.LENGTH))
        if length > _TRACKER_BYTES:
            raise ProtocolError(f"{self._what} sends a packet of {length} bytes before a session has begun")
        return self.receive(length)

    def json(self, message: object) -> Any:
        """Ask a tracker."""
        data = json.dumps(message).encode()
        self.send(struct.pack("<i", len(data)) + data)
        (length,) = struct.unpack("<i", self.receive(4))
        if not 0 < length <= _TRACKER_BYTES:
            raise ProtocolError(f"{self._what} sends a message of {length} bytes")
        try:
            return json.loads(self.receive(length))
        except (ValueError, RecursionError):
            raise ProtocolError(f"{self._what} sends what is no JSON") from None

    def stop(self) -> None:
        """Wake the thread that waits for this connection."""
        with contextlib.suppress(OSError):  # it has ended
            self.socket.shutdown(socket.SHUT_RD)

    def _connected(self, target: Target) -> socket.socket:
        failure: OSError | None = None
        for family, place in looked_up(target.host, target.port, self._attempt.seconds_to_connect()):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(self._attempt.seconds_to_connect())
                with self._attempt.stopped_by(connection.close):
                    connection.connect(place)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)
                return connection
            except OffloadError:
                connection.close()
                raise
            except OSError as error:
                connection.close()
                failure = error
        self._attempt.seconds()
        assert failure is not None  # there is at least one address
        raise self._failure(failure)

    def _failure(self, error: OSError) -> Unavailable:
        if isinstance(error, TimeoutError) and not self._attempt.canceled:
            why = "it serves one client at a time and may have one, or the port is another server's"
            return Unavailable(f"{self._what} does not answer; {why}")
        self._attempt.seconds()
        return Unavailable(f"{self._what} cannot be reached: {error.strerror or one_line(error)}")


def begun(target: Target, attempt: Attempt, function: str) -> tuple[socket.socket, int]:
    """Connect, begin a session, and ask for a function. Returns its number, 0 if the server does not have it."""
    line = _Line(target, "TVM RPC server", attempt)
    try:
        with attempt.stopped_by(line.stop):
            line.send(wire.hello(target.key))
            wire.check_greeting(struct.unpack("<i", line.receive(4))[0], target.address, target.key)
            line.receive(wire.check_key_length(struct.unpack("<i", line.receive(4))[0], target.address))
            line.send(wire.init())
            answer = wire.decode_reply(line.packet())
            if isinstance(answer, wire.Failed):
                raise wire.session_failure(answer.text, target.address)
            line.send(wire.get_function(function))
            found = wire.decode_reply(line.packet())
            if found is not None and not isinstance(found, values.Handle):
                raise ProtocolError(f"{target.address} answers {found!r:.80} where a TVM RPC server names a function")
            return line.socket, 0 if found is None else found.number
    except BaseException:
        leave(line.socket)
        raise


def tracked(tracker: Target, attempt: Attempt) -> Target:
    """Ask a tracker for a free server with the tracker's key. Waits for one while there is time."""
    line = _Line(tracker, "TVM RPC tracker", attempt)
    with line.socket, attempt.stopped_by(line.stop):
        line.send(struct.pack("<i", wire.TRACKER_MAGIC))
        if struct.unpack("<i", line.receive(4))[0] != wire.TRACKER_MAGIC:
            raise ProtocolError(f"{tracker.address} is not a TVM RPC tracker")
        servers = _servers(line.json([_SUMMARY]), tracker)
        if tracker.key not in servers:
            known = ", ".join(sorted(set(servers))) or "none"
            raise Unavailable(
                f"the TVM RPC tracker at {tracker.address} has no server with the key {tracker.key!r}; its keys are "
                f"{printable(known)}"
            )
        try:
            answer = line.json([_REQUEST, tracker.key, "", 1])
        except Unavailable:
            raise Unavailable(
                f"the TVM RPC tracker at {tracker.address} has no free server with the key {tracker.key!r}; it has "
                f"{servers.count(tracker.key)} in use"
            ) from None
    try:
        status, (host, port, key) = answer
        if status == 0 and isinstance(port, int) and 0 < port < 65536:
            return Target(str(host), port, str(key))
    except (TypeError, ValueError):
        pass
    raise ProtocolError(f"the TVM RPC tracker at {tracker.address} answers {printable(repr(answer))[:80]}")


def _servers(summary: Any, tracker: Target) -> list[str]:
    """The keys of all servers that a tracker knows."""
    try:
        return [str(one["key"]).removeprefix("server:") for one in summary[1]["server_info"]]
    except (KeyError, IndexError, TypeError):
        raise ProtocolError(f"the TVM RPC tracker at {tracker.address} gives no list of servers") from None
