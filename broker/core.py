"""The broker's decisions: `handle(event, now) -> actions` and `next_deadline()`. No socket, no clock, no randomness.

The promise: every accepted request gets exactly one terminal reply, a Result or an Error. A request is accepted when it
enters `requests` and gets its reply where it leaves (`_end`); there is no other way in or out.

    accepted ──► queued ──dispatch──► held by a worker ──Done/Failed──► ended
                   ▲                       │
                   └── worker lost, tried ─┘        deadline, Cancel, Stop: ended from either state

Inference is pure, so an attempt that may have run can be run again. Attempts are numbered; an answer to any but the
current attempt is late and only frees its slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from broker import liveness
from broker.events import (
    Action,
    Disconnected,
    Event,
    FromClient,
    FromWorker,
    Malformed,
    Stop,
    Tick,
    ToClient,
    ToWorker,
    Undelivered,
)
from broker.liveness import Policy
from broker.report import describe_models, describe_status, parse_models, served_listing
from broker.scheduler import Scheduler
from broker.state import Payload, Request, Worker
from zmq_offload.errors import ProtocolError, Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST, SESSION_BYTES, Key
from zmq_offload.protocol.payload import encode_body
from zmq_offload.timers import Timers

_STOP = "stop"
_NOBODY = Key(bytes(SESSION_BYTES), 0)


class Core:
    """All that the broker knows and decides. `started` is the time at which it came up."""

    def __init__(self, policy: Policy, started: float) -> None:
        self.policy = policy
        self.started = started
        self.requests: dict[Key, Request] = {}
        self.workers: dict[bytes, Worker] = {}
        self.scheduler = Scheduler()
        self.stopping = False
        self.counts: Counter[str] = Counter()
        """accepted, served, failed.<code>, refused.<code>, and what was dropped: late, duplicate, malformed, ..."""
        self.known: dict[str, set[int]] = {}
        """Every model that was ever announced, and its versions."""
        self._timers: Timers[Any] = Timers()  # a request's Key, a worker's peer, or _STOP
        self._actions: list[Action] = []
        self._on_event: dict[type, Callable[[Any, float], None]] = {
            FromClient: self._from_client,
            FromWorker: self._from_worker,
            Malformed: self._malformed,
            Undelivered: self._undelivered,
            Disconnected: self._disconnected,
            Stop: self._stop,
            Tick: lambda event, now: None,
        }
        self._on_message: dict[type, Callable[[Any, Any, Any, float], None]] = {
            wire.Request: self._request,
            wire.Cancel: self._cancel,
            wire.Query: self._query,
            wire.Ping: self._ping,
            wire.Done: self._done,
            wire.Failed: self._failed,
            wire.Goodbye: self._goodbye,
            wire.Heartbeat: lambda worker, message, payload, now: None,
        }

    # --- the face -------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at time `now` (seconds, any origin, never going back)."""
        self._actions = []
        while (due := self._timers.pop(now)) is not None:
            self._expired(due, now)
        self._on_event[type(event)](event, now)
        return self._actions

    def next_deadline(self) -> float | None:
        """When `handle` wants to be called even if nothing happens."""
        return self._timers.next()

    @property
    def finished(self) -> bool:
        """Whether a stop is complete."""
        return self.stopping and not self.requests

    # --- clients --------------------------------------------------------------------------------------------

    def _from_client(self, event: FromClient, now: float) -> None:
        self._on_message[type(event.message)](event.peer, event.message, event.payload, now)

    def _request(self, peer: bytes, message: wire.Request, payload: Payload, now: float) -> None:
        key = Key(message.session, message.id)
        again = self.requests.get(key)
        if again is not None:
            # A client that reconnected sends all that it waits for; the attempt that is out already serves.
            again.client = peer
            self.counts["duplicate"] += 1
            return
        nbytes = sum(map(len, payload))
        worker = None if self.stopping else self.scheduler.choose(message.model, message.version)
        refusal = self._refusal(message, nbytes, now) if worker is None else None
        if refusal is not None:
            status, text = refusal
            self.counts[f"refused.{status.value}"] += 1
            self._actions.append(ToClient(peer, wire.Error(*key, status.value, text)))
            return
        deadline = now + message.budget_us / 1e6
        request = Request(key, peer, message.model, message.version, message.priority, deadline, now, payload, nbytes)
        self.requests[key] = request
        self.counts["accepted"] += 1
        self._timers.set(key, deadline)
        self._place(request, worker, now)

    def _refusal(self, message: wire.Request, nbytes: int, now: float) -> tuple[Status, str] | None:
        """Why a request that would have to queue is not accepted, if it is not."""
        scheduler, policy = self.scheduler, self.policy
        if self.stopping:
            return Status.UNAVAILABLE, "the broker is shutting down"
        if (
            not scheduler.served(message.model, message.version)
            and not self._was_known(message.model, message.version)
            and now >= self.started + policy.worker_grace
        ):
            return self._nobody_serves(message.model, message.version)
        queue = scheduler.queues.get((message.model, message.version))
        if queue is not None:
            if len(queue) >= policy.max_queued_per_model:
                return Status.RESOURCE_EXHAUSTED, f"{len(queue)} requests wait for model {message.model!r} already"
            own = queue.count(message.session)
            if own >= policy.max_queued_per_client:
                return Status.RESOURCE_EXHAUSTED, f"{own} requests of this client wait for {message.model!r} already"
        if scheduler.queued >= policy.max_queued:
            return Status.RESOURCE_EXHAUSTED, f"{scheduler.queued} requests wait already"
        if scheduler.queued_bytes + nbytes > policy.max_queued_bytes:
            return (
                Status.RESOURCE_EXHAUSTED,
                f"{scheduler.queued_bytes} bytes wait already; {nbytes} more exceed {policy.max_queued_bytes}",
            )
        return None

    def _cancel(self, peer: bytes, message: wire.Cancel, payload: Payload, now: float) -> None:
        request = self.requests.get(Key(*message))
        if request is not None:
            request.client = peer
            self._fail(request, Status.CANCELLED, "cancelled by its client")

    def _query(self, peer: bytes, message: wire.Query, payload: Payload, now: float) -> None:
        body = describe_models(self) if message.what == "models" else describe_status(self, now)
        self._actions.append(ToClient(peer, wire.Answer(message.session, message.id), [encode_body(body)]))

    def _ping(self, peer: bytes, message: wire.Ping, payload: Payload, now: float) -> None:
        missing = []
        for number in message.ids:
            request = self.requests.get(Key(message.session, number))
            if request is None:
                missing.append(number)
            else:
                request.client = peer
        self._actions.append(ToClient(peer, wire.Pong(message.session, missing)))

    # --- workers --------------------------------------------------------------------------------------------

    def _from_worker(self, event: FromWorker, now: float) -> None:
        message = event.message
        if type(message) is wire.Announce:
            self._announce(event.peer, message, event.payload, now)
            return
        worker = self.workers.get(event.peer)
        if worker is None:
            # Lost and come back, or older than this broker. What it answers was given to somebody else or will be.
            self.counts["late"] += type(message) in (wire.Done, wire.Failed)
            self._actions.append(ToWorker(event.peer, wire.Identify()))
            return
        worker.heard_at = now
        self._on_message[type(message)](worker, message, event.payload, now)

    def _announce(self, peer: bytes, message: wire.Announce, payload: Payload, now: float) -> None:
        try:
            models = parse_models(payload)
        except ProtocolError as error:
            self._malformed(Malformed(peer, False, error), now)
            return
        worker = self.workers.get(peer)
        if worker is None:
            worker = self.workers[peer] = Worker(peer, message.name, message.slots, models, now, now)
        else:
            self.scheduler.remove(worker)
            worker.name, worker.slots, worker.models, worker.heard_at = message.name, message.slots, models, now
        for name, version in models:
            self.known.setdefault(name, set()).add(version)
        if not worker.draining:
            self.scheduler.add(worker)
        self._timers.set(peer, now + self.policy.heartbeat)
        self._park(now)
        self._feed(worker, now)

    def _done(self, worker: Worker, message: wire.Done, payload: Payload, now: float) -> None:
        request = self._answered(worker, message)
        if request is not None:
            worker.served += 1
            self.counts["served"] += 1
            queue_us = int((request.dispatched_at - request.accepted_at) * 1e6)
            broker_us = int((now - request.accepted_at) * 1e6)
            result = wire.Result(*request.key, request.runs, queue_us, message.compute_us, broker_us)
            self._end(request, result, payload)
        self._feed(worker, now)

    def _failed(self, worker: Worker, message: wire.Failed, payload: Payload, now: float) -> None:
        request = self._answered(worker, message)
        if request is not None:
            worker.failed += 1
            self.counts[f"failed.{message.code}"] += 1
            self._end(request, wire.Error(*request.key, message.code, message.text))
        self._feed(worker, now)

    def _answered(self, worker: Worker, message: wire.Done | wire.Failed) -> Request | None:
        """Free the slot of an attempt; its request, if that still waits for this very attempt."""
        key = Key(message.session, message.id)
        request = worker.held.pop((key, message.attempt), None)
        if request is not None and self._waits_for(worker, request, message.attempt):
            return request
        self.counts["late"] += 1
        return None

    def _waits_for(self, worker: Worker, request: Request, attempt: int) -> bool:
        return self.requests.get(request.key) is request and request.worker is worker and request.attempt == attempt

    def _goodbye(self, worker: Worker, message: wire.Goodbye, payload: Payload, now: float) -> None:
        worker.draining = True
        self.scheduler.remove(worker)
        self._actions.append(ToWorker(worker.peer, wire.Farewell()))
        self._park(now)

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
        self._actions.extend(ToWorker(peer, wire.Probe()) for peer in self.workers)

    def _malformed(self, event: Malformed, now: float) -> None:
        self.counts["malformed"] += 1
        key = event.error.key or _NOBODY
        error = wire.Error(*key, event.error.code.value, event.error.message[: limits.MESSAGE_CHARS])
        self._actions.append((ToClient if event.frontend else ToWorker)(event.peer, error))

    def _lose(self, worker: Worker, why: str, now: float) -> None:
        """Forget a worker and give what it held to others."""
        del self.workers[worker.peer]
        self._timers.cancel(worker.peer)
        self.scheduler.remove(worker)
        # A worker that said goodbye and has nothing left is not lost, it went.
        self.counts["lost_workers"] += not worker.draining or bool(worker.held)
        wanted = [r for (_, attempt), r in worker.held.items() if self._waits_for(worker, r, attempt)]
        first = next(iter(worker.held.values()), None)
        for request in reversed(wanted):  # each goes before those that queue, so that their order stays
            request.worker = None
            # Attempts run in the order of dispatch, so only the first was running; the others are not to blame.
            if request is first:
                request.lost.append(worker.name)
            if len(request.lost) >= self.policy.max_attempts:
                text = f"lost its worker {len(request.lost)} times ({', '.join(request.lost)}; the last: {why})"
                self._fail(request, Status.ABORTED, text)
            else:
                self.counts["retried"] += 1
                self._place(request, self.scheduler.choose(request.model, request.version), now)
        self._park(now)

    # --- a request's way ------------------------------------------------------------------------------------

    def _place(self, request: Request, worker: Worker | None, now: float) -> None:
        """Dispatch to `worker`, or queue where that is None."""
        if worker is not None:
            self._dispatch(request, worker, now)
            return
        self.scheduler.push(request, again=request.attempt > 0)
        if not self.scheduler.served(request.model, request.version):
            self._timers.set(request.key, min(request.deadline, now + self.policy.worker_grace))

    def _dispatch(self, request: Request, worker: Worker, now: float) -> None:
        self.scheduler.given(worker)
        request.attempt += 1
        request.worker, request.dispatched_at = worker, now
        request.runs = self.scheduler.resolve(request.model, request.version)
        worker.held[request.key, request.attempt] = request
        self._timers.set(request.key, request.deadline)
        budget_us = max(0, int((request.deadline - now) * 1e6))
        message = wire.Dispatch(*request.key, request.attempt, request.model, request.runs, budget_us)
        self._actions.append(ToWorker(worker.peer, message, request.payload))

    def _feed(self, worker: Worker, now: float) -> None:
        """Fill a worker's free slots from the queues."""
        while worker.free > 0 and (request := self.scheduler.next_for(worker)) is not None:
            self._dispatch(request, worker, now)

    def _end(self, request: Request, reply: wire.Result | wire.Error, payload: Payload = ()) -> None:
        """The one terminal reply of an accepted request."""
        del self.requests[request.key]
        self._timers.cancel(request.key)
        self._actions.append(ToClient(request.client, reply, payload))

    def _fail(self, request: Request, status: Status, text: str) -> None:
        """End a request with an error of the broker's, wherever it is."""
        if request.worker is None:
            if self.scheduler.holds(request):
                self.scheduler.discard(request)
        else:
            # The slot stays taken until the worker answers.
            self._actions.append(ToWorker(request.worker.peer, wire.Revoke(*request.key, request.attempt)))
        self.counts[f"failed.{status.value}"] += 1
        self._end(request, wire.Error(*request.key, status.value, text[: limits.MESSAGE_CHARS]))

    # --- time -----------------------------------------------------------------------------------------------

    def _expired(self, due: Any, now: float) -> None:
        if due == _STOP:
            for request in list(self.requests.values()):
                self._fail(request, Status.UNAVAILABLE, "the broker shut down before the request was done")
        elif type(due) is Key:
            self._request_due(self.requests[due], now)
        else:
            self._worker_due(self.workers[due], now)

    def _request_due(self, request: Request, now: float) -> None:
        if now >= request.deadline:
            spent = now - request.accepted_at
            where = "while it queued" if request.worker is None else f"while worker {request.worker.name} had it"
            self._fail(request, Status.DEADLINE_EXCEEDED, f"no result within {spent:.3f} s; it ended {where}")
        elif request.worker is None and not self.scheduler.served(request.model, request.version):
            self._fail(request, *self._nobody_serves(request.model, request.version))
        else:
            self._timers.set(request.key, request.deadline)

    def _worker_due(self, worker: Worker, now: float) -> None:
        why = liveness.lost(worker, self.policy, now)
        if why is not None:
            self._lose(worker, why, now)
            return
        self._timers.set(worker.peer, now + self.policy.heartbeat)
        self._actions.append(ToWorker(worker.peer, wire.Probe()))

    def _park(self, now: float) -> None:
        """Give requests whose model lost its last worker a short while for another to appear."""
        for (model, version), queue in self.scheduler.queues.items():
            if not self.scheduler.served(model, version):
                for request in queue:
                    self._timers.set(request.key, min(request.deadline, now + self.policy.worker_grace))

    def _stop(self, event: Stop, now: float) -> None:
        self.stopping = True
        self._timers.set(_STOP, now + event.grace)

    # --- models ---------------------------------------------------------------------------------------------

    def _was_known(self, model: str, version: int) -> bool:
        versions = self.known.get(model, ())
        return bool(versions) if version == LATEST else version in versions

    def _nobody_serves(self, model: str, version: int) -> tuple[Status, str]:
        wanted = f"model {model!r}" + ("" if version == LATEST else f" version {version}")
        served = f"served are: {served_listing(self)}"
        if self._was_known(model, version):
            return Status.UNAVAILABLE, f"no worker that holds {wanted} is there now; {served}"
        return Status.NOT_FOUND, f"no worker ever announced {wanted}; {served}"
