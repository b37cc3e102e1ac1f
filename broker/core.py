"""The broker's decisions: `handle(event, now) -> actions` and `next_deadline()`. No socket, no clock, no randomness.

The promise: every accepted request gets exactly one terminal reply, a Result or an Error. Inference is pure, so an
attempt that may have run can be run again. Attempts are numbered; an answer to any but the current attempt is late and
only frees its slot.

    broker.frontend   what clients say          broker.lifecycle   the lives of requests and workers, as tables
    broker.backend    what workers say          broker.scheduler   who gets which request
    broker.ledger     a request's way           broker.admission   which requests may wait
"""

from __future__ import annotations

from typing import Any

from broker import liveness
from broker.backend import Backend
from broker.events import (
    Action,
    Authorized,
    Disconnected,
    Event,
    FromClient,
    FromWorker,
    Malformed,
    Stop,
    Tick,
    ToClient,
    Undelivered,
)
from broker.frontend import Frontend
from broker.ledger import STOP
from broker.lifecycle import WorkerState
from broker.state import PendingRequest, Worker
from zmq_offload.errors import Status
from zmq_offload.protocol.messages import Key


class Core(Frontend, Backend):
    """All that the broker knows and decides."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds, any origin, never going back)."""
        self._actions = []
        if self._timers.may_be_due(now):
            self._expire(now)
        _ON[type(event)](self, event, now)
        return self._actions

    def next_deadline(self) -> float | None:
        """When `handle` wants to be called even if nothing happens."""
        return self._timers.next()

    @property
    def finished(self) -> bool:
        """Whether a stop is complete."""
        return self.stopping and not self.requests

    # --- connections ----------------------------------------------------------------------------------------

    def _authorize(self, event: Authorized, now: float) -> None:
        """Whose key is taken away gets no more: what they wait for fails, and their workers are lost."""
        self.authorized = event
        for request in list(self.requests.values()):
            grant = event.clients.get(request.user)
            if grant is None:
                self._fail(request, "revoked", now, Status.UNAUTHENTICATED, "the key was revoked")
            elif not grant.allows(request.wanted.model):
                text = f"this key is not for model {request.wanted.model!r} any more"
                self._fail(request, "revoked", now, Status.PERMISSION_DENIED, text)
        for worker in list(self.workers.values()):
            grant = event.workers.get(worker.user)
            if grant is None:
                self._lose(worker, "its key was revoked", now, returns=False)
            elif not all(grant.allows(name) for name, _ in worker.models):
                # It announces itself again, and what its key is not for is left out then.
                self._lose(worker, "its key is for fewer models than it was", now)

    def _undelivered(self, event: Undelivered, now: float) -> None:
        action = event.action
        if type(action) is ToClient:
            # Gone, or it does not read. Should it come back, its next Ping tells it what to send again.
            self.counts["undelivered"] += 1
            return
        worker = self.workers.get(action.peer)
        if worker is not None:
            self._lose(worker, "it takes no more messages" if event.full else "its connection is gone", now)

    def _disconnected(self, event: Disconnected, now: float) -> None:
        self._actions.extend(map(self._probe, self.workers))

    # --- time -----------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: float) -> None:
        pass  # what is due was done already

    def _stop(self, event: Stop, now: float) -> None:
        if not self.stopping:
            self.stopping = True
            self._timers.set(STOP, now + event.grace)

    def _expire(self, now: float) -> None:
        due = list(iter(lambda: self._timers.pop(now), None))
        # Requests first: one whose time is up must not be given to another worker because its own is lost.
        due.sort(key=lambda subject: type(subject) is not Key)
        for subject in due:
            if subject == STOP:
                for request in list(self.requests.values()):
                    text = "the broker shut down before the request was done"
                    self._fail(request, "stopped", now, Status.UNAVAILABLE, text)
            elif type(subject) is Key:
                self._request_due(self.requests[subject], now)
            elif subject in self.workers:
                self._worker_due(self.workers[subject], now)

    def _request_due(self, request: PendingRequest, now: float) -> None:
        if now >= request.deadline:
            spent = now - request.accepted_at
            if request.worker is not None:
                where = f"while worker {request.worker.name} had it"
            elif request.lost and not self.scheduler.served(request.wanted):
                where = f"while it waited for a worker; it lost {', '.join(request.lost)}, and none came back"
            else:
                where = "while it was queued"
            text = f"no result within {spent:.3f} s; the deadline passed {where}"
            self._fail(request, "expired", now, Status.DEADLINE_EXCEEDED, text)
        elif request.worker is None and not request.lost and not self.scheduler.served(request.wanted):
            self._fail(request, "unserved", now, *self._nobody_serves(request.wanted, request.user))
        else:
            self._timers.set(request.key, request.deadline)

    def _worker_due(self, worker: Worker, now: float) -> None:
        why = liveness.lost(worker, self.policy, now)
        if why is not None:
            self._lose(worker, why, now)
            return
        if worker.state is WorkerState.READY and (silent := liveness.quiet(worker, self.policy, now)):
            self._worker_transition(worker, "silent", now, silent)
            text = f"worker {worker} is idle and silent for {silent}; it is given nothing until it is heard"
            self._note(now, "workers", text)
        self._timers.set(worker.peer, now + self.policy.heartbeat)
        self._actions.append(self._probe(worker.peer))


_ON: dict[type, Any] = {
    FromClient: Core._from_client,
    FromWorker: Core._from_worker,
    Authorized: Core._authorize,
    Malformed: Core._malformed,
    Undelivered: Core._undelivered,
    Disconnected: Core._disconnected,
    Stop: Core._stop,
    Tick: Core._tick,
}
"""What an event does."""
