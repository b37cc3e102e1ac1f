"""The limits of connections and requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take of the gateway.

    `body_bytes` is for a body or message, decoded or not. `header_bytes` is for all headers of a request. `connections`
    are those of all ports, `streams` the concurrent ones of an HTTP/2 connection. `idle` is the seconds that one
    stays open without a request; `receive` those in which all headers of a request arrive, and the longest pause within
    its body.
    """

    body_bytes: int = 272 * 1024 * 1024
    header_bytes: int = 64 * 1024
    connections: int = 16384
    streams: int = 128
    idle: float = 120.0
    receive: float = 20.0
