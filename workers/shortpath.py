"""The short path: requests that meet no complication are served as they come, one after the other, and not held.

Such a request is the first attempt, for a model that runs each request alone and ran the last one in a moment, and
nothing waits before it. To hold it, to choose it, to make and to encode its messages would cost more than to run it.
Whatever else comes is left to the session: other messages, faults, long runs, batches, a worker that drains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from workers.links import Links
from workers.serving import DeviceLost, Served, bounded, execute
from workers.session import WorkerSession
from zmq_offload.errors import OffloadError, Unavailable
from zmq_offload.net.sharedmemory.sharing import Sharing, Unreadable
from zmq_offload.net.transport import Frames
from zmq_offload.protocol import messages as wire

SHORT = 0.0002
"""Seconds up to which a run is short. To look for messages after it costs as much."""

_STINT = 0.05
"""Seconds that the short path goes on, at most, before the loop looks for a stop or for a new version."""


class ShortPath:
    """`serve` requests of a broker. `deadline` is that of the request that runs; infinite while none does."""

    def __init__(
        self, session: WorkerSession, links: Links, sharing: Sharing | None, clock: Callable[[], float]
    ) -> None:
        self._session, self._links, self._sharing, self._clock = session, links, sharing, clock
        self.deadline = math.inf

    def serve(self, broker: int, arrived: Sequence[Frames], served: Mapping[tuple[str, int], Served]) -> int:
        """Answer the requests at the start of `arrived` that are uncomplicated. Returns how many. Raises DeviceLost."""
        session, links, clock, sharing = self._session, self._links, self._clock, self._sharing
        if session.held or session.draining_since is not None:
            return 0
        connection = session.connections[broker]
        most = min(session.max_frame_bytes, connection.takes)
        now = came_at = connection.heard_at = clock()
        flush_at = now + SHORT
        count = 0
        for frames in arrived:
            fields = wire.read_dispatch(frames[0])
            if fields is None:
                break
            _, token, number, attempt, model, version, budget_us = fields
            kind = model, version
            known = served.get(kind)
            deadline = came_at + budget_us / 1e6
            if known is None or known.lasted > SHORT or attempt > 1 or now >= deadline or now > came_at + _STINT:
                break
            count += 1
            payload = frames[1:]
            try:
                job = known.job(payload if sharing is None or len(payload) == 1 else read(sharing, payload))
            except OffloadError as error:
                self._fail(broker, frames, error, now)
                continue
            self.deadline = deadline
            links.lend(kind)
            start = clock()
            try:
                outcome = bounded(execute([job])[0], most, most)
            except DeviceLost:
                links.take_back(kind, clock() - start)
                raise
            now = clock()
            known.lasted = now - start
            links.take_back(kind, now - start)
            self.deadline = math.inf
            if isinstance(outcome, OffloadError):
                self._fail(broker, frames, outcome, now)
            else:
                envelope = wire.encode_done(token, number, attempt, int((now - start) * 1e6), 1, 1)
                links.answer(broker, [envelope, *outcome])
            if now >= flush_at:
                links.flush()
                flush_at = now + SHORT
        return count

    def _fail(self, broker: int, frames: Frames, error: OffloadError, now: float) -> None:
        message = wire.decode(frames[0], frozenset((wire.Dispatch,)))
        self._links.send(*self._session.refused(broker, message, error, now))


def read(sharing: Sharing, payload: Frames) -> Frames:
    """The bytes that references of a request stand for. Raises Unavailable if they are gone: the call has ended, or its
    client."""
    try:
        return sharing.read(payload)
    except Unreadable as gone:
        raise Unavailable(f"the inputs are lost: {gone}") from None
