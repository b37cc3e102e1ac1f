"""What a client of the HTTP port may use at most. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one HTTP server. Sizes are in bytes, times in seconds.

    Attributes
    ----------
    body : int
        The body of a request, before and after decompression. It is checked before memory is used for it.
    bodies : int
        All bodies that are held at one time.
    request_line : int
        Method, target and version.
    head : int
        Request line and headers.
    headers : int
        Number of headers.
    connections : int
        Open connections. One more is answered with 503 and closed.
    idle : float
        Time that a connection may wait for a request.
    head_time : float
        Time that the head of a request may take.
    window : float
        Time after which a body must have grown, and a response must have been read, by `rate` bytes for each second.
    rate : int
        See `window`.
    linger : float
        Time for which a refused request is still read, so that its client sees the response.
    """

    body: int = 64 * MEBIBYTE
    bodies: int = 1024 * MEBIBYTE
    request_line: int = 8 * 1024
    head: int = 32 * 1024
    headers: int = 100
    connections: int = 20_000
    idle: float = 75.0
    head_time: float = 10.0
    window: float = 10.0
    rate: int = 1024
    linger: float = 5.0


class Progress:
    """Whether something that counts up makes enough progress."""

    __slots__ = ("_mark",)

    def __init__(self, count: int = 0) -> None:
        self._mark = count

    def made(self, count: int, limits: Limits) -> bool:
        """To be asked once in each `limits.window`."""
        enough = count - self._mark >= limits.rate * limits.window
        self._mark = count
        return enough
