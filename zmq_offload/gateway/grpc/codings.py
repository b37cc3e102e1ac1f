"""Compressed messages. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from zmq_offload.errors import InvalidArgument, ResourceExhausted
from zmq_offload.gateway.calls import Buffer

IDENTITY = "identity"
_GZIP, _ZLIB = 31, 15  # `wbits`; "deflate" is zlib's format
_WBITS = {"gzip": _GZIP, "deflate": _ZLIB}

CODINGS = (IDENTITY, *_WBITS)
"""How messages may be compressed."""

_LEVEL = 1
"""The fastest. Tensors of a network seldom become much smaller with more."""


def decompress(coding: str, data: Buffer, largest: int) -> bytes:
    """Decompress a message that may have `largest` bytes; no more are ever held."""
    if coding not in _WBITS:
        raise InvalidArgument("a message is compressed, but the call does not say how; send grpc-encoding")
    decoder = zlib.decompressobj(_WBITS[coding])
    try:
        message = decoder.decompress(data, largest + 1)
    except zlib.error as error:
        raise InvalidArgument(f"a message is not in the format {coding}: {error}") from None
    if len(message) > largest:
        raise ResourceExhausted(f"a message is longer than {largest} bytes when it is decompressed")
    if not decoder.eof or decoder.unused_data:
        raise InvalidArgument(f"a message is not one whole stream of {coding}")
    return message


def compress(coding: str, parts: Iterable[Buffer]) -> list[bytes]:
    """Compress a message."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WBITS[coding])
    return [*(encoder.compress(part) for part in parts), encoder.flush()]
