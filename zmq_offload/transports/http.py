"""Requests of HTTP/1.1 with deadlines: connections that are kept, and can be stopped from another thread."""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from zmq_offload.errors import DeadlineExceeded, OffloadError, ProtocolError, ResourceExhausted, Unavailable, one_line
from zmq_offload.protocol.payload import Buffer
from zmq_offload.transports.access import access
from zmq_offload.transports.codes import error_text, of_http
from zmq_offload.transports.names import looked_up
from zmq_offload.transports.outputs import LARGEST
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.url import Url

_IDLE = 64
"""Connections that are kept for later requests."""

_RECORD = 16 << 10
"""Bytes of a request that is one record of TLS."""

_PIECE = 1 << 20
"""Bytes that are read at once of a body whose length is not known before."""


class Response:
    """An answer whose body is read by its receiver, with the deadline of the attempt."""

    def __init__(self, response: http.client.HTTPResponse, most: int, server: str) -> None:
        self._response, self._most, self._server = response, most, server
        self.status = response.status
        length = response.length
        if length is not None and length > most:
            raise ResourceExhausted(f"the answer of {server} has {length} bytes; at most {most} are taken")
        self.left = length
        """Bytes of the body that are not read yet; None if the server did not say how many there are."""

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return self._response.getheader(name)

    def read_into(self, room: memoryview) -> None:
        """Fill `room` from the body. Raises ProtocolError if the body ends before."""
        at = 0
        while at < len(room):
            count = self._response.readinto(room[at:])
            if not count:
                raise ProtocolError(f"the answer of {self._server} ends after {at} of {len(room)} bytes")
            at += count
        if self.left is not None:
            self.left -= at

    def read(self, most: int | None = None) -> bytes | bytearray:
        """The rest of the body. Raises ResourceExhausted for more than `most` bytes."""
        most = self._most if most is None else most
        if self.left is not None and self.left <= most:
            body = bytearray(self.left)
            self.read_into(memoryview(body))
            return body
        pieces, size = list[bytes](), self.left or 0
        while size <= most and (piece := self._response.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
        if size > most:
            raise ResourceExhausted(f"the answer of {self._server} has more than {most} bytes")
        return b"".join(pieces)

    def check(self) -> None:
        """Raise the error of an answer that is one."""
        if self.status != 200:
            text = ""
            with suppress(ResourceExhausted):
                text = error_text(self.read(LARGEST))
            raise of_http(self.status, text, self._server)

    def more(self) -> int:
        """The bytes of the body that are left, or whether there are some (1) if the server did not say how many."""
        return len(self._response.read(1)) if self.left is None else self.left


class _Timed(io.RawIOBase):
    """What a socket receives, before the end of an attempt. `HTTPResponse` takes it for a socket."""

    def __init__(self, connection: socket.socket, attempt: Attempt) -> None:
        self._connection, self._attempt = connection, attempt
        self._file = io.BufferedReader(self, 64 * 1024)

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        self._connection.settimeout(self._attempt.seconds())
        return self._connection.recv_into(room)

    def makefile(self, _: str) -> Any:
        return self._file


class HttpConnections:
    """The connections to one server. `most`: bytes of an answer. Threads share it.

    Raises InvalidArgument and FailedPrecondition for what the URL says of TLS and a token.
    """

    def __init__(self, url: Url, most: int) -> None:
        self._url, self._most = url, most
        self._prefix = quote(url.path)
        tls, authorization = access(url)
        self._tls = None if tls is None else tls.context()
        self._authorization = [] if authorization is None else [f"Authorization: {authorization}"]
        self._server = f"{url.scheme}://{url.address}"
        self._idle: list[socket.socket] = []
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        attempt: Attempt,
        headers: Mapping[str, str],
        body: Sequence[Buffer] = (),
    ) -> Iterator[Response]:
        """Send a request, and give its answer to the body of the `with` statement, which reads it.

        Raises Unavailable, DeadlineExceeded and ProtocolError, in the body of the statement, too.
        """
        length = sum(map(len, body))
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._url.address}", "Accept-Encoding: identity"]
        lines += [f"Content-Length: {length}"] if body else []
        lines += [*self._authorization, *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        connection: socket.socket | None = None
        try:
            while True:
                connection, kept = self._taken(attempt)
                with attempt.stopped_by(_stopper(connection)):
                    answer = self._answer(connection, method, [head, *body], attempt, kept)
                    if answer is not None:
                        yield Response(answer, self._most, self._server)
                        if answer.isclosed() and not answer.will_close:
                            connection = self._keep(connection)
                        return
                connection.close()  # the server had closed it since the last request
        except http.client.HTTPException as error:
            why = f"{type(error).__name__}: {one_line(error)}"
            if isinstance(error, http.client.BadStatusLine):  # often a port for gRPC; its bytes are not to print
                why = f"its answer begins with {str(error)[:20]!a}; use the server's port for HTTP"
            raise ProtocolError(f"{self._server} does not answer in HTTP: {why}") from None
        except TimeoutError as error:
            if isinstance(error, OffloadError):
                raise
            raise DeadlineExceeded(f"no answer from {self._server} in time") from None
        except OSError as error:
            if isinstance(error, OffloadError):
                raise
            attempt.seconds()
            raise Unavailable(f"the connection to {self._server} failed: {error.strerror or one_line(error)}") from None
        finally:
            if connection is not None:
                connection.close()

    def get(self, path: str, attempt: Attempt) -> bytes | bytearray:
        """The body of an answer without tensors. Raises the error of an answer that is one."""
        with self.request("GET", path, attempt, {}) as response:
            response.check()
            return response.read(LARGEST)

    def close(self) -> None:
        """Close the connections that no request uses; the others follow when their requests end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def forget(self) -> None:
        """Let go of the parent's connections in a forked child. It has descriptors of its own, so this ends none."""
        for connection in self._idle:
            connection.close()
        self._idle = []

    def _taken(self, attempt: Attempt) -> tuple[socket.socket, bool]:
        """A connection, and whether it was kept from an earlier request."""
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            if kept is None:
                break
            if not _readable(kept):
                return kept, True
            kept.close()  # the server has closed it, or said something that is no answer to the next request
        found: OSError | None = None
        for family, address in looked_up(self._url.host, self._url.port, attempt.seconds_to_connect()):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(attempt.seconds_to_connect())
                with attempt.stopped_by(_stopper(connection)):
                    connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is None:
                    return connection, False
                secure = connection = self._tls.wrap_socket(
                    connection, server_hostname=self._url.host, do_handshake_on_connect=False
                )
                secure.settimeout(attempt.seconds_to_connect())
                with attempt.stopped_by(_stopper(secure)):
                    secure.do_handshake()
                return secure, False
            except OSError as error:
                connection.close()
                if isinstance(error, OffloadError):
                    raise
                found = error
            except BaseException:
                connection.close()
                raise
        attempt.seconds()
        why = "no address" if found is None else found.strerror or one_line(found)
        raise Unavailable(f"cannot connect to {self._server}: {why}")

    def _keep(self, connection: socket.socket) -> socket.socket | None:
        """Keep a connection for later. Returns it if there are enough."""
        with self._lock:
            if self._closed or len(self._idle) >= _IDLE:
                return connection
            self._idle.append(connection)
            return None

    def _answer(
        self, connection: socket.socket, method: str, parts: Sequence[Buffer], attempt: Attempt, kept: bool
    ) -> http.client.HTTPResponse | None:
        """Send a request and read the head of its answer. None if a kept connection turns out to be closed."""
        broken: OSError | None = None
        try:
            _send(connection, parts, attempt)
        except ConnectionError as error:
            broken = error  # a server that refuses a body answers before it has read all of it
        timed: Any = _Timed(connection, attempt)
        answer = http.client.HTTPResponse(timed, method=method)
        try:
            answer.begin()
            while 100 < answer.status < 200 and answer.status != http.client.SWITCHING_PROTOCOLS:
                answer.fp = None  # type: ignore[assignment]  # closing it would close what the next one is read from
                answer = http.client.HTTPResponse(timed, method=method)
                answer.begin()
        except ConnectionError as error:  # RemoteDisconnected, too
            answer.close()
            if kept:
                return None
            raise Unavailable(f"the connection to {self._server} failed: {one_line(broken or error)}") from None
        except BaseException:
            answer.close()
            raise
        return answer


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _stopper(connection: socket.socket) -> Any:
    def stop() -> None:
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # SSLSocket's own is not for another thread

    return stop


def _send(connection: socket.socket, parts: Sequence[Buffer], attempt: Attempt) -> None:
    """Send all parts; the first ones in one system call, or one record of TLS."""
    views = [memoryview(part).cast("B") for part in parts]
    if isinstance(connection, ssl.SSLSocket):
        for view in views if sum(map(len, views)) > _RECORD else [memoryview(b"".join(views))]:
            at = 0
            while at < len(view):
                connection.settimeout(attempt.seconds())
                at += connection.send(view[at:])
        return
    connection.settimeout(attempt.seconds())
    sent = connection.sendmsg(views)
    for view in views:
        if sent >= len(view):
            sent -= len(view)
            continue
        connection.settimeout(attempt.seconds())
        connection.sendall(view[sent:])
        sent = 0
