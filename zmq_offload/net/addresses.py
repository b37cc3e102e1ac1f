"""Hosts of tcp:// endpoints: IPv4 or IPv6, loopback or not.

libzmq looks a name up for one address family only, which the socket's option IPV6 chooses. Without the option, a name
with only an IPv6 address never connects. With it, a name that has both connects by IPv6 alone, even if the other end
listens on IPv4 (`localhost`, on most machines). So names are looked up here first: IPv4 if there is one, else IPv6.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

from zmq_offload.errors import one_line

LOOKUP_S = 0.25
"""Seconds that a connection waits for the first look-up of a name: the threads that connect keep deadlines. The result
of a slower look-up serves the next connection."""

_families: dict[str, int] = {}
_looking: set[str] = set()
_lock = threading.Lock()


def host_of(endpoint: str) -> str | None:
    """Return the host of tcp://HOST:PORT, with the brackets of an IPv6 address; None for another transport."""
    if not endpoint.startswith("tcp://"):
        return None
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can connect to a socket bound to this endpoint.

    Of names only `localhost` counts: the addresses of others may change.
    """
    host = host_of(endpoint)
    if host is None or host == "localhost":
        return True
    address = literal(host)
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def needs_ipv6(endpoint: str) -> bool:
    """Whether a socket needs the option IPV6 to connect to this endpoint. Waits at most LOOKUP_S for a look-up."""
    host = host_of(endpoint)
    if host is None or host == "*" or literal(host) is not None:
        return host is not None and host.startswith("[")
    thread = _look_up(host)
    if host not in _families and thread is not None:
        thread.join(LOOKUP_S)
    return _families.get(host) == socket.AF_INET6


def to_bind(endpoint: str) -> str:
    """Replace a host name by its address: libzmq does not look names up to bind.

    An address, "*", the name of a network interface and an unknown name stay as they are.
    """
    host = host_of(endpoint)
    if host is None or host == "*" or literal(host) is not None or host in _interfaces():
        return endpoint
    found = _resolved(host)
    if found is None:
        return endpoint
    address = f"[{found[1]}]" if found[0] == socket.AF_INET6 else found[1]
    return f"tcp://{address}:{endpoint.rpartition(':')[2]}"


def why_not_bound(code: int, text: str) -> str:
    """The text of a failed bind's error number, and what to do if something else has the port."""
    return text + "; stop what listens there, or use another port (0 for any free one)" * (code == errno.EADDRINUSE)


def is_interface(host: str) -> bool:
    """Whether this is the name of a network interface and not of a host. Nobody can connect to that."""
    return host in _interfaces() and _resolved(host) is None


def _interfaces() -> list[str]:
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:  # no files are left; the caller will see that itself
        return []


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address, IPv6 with or without brackets; None for a name."""
    try:
        return ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return None


def _look_up(host: str) -> threading.Thread | None:
    """Look a name up in a thread, unless one does so already."""
    with _lock:
        if host in _looking:
            return None
        _looking.add(host)

    def work() -> None:
        try:
            found = _resolved(host)
            if found is not None:
                _families[host] = found[0]
        finally:
            _looking.discard(host)

    thread = threading.Thread(target=work, name="look up", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads; libzmq looks the name up, for IPv4 only
        _looking.discard(host)
        return None
    return thread


def _resolved(host: str) -> tuple[int, str] | None:
    """Return family and address of a name, IPv4 if it has one; None if it is not known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    places = of_one_family(found)
    return (places[0][0], str(places[0][1][0])) if places else None


def of_one_family(found: Sequence[tuple[int, int, int, str, tuple[Any, ...]]]) -> list[tuple[int, tuple[Any, ...]]]:
    """Family and address of each result of `getaddrinfo`. IPv6 is left out if there is IPv4."""
    first = min((family for family, *_ in found), default=0)  # AF_INET is less than AF_INET6
    return [(family, place) for family, *_, place in found if family == first]


def unix_address(endpoint: str) -> str | bytes:
    """What a Unix socket takes for ipc://PATH. With ipc://@NAME there is no file (Linux's abstract names)."""
    path = endpoint.removeprefix("ipc://")
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path


class Lookup:
    """Finds the addresses of a host in a thread: the system's look-up knows no deadline. Nobody has to wait for it.

    `found` is None until it has ended, then what `socket.connect` takes, with the family (`of_one_family`); it is empty
    if there is none, and `why` says so. `all_families` has the addresses that `found` leaves out, too.
    """

    def __init__(self, host: str, port: int) -> None:
        self.found: list[tuple[int, tuple[Any, ...]]] | None = None
        self.all_families: list[tuple[int, tuple[Any, ...]]] = []
        self.why = ""
        self._place = host.strip("[]"), port
        self._ended = threading.Event()
        if literal(host) is not None:
            self._work()
            return
        try:
            threading.Thread(target=self._work, name="look up", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._end([], str(error))

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and return whether it has ended."""
        return self._ended.wait(seconds)

    def _work(self) -> None:
        try:
            self._end(socket.getaddrinfo(*self._place, type=socket.SOCK_STREAM), "")
        except (OSError, UnicodeError) as error:
            self._end([], getattr(error, "strerror", None) or one_line(error))

    def _end(self, found: Sequence[tuple[int, int, int, str, tuple[Any, ...]]], why: str) -> None:
        self.why = why
        self.all_families = [(family, place) for family, *_, place in found]
        self.found = of_one_family(found)
        self._ended.set()
