"""Header blocks: decoded by `hpack` and checked (RFC 9113, section 8), and remembered, as clients repeat them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import hpack

from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode, StreamFault

Field = tuple[str, str]
Head = TypeVar("Head")

REMEMBERED = 16
LONGEST_REMEMBERED = 512
LARGEST_REMEMBERED = 4096
"""Bytes of the fields: a short block may name a long entry of the table again and again."""

_NAME = re.compile(r"[!-9;-@\[-~]+")
_VALUE = re.compile(r"(?![ \t])[^\0\r\n]*(?<![ \t])")
_OF_CONNECTIONS = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))
_PSEUDO = frozenset((":method", ":scheme", ":authority", ":path"))


class RequestHead(NamedTuple):
    """The head of a request. `size` is that of its fields as RFC 9113, section 6.5.2, counts them."""

    method: str
    path: str
    authority: str
    fields: Sequence[Field]
    size: int
    content_length: int | None


def request_head(fields: Sequence[Field]) -> RequestHead:
    """Check the fields of a request. Raises StreamFault if they are malformed."""
    pseudo: dict[str, str] = {}
    regular: list[Field] = []
    length = None
    for name, value in fields:
        if name[:1] == ":":
            if name not in _PSEUDO or name in pseudo or regular:
                raise _malformed(f"field {name!r} is unknown, double or late")
            pseudo[name] = value
        elif name == "content-length":
            if not (value.isascii() and value.isdecimal()) or length not in (None, int(value[:20])):
                raise _malformed(f"content-length {value!r}")
            length = int(value[:20])
        else:
            regular.append((name, value))
        _check_field(name, value)
    missing = [name for name in (":method", ":scheme", ":path") if not pseudo.get(name)]
    if missing:
        raise _malformed(f"{', '.join(missing)} missing")
    size = sum(len(name) + len(value) + 32 for name, value in fields)
    return RequestHead(pseudo[":method"], pseudo[":path"], pseudo.get(":authority", ""), regular, size, length)


def check_trailers(fields: Iterable[Field]) -> None:
    """Check the trailers of a request. Raises StreamFault if they are malformed."""
    for name, value in fields:
        if name[:1] == ":":
            raise _malformed(f"trailers with {name}")
        _check_field(name, value)


def _check_field(name: str, value: str) -> None:
    if not _NAME.fullmatch(name.removeprefix(":")) or name.lower() != name or not _VALUE.fullmatch(value):
        raise _malformed(f"field {name!r}: {value!r}")
    if name in _OF_CONNECTIONS or (name == "te" and value != "trailers"):
        raise _malformed(f"field {name!r}, which HTTP/2 does not have")


def _malformed(what: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, f"malformed header: {what}")


class Decoder(Generic[Head]):
    """Decodes the header blocks of one connection.

    What a block means depends on the decoder's table. As long as the table stays as it is, equal blocks mean the same,
    so `interpret` runs once for a block that a client repeats.
    """

    def __init__(self, interpret: Callable[[RequestHead], Head], largest: int) -> None:
        self._interpret = interpret
        self._decoder = hpack.Decoder(max_header_list_size=largest)
        self._remembered: dict[bytes, tuple[Head, int | None]] = {}

    def request(self, block: bytes) -> tuple[Head, int | None]:
        """The interpreted head of a request, and its content-length."""
        found = self._remembered.get(block)
        if found is None:
            fields, changed = self._fields(block)
            head = request_head(fields)
            found = self._interpret(head), head.content_length
            if not changed and len(block) <= LONGEST_REMEMBERED and head.size <= LARGEST_REMEMBERED:
                if len(self._remembered) >= REMEMBERED:
                    self._remembered.clear()
                self._remembered[block] = found
        return found

    def trailers(self, block: bytes) -> None:
        """Decode and check trailers, which nobody needs, for the sake of the table."""
        check_trailers(self._fields(block)[0])

    def skip(self, block: bytes) -> None:
        """Decode a block that nobody needs, for the sake of the table."""
        self._fields(block)

    def _fields(self, block: bytes) -> tuple[list[Field], bool]:
        """The fields, and whether the block changed the table."""
        table = self._decoder.header_table
        before = (table.maxsize, list(table.dynamic_entries))
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header list that is too large") from None
        except hpack.HPACKError:  # its text can have addresses of this process
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block is not HPACK") from None
        changed = before != (table.maxsize, list(table.dynamic_entries))
        if changed:
            self._remembered.clear()
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields], changed


def encode(fields: Iterable[Field]) -> bytes:
    """A header block that leaves the peer's table as it is, so that it is right on every connection."""
    block: bytes = hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False)
    return block
