"""Why a connection does not come about: what libzmq tells of handshakes, put into words.

A peer whose key is not known, or that has the wrong key of the broker, is never connected; libzmq says so only to who
watches the socket.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import zmq

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.keys import KeyPair, read_pair, read_public

_FAILURES = 3
"""Handshakes that must fail in a row before the other side is blamed: a broker killed in the middle of one looks
the same."""

_MISMATCH = "does not complete the handshake: its key is not the one expected, or only one side has keys"


class Security:
    """A client's or a worker's keys; both files or none."""

    def __init__(self, key: str | None, broker_key: str | None) -> None:
        self._pair: KeyPair | None = read_pair(key) if key else None
        self._broker = read_public(broker_key) if broker_key else None

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        if self._pair is not None and self._broker is not None:
            socket.curve_secretkey, socket.curve_publickey = self._pair.secret, self._pair.public
            socket.curve_serverkey = self._broker


def clients_security(key: str | os.PathLike[str] | None, broker_key: str | os.PathLike[str] | None) -> Security:
    """A client's keys: arguments over environment variables over none. An error names the one that was used.

    Raises InvalidArgument where only one of the two is given, FailedPrecondition for a file that cannot be read.
    """
    files = []
    for argument, path in (("key", key), ("broker_key", broker_key)):
        variable = _VARIABLES[argument]
        given = path or os.environ.get(variable)
        if given and not isinstance(given, (str, os.PathLike)):
            raise InvalidArgument(f"{argument} {given!r} is not the path of a key's file")
        files.append((argument if path else variable, os.fspath(given) if given else None))
    (source, secret), (broker_source, public) = files
    if bool(secret) != bool(public):
        given, missing = (source, "broker_key") if secret else (broker_source, "key")
        what = "a client's key and its broker's key belong together"
        raise InvalidArgument(f"{what}: {given} is given; give {missing} or set {_VARIABLES[missing]}, too")
    for name, path, read in ((source, secret, read_pair), (broker_source, public, read_public)):
        if path:
            try:
                read(path)
            except FailedPrecondition as error:
                raise FailedPrecondition(f"{name}: {error.message}") from None
    return Security(secret, public)


_VARIABLES = {"key": "ZMQ_OFFLOAD_CLIENT_KEY", "broker_key": "ZMQ_OFFLOAD_BROKER_KEY"}


class HandshakeMonitor:
    """Of one socket, made before it connects; closed before the socket is."""

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
        """Why the broker cannot be talked to, or None if nothing says so."""
        while (frames := transport.receive(self._events)) is not None:
            event = _event(frames)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failures = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "does not know this key"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                # The two have different mechanisms; libzmq does not try again.
                return _MISMATCH
            else:
                self._failures += 1
        return _MISMATCH if self._failures >= _FAILURES else None

    def close(self) -> None:
        self._socket.disable_monitor()
        self._events.close(linger=0)


def _event(frames: list[Any]) -> int:
    return int(struct.unpack("=H", bytes(frames[0])[:2])[0])
