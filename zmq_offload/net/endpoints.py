"""Checks of the endpoints that a client connects to.

All brokers are checked when a client is made. The second may be needed only after the first has failed, which is too
late to learn of a typing error.
"""

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
"""Room in the address of a Unix socket, without the final zero."""


def check_brokers(broker: str | Sequence[str]) -> list[str]:
    """Return the endpoints of one broker or several. Raises InvalidArgument naming the first that is wrong."""
    if isinstance(broker, str):
        return [check_connectable(broker)]
    if not isinstance(broker, Sequence) or isinstance(broker, (bytes, bytearray)):
        raise InvalidArgument(f"broker {broker!r} is not an endpoint; use tcp://HOST:PORT, or a list of endpoints")
    if not broker:
        raise InvalidArgument("the list of brokers is empty; give at least one endpoint")
    return [check_connectable(endpoint) for endpoint in broker]


def check_connectable(endpoint: str) -> str:
    """Return `endpoint` if a client can connect to it. Raises InvalidArgument saying what is wrong."""
    if not isinstance(endpoint, str):
        raise InvalidArgument(f"endpoint {endpoint!r} is not a string; use tcp://HOST:PORT (or ipc://PATH)")
    if "," in endpoint and endpoint.count("://") > 1:
        raise InvalidArgument(f"endpoint {endpoint!r} is several endpoints; give them as a list")
    transport.check_endpoint(endpoint)
    scheme, _, place = endpoint.partition("://")
    fault = {"tcp": _tcp_fault, "ipc": _ipc_fault}.get(scheme, _other_fault)(place)
    if fault is not None:
        raise InvalidArgument(f"cannot connect to {endpoint}: {fault}")
    return endpoint


def _tcp_fault(place: str) -> str | None:
    host, _, port = place.rpartition(":")
    if host == "*" or port == "*":
        return "* is for the end that listens; use the broker's host and port"
    if not 1 <= int(port) <= 65535:
        return f"port {port} is not from 1 to 65535"
    if host.startswith("["):
        return None if _is_address(host, 6) else f"{host} is not an IPv6 address"
    if len(host) > _HOST_CHARS or any(len(label) > _LABEL_CHARS for label in host.split(".")):
        return f"the host name is too long; use at most {_HOST_CHARS} characters, {_LABEL_CHARS} between two dots"
    if not _HOST.fullmatch(host):
        return (
            f"{host!r} is not a host name; use letters, digits, dots, hyphens and underscores, with a letter or digit "
            "first (and the xn-- form of an international name)"
        )
    if re.fullmatch(r"\d+(\.\d+){3}", host) and not _is_address(host, 4):
        return f"{host} is not an IPv4 address"
    if is_interface(host):
        return f"{host} is a network interface, which is for the end that listens; use the broker's address"
    return None


def _ipc_fault(place: str) -> str | None:
    if place == "*":
        return "* is for the end that listens; use the broker's path"
    if (length := len(os.fsencode(place))) > _PATH_BYTES:
        return f"the path has {length} bytes; use at most {_PATH_BYTES}"
    return None


def _other_fault(_: str) -> str:
    return "inproc:// does not leave a ZeroMQ context; use tcp:// or ipc://"


def _is_address(host: str, version: int) -> bool:
    address = literal(host)
    return address is not None and address.version == version
