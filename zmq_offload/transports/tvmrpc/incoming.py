"""Packets as they come in on a connection that does not block."""

from __future__ import annotations

import socket
import struct

import numpy as np

from zmq_offload.errors import ResourceExhausted, Unavailable
from zmq_offload.transports.tvmrpc import wire

_MORE = 1 << 16
"""Bytes of a packet that are no content."""


class Incoming:
    """The packets of one connection. `most`: bytes of content that a packet may have."""

    def __init__(self, connection: socket.socket, address: str, most: int) -> None:
        self._socket, self._address, self._most = connection, address, most
        self._length = bytearray(wire.LENGTH)
        self._room = memoryview(self._length)
        self._packet: memoryview | None = None
        self._at = 0

    def packet(self) -> memoryview | None:
        """The next packet, without its length; None if not all of it is there. Raises OSError, Unavailable at the
        connection's end, and ResourceExhausted."""
        while True:
            try:
                count = self._socket.recv_into(self._room[self._at :])
            except BlockingIOError:
                return None
            if not count:
                raise Unavailable(f"the TVM RPC server at {self._address} closed the connection")
            self._at += count
            if self._at < len(self._room):
                continue
            self._at = 0
            if self._packet is not None:
                packet, self._packet, self._room = self._packet, None, memoryview(self._length)
                return packet
            (length,) = struct.unpack("<Q", self._length)
            if length > self._most + _MORE:
                raise ResourceExhausted(
                    f"an answer of the TVM RPC server at {self._address} has {length} bytes; max_frame_bytes allows "
                    f"{self._most}"
                )
            if length:
                self._packet = self._room = np.empty(length, np.uint8).data
