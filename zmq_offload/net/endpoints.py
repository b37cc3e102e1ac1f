"""What a client can connect to. Checked for all brokers when a client is made: the second one may be needed only when
the first has failed, which is too late to learn of a typing error."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from zmq_offload.errors import InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.addresses import is_interface, literal

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL_CHARS = 63
_HOST_CHARS = 253
_PATH_BYTES = 107
"""A Unix socket's address has room for so many, and a zero."""


def check_brokers(broker: str | Sequence[str]) -> list[str]:
    """The endpoints of one broker or several, in order. Raises InvalidArgument naming the first that is wrong."""
    if isinstance(broker, str):
        return [check_connectable(broker)]
    if not isinstance(broker, Sequence) or isinstance(broker, (bytes, bytearray)):
        raise InvalidArgument(f"broker {broker!r} is neither an endpoint, tcp://HOST:PORT, nor a list of endpoints")
    if not broker:
        raise InvalidArgument("a client needs at least one broker endpoint")
    return [check_connectable(endpoint) for endpoint in broker]


def check_connectable(endpoint: str) -> str:
    """`endpoint`, if a client can connect to it. Raises InvalidArgument saying what is wrong with it."""
    if not isinstance(endpoint, str):
        raise InvalidArgument(f"endpoint {endpoint!r} is not a text: use tcp://HOST:PORT (or ipc://PATH)")
    if "," in endpoint and endpoint.count("://") > 1:
        raise InvalidArgument(f"endpoint {endpoint!r}: give several endpoints as a list")
    transport.check_endpoint(endpoint)
    scheme, _, place = endpoint.partition("://")
    fault = {"tcp": _tcp_fault, "ipc": _ipc_fault}.get(scheme, _other_fault)(place)
    if fault is not None:
        raise InvalidArgument(f"cannot connect to {endpoint}: {fault}")
    return endpoint


def _tcp_fault(place: str) -> str | None:
    host, _, port = place.rpartition(":")
    if host == "*" or port == "*":
        return "* is for a program that listens; a client needs the broker's host and port"
    if not 1 <= int(port) <= 65535:
        return f"port {port} is not from 1 to 65535"
    if host.startswith("["):
        return None if _is_address(host, 6) else f"{host} is not an IPv6 address"
    if len(host) > _HOST_CHARS or any(len(label) > _LABEL_CHARS for label in host.split(".")):
        return f"the host name is too long: at most {_HOST_CHARS} characters, {_LABEL_CHARS} between two dots"
    if not _HOST.fullmatch(host):
        return (
            f"host {host!r}: a host name has letters, digits, dots, hyphens and underscores, and begins with a letter "
            "or a digit (an international name is written in its xn-- form)"
        )
    if re.fullmatch(r"\d+(\.\d+){3}", host) and not _is_address(host, 4):
        return f"{host} is not an IPv4 address"
    if is_interface(host):
        return f"{host} is a network interface, which is for a broker to listen on; a client needs the broker's address"
    return None


def _ipc_fault(place: str) -> str | None:
    if place == "*":
        return "* is for a program that listens; a client needs the broker's path"
    if (length := len(os.fsencode(place))) > _PATH_BYTES:
        return f"the path has {length} bytes; a socket's path has at most {_PATH_BYTES}"
    return None


def _other_fault(_: str) -> str:
    return "a client connects by tcp:// or ipc://; inproc:// reaches no further than one ZeroMQ context"


def _is_address(host: str, version: int) -> bool:
    address = literal(host)
    return address is not None and address.version == version
