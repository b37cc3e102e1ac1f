"""Compressed messages, in steps that are short enough for an event loop. Pure."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable

from zmq_offload.errors import Internal, InvalidArgument, ResourceExhausted
from zmq_offload.gateway.calls import Buffer

IDENTITY = "identity"
_GZIP, _ZLIB = 31, 15  # `wbits`; "deflate" is zlib's format
_WBITS = {"gzip": _GZIP, "deflate": _ZLIB}

CODINGS = (IDENTITY, *_WBITS)
"""How messages may be compressed."""

_LEVEL = 1
"""The fastest. Tensors of a network seldom become much smaller with more."""


_READ = 64 * 1024
_WRITTEN = 256 * 1024
"""Bytes that a step reads and writes at most: a few milliseconds."""


class Decoding:
    """Decompresses a message that may have `largest` bytes; no more are ever held."""

    def __init__(self, coding: str, data: Buffer, largest: int) -> None:
        if coding not in _WBITS:
            # gRPC's rules want this code: https://github.com/grpc/grpc/blob/master/doc/compression.md
            raise Internal("a message is compressed, but the call does not say how; send grpc-encoding")
        self.message = bytearray()
        self._coding = coding
        self._largest = largest
        self._rest = memoryview(data)
        self._tail: Buffer = b""
        self._decoder = zlib.decompressobj(_WBITS[coding])

    def step(self) -> bool:
        """Do a part of the work. Whether it was the last part. Raises OffloadError."""
        piece = self._tail
        if not piece:
            piece, self._rest = self._rest[:_READ], self._rest[_READ:]
        try:
            written = self._decoder.decompress(piece, _WRITTEN)
        except zlib.error as error:
            raise InvalidArgument(f"a message is not in the format {self._coding}: {error}") from None
        if len(self.message) + len(written) > self._largest:
            raise ResourceExhausted(f"a message is longer than {self._largest} bytes when it is decompressed")
        self.message += written
        self._tail = self._decoder.unconsumed_tail
        waiting = bool(self._tail or self._rest)
        if (self._decoder.eof and (self._decoder.unused_data or waiting)) or not (
            self._decoder.eof or waiting or len(written) == _WRITTEN
        ):
            raise InvalidArgument(f"a message is not one whole stream of {self._coding}")
        return self._decoder.eof


class Encoding:
    """Compresses a message into `parts`."""

    def __init__(self, coding: str, parts: Iterable[Buffer]) -> None:
        self.parts: list[bytes] = []
        self._rest = deque(memoryview(part).cast("B") for part in parts if len(part))
        self._encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[coding])

    def step(self) -> bool:
        """Do a part of the work. Whether it was the last part."""
        left = _READ
        while self._rest and left:
            part = self._rest.popleft()
            if len(part) > left:
                self._rest.appendleft(part[left:])
                part = part[:left]
            self.parts.append(self._encoder.compress(part))
            left -= len(part)
        if not self._rest:
            self.parts.append(self._encoder.flush())
        return not self._rest
