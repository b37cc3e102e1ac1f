"""How a connection ends: TVM's own server ends, and does not say so, when it cannot send what it owes."""

from __future__ import annotations

import socket
import threading

_LEAVING = threading.BoundedSemaphore(8)
_PATIENCE = 30.0
"""Seconds without a byte after which a server gets no more time."""


def leave(connection: socket.socket) -> None:
    """Close a connection when the server has sent what it owes, in a thread of its own."""
    if not _LEAVING.acquire(blocking=False):
        connection.close()
        return

    def run() -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
        except OSError:
            pass
        finally:
            _LEAVING.release()

    threading.Thread(target=run, name="zmq-offload-leave", daemon=True).start()
