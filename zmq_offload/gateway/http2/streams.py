"""The state of one stream. Pure."""

from __future__ import annotations

from zmq_offload.gateway.calls import Buffer


class Stream:
    """An open stream.

    Attributes
    ----------
    allowed : int
        Bytes that the peer may still send.
    expected : int or None
        What content-length promises, less the data that arrived.
    ended : bool
        Whether the peer sends nothing more.
    window : int
        Bytes that the peer takes; SETTINGS can make it negative.
    parts, held : list, int
        Data that flow control holds back, and its size.
    trailers : bytes or None
        What ends the stream after that data.
    """

    __slots__ = ("allowed", "ended", "expected", "held", "number", "parts", "trailers", "window")

    def __init__(self, number: int, *, allowed: int, window: int, expected: int | None, ended: bool) -> None:
        self.number = number
        self.allowed = allowed
        self.expected = expected
        self.ended = ended
        self.window = window
        self.parts: list[Buffer] = []  # few: a list costs less than a deque
        self.held = 0
        self.trailers: bytes | None = None
