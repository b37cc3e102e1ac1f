"""Servers that speak no protocol: each takes connections on a port of its own, and misbehaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Misbehave = Callable[[socket.socket], None]


def silent(connection: socket.socket) -> None:
    """Reads all, and says nothing."""
    while connection.recv(1 << 16):
        pass


def closing(connection: socket.socket) -> None:
    """Closes the connection when the request has begun."""
    connection.recv(1 << 16)


def garbage(connection: socket.socket) -> None:
    """Answers bytes of no protocol."""
    connection.recv(1 << 16)
    connection.sendall(bytes(range(256)) * 64 + b"\r\n\r\n")


def dripping(connection: socket.socket) -> None:
    """Answers a byte of HTTP now and then, for ever."""
    connection.recv(1 << 16)
    stop = threading.Event()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not stop.wait(0.02):
        connection.sendall(b"{")


@contextmanager
def bad_server(misbehave: Misbehave) -> Iterator[str]:
    """HOST:PORT of a server. Each connection has a thread, and ends with the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            misbehave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def refused_address() -> str:
    """HOST:PORT where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"
