"""Content codings: gzip and deflate, in steps that are short enough for an event loop. Pure."""

from __future__ import annotations

import functools
import zlib

from zmq_offload.errors import one_line, printable
from zmq_offload.gateway.calls import Buffer, Buffers
from zmq_offload.gateway.http.heads import Refused
from zmq_offload.gateway.http.messages import Compression

COMPRESSED_FROM = 1024
"""A smaller response gains nothing."""

_CODINGS = ("gzip", "deflate")
_GZIP = 31
_ZLIB = 15
_RAW = -15

_READ = 64 * 1024
_WRITTEN = 256 * 1024
"""Bytes that a step reads and writes at most: about a millisecond."""

_LEVEL = 1
"""Tensors of floats hardly compress; a higher level takes three times as long for a few percent."""


class Decoding:
    """Decompresses a body of at most `limit` bytes. Raises Refused for a coding that is not known."""

    def __init__(self, coding: str, body: Buffer, limit: int) -> None:
        self._coding = coding.strip().lower().removeprefix("x-")
        if self._coding not in _CODINGS:
            text = f"the content coding {printable(coding)!r} is not supported; use gzip or deflate"
            raise Refused(415, text, ("Accept-Encoding", ", ".join(_CODINGS)))
        self.body = bytearray()
        self._limit = limit
        self._rest = memoryview(body)
        self._tail: Buffer = b""
        self._decoder = zlib.decompressobj(_GZIP if self._coding == "gzip" else _deflate_window(body))

    def step(self) -> bool:
        """Do a part of the work. Whether it was the last part. Raises Refused."""
        piece = self._tail
        if not piece:
            piece, self._rest = self._rest[:_READ], self._rest[_READ:]
        try:
            written = self._decoder.decompress(piece, _WRITTEN)
        except zlib.error as error:
            raise Refused(400, f"the body is not {self._coding}: {one_line(error).lower()}") from None
        if len(self.body) + len(written) > self._limit:
            raise Refused(413, f"the body is too long when it is decompressed; send at most {self._limit} bytes")
        self.body += written
        self._tail = self._decoder.unconsumed_tail
        if self._decoder.eof:
            if self._decoder.unused_data or self._rest:
                raise Refused(400, f"the body has bytes after the end of its {self._coding} data; send one stream")
            return True
        if not self._tail and not self._rest and len(written) < _WRITTEN:
            raise Refused(400, f"the {self._coding} data of the body ends too early; send all of it")
        return False


class Encoding:
    """Compresses a body. `coding` is what `choose` returned."""

    def __init__(self, coding: str, body: Buffers) -> None:
        self.body: list[bytes] = []
        self._rest = [memoryview(part).cast("B") for part in body]
        self._encoder = zlib.compressobj(_LEVEL, wbits=_GZIP if coding == "gzip" else _ZLIB)

    def step(self) -> bool:
        """Do a part of the work. Whether it was the last part."""
        if not self._rest:
            self.body.append(self._encoder.flush())
            return True
        part = self._rest[0]
        self.body.append(self._encoder.compress(part[:_READ]))
        if len(part) > _READ:
            self._rest[0] = part[_READ:]
        else:
            del self._rest[0]
        return False


def choose(accepted: str, compression: Compression) -> str | None:
    """The coding for a response, by the value of Accept-Encoding; None is no coding."""
    if compression is Compression.NONE or (compression is Compression.ASKING and "," in accepted):
        return None
    return (_known_preferred if len(accepted) <= _SHORT else _preferred)(accepted)


_SHORT = 256
"""Characters of a header of which is kept what it says: long ones must not fill the memory."""


def _preferred(accepted: str) -> str | None:
    """The coding that a client likes best of those that there are, None if it is no coding."""
    weights: dict[str, float] = {}
    for item in accepted.split(","):
        name, *parameters = [part.strip().lower() for part in item.split(";")]
        weights[name.removeprefix("x-")] = _weight(parameters)
    best = max(_CODINGS, key=lambda coding: weights.get(coding, weights.get("*", 0.0)))
    weight = weights.get(best, weights.get("*", 0.0))
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


_known_preferred = functools.lru_cache(256)(_preferred)


def _weight(parameters: list[str]) -> float:
    """The value of "q=0.5" among the parameters of a coding, or 1."""
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _deflate_window(body: Buffer) -> int:
    """How zlib reads "deflate": HTTP means zlib's format, but some clients send its data without a header."""
    start = bytes(memoryview(body)[:2])
    has_header = len(start) == 2 and start[0] & 15 == 8 and int.from_bytes(start, "big") % 31 == 0
    return _ZLIB if has_header else _RAW
