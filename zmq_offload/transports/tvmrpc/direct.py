"""The function that clients call, and how it answers later calls without TVM's own reading and writing.

TVM 0.27 reads and writes the bytes of an argument one at a time: about 10 ns a byte each way. So after the first call
of a connection the function does not return. It answers on the connection itself, and reads the next calls from it, in
the same packets. A client sees no difference. TVM reads no byte more than it needs, so that nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence

import numpy as np

from zmq_offload.errors import OffloadError
from zmq_offload.transports.tvmrpc import values, wire

MOST = 1 << 30
"""The longest packet that is read, in bytes."""

_PIECES = 64

Answer = Callable[["bytes | memoryview"], "Sequence[bytes | memoryview]"]


def own_connection() -> socket.socket | None:
    """The connection that this process serves: the one that was accepted at a port where it listens, too. None if there
    is no such one, as behind a proxy."""
    ports, connected = set(), []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, ValueError):
            found = socket.socket(fileno=os.dup(int(name)))
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                found.close()
            elif found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(found.getsockname()[1])
                found.close()
            else:
                connected.append(found)
    mine = [one for one in connected if one.getsockname()[1] in ports]
    chosen = mine[0] if len({one.getpeername() for one in mine}) == 1 else None
    for one in connected:
        if one is not chosen:
            one.close()
    return chosen


def serve(connection: socket.socket, first: bytes, answer: Answer) -> None:
    """Answer the first call, and those that follow, until the client leaves."""
    connection.setblocking(True)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _returned(connection, answer(first))
        while (packet := _packet(connection)) is not None and _handled(connection, packet, answer):
            pass


def _handled(connection: socket.socket, packet: memoryview, answer: Answer) -> bool:
    """Answer a packet. Returns whether more may follow."""
    (code,) = struct.unpack_from("<i", packet)
    if code == wire.SHUTDOWN:
        return False
    if code == wire.FREE:  # the function, which stays
        connection.sendall(wire.return_of_nothing())
        return True
    try:
        given = values.decode_values(packet[12:]) if code == wire.CALL else []
    except OffloadError:
        given = []
    if len(given) == 1 and isinstance(given[0], memoryview):
        _returned(connection, answer(given[0]))
    else:
        connection.sendall(wire.exception("after its first call this session takes calls of one function, with bytes"))
    return True


def _packet(connection: socket.socket) -> memoryview | None:
    """The next packet, without its length. None at the end of the connection, and for a packet that is too long."""
    head = memoryview(bytearray(wire.LENGTH))
    if not _filled(connection, head):
        return None
    (length,) = struct.unpack("<Q", head)
    if not 4 <= length <= MOST:
        return None
    packet = np.empty(length, np.uint8).data
    return packet if _filled(connection, packet) else None


def _filled(connection: socket.socket, room: memoryview) -> bool:
    at = 0
    while at < len(room):
        count = connection.recv_into(room[at:])
        if not count:
            return False
        at += count
    return True


def _returned(connection: socket.socket, buffers: Sequence[bytes | memoryview]) -> None:
    views = [memoryview(wire.return_of_bytes(sum(map(len, buffers))))]
    views += [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while views:
        count = connection.sendmsg(views[:_PIECES])
        while views and count >= views[0].nbytes:
            count -= views[0].nbytes
            del views[0]
        if views and count:
            views[0] = views[0][count:]
