"""The broker's decisions: `handle(event, now) -> actions` and `next_deadline()`. No socket, no clock, no randomness.

The promise: every accepted request gets exactly one terminal reply, a Result or an Error. Inference is pure, so an
attempt that may have run can be run again. Attempts are numbered; an answer to any but the current attempt is late and
only frees its slot.

    broker.frontend   clients' messages         broker.lifecycle   states of requests and workers
    broker.backend    workers' messages         broker.scheduler   which worker gets which request
    broker.ledger     the steps of a request    broker.admission   which requests may wait
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from broker import liveness
from broker.admission import QueueLimits
from broker.backend import Backend
from broker.events import (
    Action,
    Authorized,
    Disconnected,
    Event,
    FromClient,
    FromWorker,
    Malformed,
    Tick,
    ToClient,
    Undelivered,
)
from broker.frontend import Frontend
from broker.ledger import LOOK, STOP, Ledger, Subject
from broker.lifecycle import WorkerState
from broker.liveness import LivenessPolicy
from broker.state import PendingRequest, Worker
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import Key

_GONE = "its connection is gone"


class Core:
    """The broker without its sockets. `started` is the time at which it came up."""

    def __init__(
        self,
        policy: LivenessPolicy,
        started: float,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        queue_limits: QueueLimits | None = None,
    ) -> None:
        self.ledger = Ledger(policy, started, max_frame_bytes, queue_limits)
        self.frontend = Frontend(self.ledger)
        self._backend = Backend(self.ledger)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide what to do about an event at time `now` (seconds, any origin, never going back)."""
        self.decide(event, now)
        return self.take()

    def take(self) -> list[Action]:
        """What is to be done about the events since the last call."""
        actions, self.ledger.actions = self.ledger.actions, []
        return actions

    def decide(self, event: Event, now: float) -> None:
        """Do what `handle` does, but leave the actions to `take`: those of many events are performed together."""
        ledger = self.ledger
        if ledger.timers.first <= now or ledger.deadlines.first <= now:
            self._expire(now)
        if isinstance(event, FromClient):
            self.frontend.handle(event, now)
        elif isinstance(event, FromWorker):
            self._backend.handle(event, now)
        elif isinstance(event, Tick):
            pass  # what is due was done above
        elif isinstance(event, Undelivered):
            self._undelivered(event, now)
        elif isinstance(event, Disconnected):
            self._disconnected(event.peer, now)
        elif isinstance(event, Malformed):
            ledger.malformed(event, now)
        elif isinstance(event, Authorized):
            self._authorize(event, now)
        else:
            self._stop(event.grace, now)
        if ledger.moved:
            ledger.moved = False
            ledger.pools_changed(now)

    def next_deadline(self) -> float | None:
        """When to call `handle` even if nothing happens, at the latest."""
        due, other = self.ledger.timers.first, self.ledger.deadlines.first
        if other < due:
            due = other
        return None if due == math.inf else due

    @property
    def finished(self) -> bool:
        """Whether a stop is complete."""
        return self.ledger.stopping and not self.ledger.requests

    # --- connections ----------------------------------------------------------------------------------------

    def _authorize(self, event: Authorized, now: float) -> None:
        """Apply new key lists: fail pending requests of revoked keys and drop their workers."""
        ledger = self.ledger
        ledger.authorized = event
        for request in list(ledger.requests.values()):
            grant = event.clients.get(request.user)
            if grant is None:
                ledger.fail(request, "revoked", now, Status.UNAUTHENTICATED, "the key was revoked")
            elif not grant.allows(request.wanted.model):
                text = f"this key is no longer for model {request.wanted.model!r}"
                ledger.fail(request, "revoked", now, Status.PERMISSION_DENIED, text)
        for worker in list(ledger.workers.values()):
            grant = event.workers.get(worker.user)
            if grant is None:
                ledger.lose(worker, "its key was revoked", now, returns=False)
            elif not all(grant.allows(name) for name, _ in worker.models):
                # It announces itself again, without the models that its key is not for.
                ledger.lose(worker, "its key is for fewer models than before", now)

    def _disconnected(self, peer: bytes | None, now: float) -> None:
        ledger = self.ledger
        if peer is None:
            for known in ledger.workers:
                ledger.probe(known)
        elif (worker := ledger.workers.get(peer)) is not None:
            ledger.lose(worker, _GONE, now)

    def _undelivered(self, event: Undelivered, now: float) -> None:
        if isinstance(event.action, ToClient):
            # The client is gone, or does not read. If it comes back, its next Ping tells it what to send again.
            self.ledger.counts["undelivered"] += 1
            return
        worker = self.ledger.workers.get(event.action.peer)
        if worker is not None:
            why = "it takes no more messages" if event.full else _GONE
            self.ledger.lose(worker, why, now)

    # --- time -----------------------------------------------------------------------------------------------

    def _stop(self, grace: float, now: float) -> None:
        if not self.ledger.stopping:
            self.ledger.stopping = True
            self.ledger.timers.set(STOP, now + grace)

    def _expire(self, now: float) -> None:
        ledger = self.ledger
        # Requests first: one whose time is up must not be given to another worker because its own is lost.
        for subject in sorted(self._due(now), key=lambda subject: not isinstance(subject, Key)):
            if isinstance(subject, Key):
                self._request_due(ledger.requests[subject], now)
            elif isinstance(subject, bytes):
                self._worker_due(ledger.workers[subject], now)
            elif subject == LOOK:
                ledger.settle_mixed(now)
            else:
                for request in list(ledger.requests.values()):
                    text = "the broker shut down before the request was done"
                    ledger.fail(request, "stopped", now, Status.UNAVAILABLE, text)

    def _due(self, now: float) -> Iterator[Subject]:
        if self.ledger.deadlines.first <= now:
            self.ledger.deadlines.look(now)
        while (subject := self.ledger.timers.pop(now)) is not None:
            yield subject

    def _request_due(self, request: PendingRequest, now: float) -> None:
        ledger = self.ledger
        if now >= request.deadline:
            text = f"deadline exceeded after {now - request.accepted_at:.3f} s {self._where(request)}"
            ledger.fail(request, "expired", now, Status.DEADLINE_EXCEEDED, text)
        elif request.worker is None and not request.lost and not ledger.scheduler.served(request.wanted):
            ledger.fail(request, "unserved", now, *ledger.unserved(request))
        else:
            ledger.deadlines.set(request, request.deadline)

    def _where(self, request: PendingRequest) -> str:
        if request.worker is not None:
            return f"at worker {request.worker.name}"
        if request.lost and not self.ledger.scheduler.served(request.wanted):
            return f"while waiting for a worker; it lost {', '.join(request.lost)}, and none came back"
        return "while queued"

    def _worker_due(self, worker: Worker, now: float) -> None:
        ledger, policy = self.ledger, self.ledger.policy
        why = liveness.lost(worker, policy, now)
        if why is not None:
            ledger.lose(worker, why, now)
            return
        if worker.state is WorkerState.READY and (silent := liveness.quiet(worker, policy, now)):
            ledger.worker_transition(worker, "silent", now, silent)
            text = f"worker {worker} is idle and silent for {silent}; it is given nothing until it is heard"
            ledger.note(now, "workers", text)
        ledger.timers.set(worker.peer, now + policy.heartbeat)
        ledger.probe(worker.peer)
