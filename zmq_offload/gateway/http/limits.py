"""What a client of the HTTP port may use at most. Pure."""

from __future__ import annotations

from dataclasses import dataclass

REQUEST_LINE_BYTES = 8 * 1024

HEADERS = 100
"""The most headers of a request."""

RATE = 1024
"""Bytes a second that a client sends of a body, or reads of a response, at least. Modems were faster."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are options of the gateway.

    `body_bytes` is for a body, before and after decompression, `held_bytes` for all bodies at one time, `header_bytes`
    for request line and headers. `idle` is the seconds that a connection stays open without a request; `receive` those
    in which the headers of a request arrive, and within which its body has to make progress.
    """

    body_bytes: int
    held_bytes: int
    header_bytes: int
    connections: int
    idle: float
    receive: float


class Progress:
    """The progress of a count of bytes. It is looked at once in `Limits.receive` seconds.

    An average over the whole body would let a client that began fast be idle for hours.
    """

    __slots__ = ("_mark",)

    def __init__(self, count: int = 0) -> None:
        self._mark = count

    def made(self, count: int, limits: Limits) -> bool:
        """Whether enough bytes came since the last look."""
        enough = count - self._mark >= RATE * limits.receive
        self._mark = count
        return enough
