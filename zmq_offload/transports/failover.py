"""Which of several servers gets a call, and for how long. Pure: times are passed in.

The first server is the one that is wanted. A server that fails is left for the next, for a pause that grows while it
goes on to fail. After the pause one call tries it again; the others wait for what comes of that. A request may be sent
to several servers, one after the other, because inference has no side effects. All share the time of the call.
"""

from __future__ import annotations

from dataclasses import dataclass

from zmq_offload.errors import DeadlineExceeded, OffloadError, ProtocolError, Unavailable

CONNECT = 2.0
"""Seconds to connect to a server while there is another one to try."""

SOON, LATE = 1.0, 60.0
"""The first pause after a failure and the longest, in seconds. Each is twice the one before it."""


def leaves(error: OffloadError) -> bool:
    """Whether an error is a reason to try the next server: unreachable, unavailable, silent, or not of the protocol."""
    return isinstance(error, (Unavailable, DeadlineExceeded, ProtocolError))


@dataclass(slots=True)
class _Server:
    failures: int = 0
    """Failures in a row."""
    again_at: float = 0.0
    """When a server that failed is tried again."""
    tried: bool = False
    """Whether a call tries it again now."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A call's turn at a server: it ends at `until`, and connects by `connect_until`. `retrial`: the server failed, and
    this call finds out whether it is there again."""

    server: int
    until: float
    connect_until: float
    retrial: bool


class Failover:
    """What is known of the servers. Each `turn` is followed by one of `answered`, `failed` and `stopped`."""

    def __init__(self, count: int) -> None:
        self._servers = [_Server() for _ in range(count)]

    def turn(self, tried: frozenset[int], until: float, now: float) -> Turn | None:
        """Where a call goes that has tried these servers and ends at `until`. None if it has tried them all."""
        left = [number for number in range(len(self._servers)) if number not in tried]
        if not left:
            return None
        number = self._first(left, now)
        server = self._servers[number]
        retrial = server.failures > 0 and not server.tried
        server.tried |= retrial
        if len(left) == 1:
            return Turn(number, until, until, retrial)
        share = now + max(0.0, until - now) / len(left)
        return Turn(number, share, min(share, now + CONNECT), retrial)

    def answered(self, turn: Turn) -> None:
        """The server answered, if only with an error that another server would have given, too."""
        self._servers[turn.server] = _Server()

    def failed(self, turn: Turn, now: float) -> None:
        """The server was unreachable, unavailable, silent, or answered something else."""
        server = self._servers[turn.server]
        if server.failures and not turn.retrial:
            return  # calls that were in flight together fail together
        server.failures += 1
        server.again_at = now + min(SOON * 2 ** (server.failures - 1), LATE)
        server.tried = False

    def stopped(self, turn: Turn) -> None:
        """The call was canceled. That says nothing of the server."""
        if turn.retrial:
            self._servers[turn.server].tried = False

    def _first(self, left: list[int], now: float) -> int:
        """The first server that works or may be tried again, or else the one whose pause ends first."""
        for number in left:
            server = self._servers[number]
            if not server.failures or (now >= server.again_at and not server.tried):
                return number
        return min(left, key=lambda number: self._servers[number].again_at)
