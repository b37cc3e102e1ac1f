"""Listening sockets for the endpoints that libzmq knows: tcp:// with an address, a name or an interface, and ipc://."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import tempfile

from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import addresses, ipc
from zmq_offload.net.shortcut import credentials_of
from zmq_offload.net.transport import check_endpoint

_BACKLOG = 4096
"""Connections that wait to be accepted; the system may allow fewer."""

_SIOCGIFADDR = 0x8915


class Listener:
    """A socket that listens. `endpoint` has the number that the system chose for port 0. With `own_user` only processes
    of this user are accepted, at a Unix socket."""

    def __init__(self, endpoint: str, *, own_user: bool = False) -> None:
        """Bind. Raises FailedPrecondition if the address is taken or belongs to another machine."""
        self._own_user = own_user
        bind = self._bind_tcp if check_endpoint(endpoint).startswith("tcp://") else self._bind_ipc
        self.file: ipc.SocketFile | None = None
        self._folder: str | None = None
        try:
            self.socket, self.endpoint = bind(endpoint)
        except OSError as error:
            code = error.errno or 0
            raise FailedPrecondition(
                f"cannot bind to {endpoint}: {addresses.why_not_bound(code, os.strerror(code))}"
            ) from None

    def _bind_tcp(self, endpoint: str) -> tuple[socket.socket, str]:
        """The host is an address, `*` (IPv4), an interface, or a name of this machine; `[::]` accepts IPv4, too."""
        host, _, port = addresses.to_bind(endpoint).removeprefix("tcp://").rpartition(":")
        host = "0.0.0.0" if host == "*" else host.strip("[]")
        if addresses.is_interface(host):
            host = _address_of_interface(host)
        try:
            found = socket.getaddrinfo(host, int(port.replace("*", "0")), type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise OSError(errno.ENODEV, "") from None
        family, _, _, _, place = found[0]
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(place)
            _listen(bound)
            stack.pop_all()
        host, number = bound.getsockname()[:2]
        return bound, f"tcp://[{host}]:{number}" if ":" in host else f"tcp://{host}:{number}"

    def _bind_ipc(self, endpoint: str) -> tuple[socket.socket, str]:
        if not endpoint.startswith("ipc://"):
            raise OSError(errno.EPROTONOSUPPORT, "")
        if endpoint == "ipc://*":
            self._folder = tempfile.mkdtemp(prefix="zmq-offload-")
            endpoint = f"ipc://{self._folder}/socket"
        place = addresses.unix_address(endpoint)
        if len(os.fsencode(place)) > 107:
            raise OSError(errno.ENAMETOOLONG, "")
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))

            def bind() -> None:
                if isinstance(place, str):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(place)  # of a program that has ended
                bound.bind(place)
                _listen(bound)

            self.file = ipc.bind(endpoint, bind)
            stack.pop_all()
        return bound, endpoint

    def accept(self) -> tuple[socket.socket, str]:
        """The next connection, and the address of its other end: an IP address, or "pid 123"."""
        accepted, place = self.socket.accept()
        if accepted.family != socket.AF_UNIX:
            return accepted, place[0]
        process, user = credentials_of(accepted)
        if self._own_user and user != os.geteuid():
            accepted.close()
            raise PermissionError(errno.EACCES, "it is of another user")
        return accepted, f"pid {process}"

    def close(self) -> None:
        """Close the socket and remove its file."""
        self.socket.close()
        if self.file is not None:
            self.file.remove()
        if self._folder is not None:
            os.rmdir(self._folder)


def _listen(bound: socket.socket) -> None:
    bound.listen(_BACKLOG)
    bound.setblocking(False)


def _address_of_interface(name: str) -> str:
    """The IPv4 address of a network interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
    return socket.inet_ntoa(answer[20:24])
