"""What listens at ports, and what a broker answers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import zmq

from zmq_offload.client.sync import Client
from zmq_offload.doctor.checks.network import Broker, Port, Speaks
from zmq_offload.errors import OffloadError
from zmq_offload.net import transport
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import SESSION_BYTES, VERSION, Query, encode
from zmq_offload.telemetry.scrapes import ELSEWHERE

_PATIENCE = 1.0
"""Seconds in which a program at a port says what it is. Each of up to three questions takes that."""

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_BEGIN = _SIGNATURE + b"\x03\x00"
"""The begin of ZMTP's greeting, up to its version. The other end then sends all of its own, and cannot find yet that
the two have different mechanisms, whereupon it would close."""

_GREETING_BYTES = 64
"""Its mechanism is from the twelfth on."""

_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4

_NEWEST = VERSION + 3
"""The last version of our protocol that is tried."""


def port(option: str, address: str, *, tls: bool = False) -> Port:
    """What is at an endpoint, or at HOST:PORT, of this machine."""
    if address.startswith("ipc://"):
        return _file(option, address)[0]
    host, _, number = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    place = ({"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(number))
    speaks, _ = _listener(place, tls)
    return Port(option, address, speaks, "" if speaks is not Speaks.NOTHING else _cannot_bind(address, host, place[1]))


def _file(option: str, address: str) -> tuple[Port, bytes]:
    """What listens at a socket's file, and its mechanism if that is ZeroMQ's."""
    path = Path(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as there:
        there.connect(str(path))
        mechanism = _greeting(there)
        return Port(option, address, Speaks.OTHER if mechanism is None else Speaks.ZEROMQ), mechanism or b""
    error = ""
    if not path.parent.is_dir():
        error = f"{path.parent} is not a folder"
    elif not os.access(path.parent, os.W_OK):
        error = f"{path.parent} cannot be written"
    return Port(option, address, Speaks.NOTHING, error), b""


def _cannot_bind(address: str, host: str, number: int) -> str:
    if not address.startswith("tcp://"):
        try:
            kind, *_, place = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            with socket.socket(kind) as listening:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(place)
        except OSError as error:
            return error.strerror or str(error)
        return ""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as listening:
            transport.bind(listening, address)
    except OffloadError as error:
        return error.message.rpartition(": ")[2]
    finally:
        context.term()
    return ""


def _listener(place: tuple[str, int], tls: bool) -> tuple[Speaks, bytes]:
    """What listens at a TCP port, and the mechanism of its greeting if that is ZeroMQ's."""
    try:
        with _connected(place) as there:
            greeting = None if tls else _greeting(there)
    except OSError:
        return Speaks.NOTHING, b""
    if greeting is not None:
        return Speaks.ZEROMQ, greeting
    for ask in (_http, _http2):
        with contextlib.suppress(OSError, ValueError), _connected(place) as there:
            secured = _secured(there, "h2" if ask is _http2 else "http/1.1") if tls else there
            if (speaks := ask(secured)) is not None:
                return speaks, b""
    return Speaks.OTHER, b""


@contextlib.contextmanager
def _connected(place: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(place, timeout=_PATIENCE) as there:
        yield there


def _secured(there: socket.socket, protocol: str) -> socket.socket:
    """The connection in TLS. Whose certificate that is does not matter: only what is spoken is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(there)


def _greeting(there: socket.socket) -> bytes | None:
    """The mechanism of ZMTP's greeting, or None if the program sends no such greeting."""
    there.settimeout(_PATIENCE)
    try:
        there.sendall(_BEGIN)
        said = _read(there, _GREETING_BYTES)
    except OSError:
        return None
    return said[12:32].rstrip(b"\0") if said[:1] == _SIGNATURE[:1] and said[9:10] == _SIGNATURE[9:] else None


def _http(there: socket.socket) -> Speaks | None:
    there.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    said = _read(there, 65536)
    if not said.startswith(b"HTTP/1."):
        return None
    head, _, body = said.partition(b"\r\n\r\n")
    if body == ELSEWHERE:
        return Speaks.METRICS
    with contextlib.suppress(ValueError, AttributeError):
        if json.loads(body).get("name") == "zmq-offload":
            return Speaks.GATEWAY
    refused = head.split(b" ")[1:2] == [b"401"] and b'realm="zmq-offload"' in head
    return Speaks.GATEWAY if refused else Speaks.HTTP


def _http2(there: socket.socket) -> Speaks | None:
    there.sendall(_HTTP2)
    said = _read(there, 9)
    return Speaks.HTTP2 if len(said) == 9 and said[3] == _SETTINGS else None


def _read(there: socket.socket, most: int) -> bytes:
    """The next bytes: up to `most`, fewer if the program sends no more in time."""
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while len(said) < most and (more := there.recv(most - len(said))):
            said += more
    return said


def broker(endpoint: str, timeout: float, key: str | None, broker_key: str | None) -> Broker:
    """What a broker answers a client with these keys."""
    at, mechanism = _endpoint(endpoint)
    has_keys, keyed = bool(key and broker_key), mechanism == b"CURVE"
    if at.speaks is not Speaks.ZEROMQ:
        return Broker(endpoint, at, keyed, None, has_keys=has_keys)
    keys = {"key": key, "broker_key": broker_key} if has_keys else {}
    try:
        with Client(endpoint, timeout=timeout, **keys) as client:  # type: ignore[arg-type]
            return Broker(endpoint, at, keyed, client.status(), has_keys=has_keys)
    except OffloadError as error:
        version = None if keyed or has_keys else _other_version(endpoint, min(timeout, _PATIENCE))
        return Broker(endpoint, at, keyed, None, error.message, version, has_keys)


def _endpoint(endpoint: str) -> tuple[Port, bytes]:
    """What listens at an endpoint, and its mechanism if that is ZeroMQ's."""
    if endpoint.startswith("ipc://"):
        return _file("--broker", endpoint)
    host, _, number = endpoint.removeprefix("tcp://").rpartition(":")
    speaks, mechanism = _listener((host.strip("[]"), int(number)), tls=False)
    return Port("--broker", endpoint, speaks), mechanism


def _other_version(endpoint: str, timeout: float) -> int | None:
    """The version of our protocol that a broker answers in. Brokers drop messages of other versions."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with transport.make_socket(
            context, zmq.DEALER, max_frame_bytes=limits.MESSAGE_BYTES, heartbeat=timeout
        ) as there:
            transport.connect(there, endpoint)
            query = encode(Query(bytes(SESSION_BYTES), 1, "status"))
            for version in range(1, _NEWEST + 1):
                there.send(bytes([version]) + query[1:])
            if there.poll(round(timeout * 1000)):
                answered = int(there.recv()[0])
                return None if answered == VERSION else answered  # a backend refuses what clients ask
    finally:
        context.term()
    return None
