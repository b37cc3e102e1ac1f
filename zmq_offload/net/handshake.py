"""Keys of a connection, and the reasons why its handshake fails.

libzmq never connects a peer with an unknown key, or with the wrong key of the broker. It reports that only to a monitor
of the socket.
"""

from __future__ import annotations

import os
import struct

import zmq

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.keys import KeyPair, read_pair, read_public

FAILURES = 3
"""Handshakes in a row that must fail before the keys are blamed: a broker that is killed in a handshake looks the
same."""

MISMATCH = "does not complete the handshake: its key is not the expected one, or only one side has keys"


class Security:
    """The keys of a client or a worker: both files or none."""

    def __init__(self, key: str | None, broker_key: str | None) -> None:
        self._pair: KeyPair | None = read_pair(key) if key else None
        self._broker = read_public(broker_key) if broker_key else None

    @property
    def has_keys(self) -> bool:
        return self._pair is not None

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        if self._pair is not None and self._broker is not None:
            socket.curve_secretkey, socket.curve_publickey = self._pair.secret, self._pair.public
            socket.curve_serverkey = self._broker


def clients_security(key: str | os.PathLike[str] | None, broker_key: str | os.PathLike[str] | None) -> Security:
    """Find a client's keys: arguments first, then environment variables. Errors name the one that was used.

    Raises InvalidArgument if only one of the two is given, FailedPrecondition for a file that cannot be read.
    """
    files = []
    for argument, path in (("key", key), ("broker_key", broker_key)):
        variable = _VARIABLES[argument]
        given = path or os.environ.get(variable)
        if given and not isinstance(given, (str, os.PathLike)):
            raise InvalidArgument(f"{argument} {given!r} is not the path of a key file")
        files.append((argument if path else variable, os.fspath(given) if given else None))
    (source, secret), (broker_source, public) = files
    if bool(secret) != bool(public):
        given, missing = (source, "broker_key") if secret else (broker_source, "key")
        raise InvalidArgument(f"{given} is given without {missing}; give {missing} or set {_VARIABLES[missing]}")
    for name, path, read in ((source, secret, read_pair), (broker_source, public, read_public)):
        if path:
            try:
                read(path)
            except FailedPrecondition as error:
                raise FailedPrecondition(f"{name}: {error.message}") from None
    return Security(secret, public)


_VARIABLES = {"key": "ZMQ_OFFLOAD_CLIENT_KEY", "broker_key": "ZMQ_OFFLOAD_BROKER_KEY"}


class HandshakeMonitor:
    """Follows the handshakes of one socket. Make it before the socket connects, close it before the socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._events = transport.monitor(
            socket,
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        )
        self._failures = 0

    def refusal(self) -> str | None:
        """Say why the broker cannot be reached, or return None."""
        while (frames := transport.receive(self._events)) is not None:
            event = _event(frames)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failures = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "does not know this key"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                # The two sides have different mechanisms; libzmq does not try again.
                return MISMATCH
            else:
                self._failures += 1
        return MISMATCH if self._failures >= FAILURES else None

    def close(self) -> None:
        self._socket.disable_monitor()
        self._events.close(linger=0)


def _event(frames: transport.Frames) -> int:
    return int(struct.unpack("=H", bytes(frames[0])[:2])[0])
