"""What the broker knows, and the steps of a request: accepted, placed, dispatched, ended. Pure.

`broker.frontend` and `broker.backend` decide on messages and call these methods. A request enters by `accept` and
leaves by `end`; there is no other way. Messages to be sent are collected in `actions`.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import Literal, TypeAlias

from broker.accesslog import access_of
from broker.admission import QueueLimits
from broker.canary import Trial
from broker.catalog import Catalog
from broker.deadlines import Deadlines
from broker.events import Action, Authorized, Malformed, ToClient, ToWorker
from broker.lifecycle import REQUEST_TRANSITIONS, WORKER_TRANSITIONS, History, RequestState, WorkerState
from broker.listing import NO_REQUEST, at, error_of, too_large, unserved
from broker.liveness import LivenessPolicy
from broker.resolving import Resolver
from broker.routes import Routes
from broker.scheduler import Scheduler
from broker.state import UNKNOWN, Payload, PendingRequest, Wanted, Worker
from broker.statistics import OK, Statistics
from broker.tracing import Tracing
from zmq_offload.common.accesslog import AccessLog
from zmq_offload.common.notes import Notes
from zmq_offload.errors import Status
from zmq_offload.net.timers import Timers
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST, Key

SERVED = "served"
"""The event of a request that is answered with a result."""

STOP: Literal["stop"] = "stop"
"""The timer that ends a stop's grace."""

LOOK: Literal["look"] = "look"
"""The timer to look again at requests that wait for a quick worker while a slow one is free."""

_POISON_KEPT = 1000
"""Poison requests that are remembered."""

_HELD, _ENDED = RequestState.HELD, RequestState.ENDED
_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""

Subject: TypeAlias = Key | bytes | Literal["stop", "look"]
"""A timer's: a request's Key, a worker's peer, STOP or LOOK."""


class Ledger:
    """Requests, workers and queues. `started` is the time at which the broker came up."""

    def __init__(
        self,
        policy: LivenessPolicy,
        started: float,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        queue_limits: QueueLimits | None = None,
    ) -> None:
        self.policy = policy
        self.queue_limits = queue_limits or QueueLimits()
        self.started = started
        self.max_frame_bytes = max_frame_bytes
        """The largest frame that this broker takes."""
        self.process = self.restarts = 0
        """Its number among the processes of its supervisor, and how many had that before."""
        self.requests: dict[Key, PendingRequest] = {}
        self.workers: dict[bytes, Worker] = {}
        self.scheduler = Scheduler()
        self.catalog = Catalog()
        self.routes = Routes()
        self.resolver = Resolver(self.routes, self.scheduler, self.catalog, policy, started)
        self.timers: Timers[Subject] = Timers()
        self.deadlines = Deadlines(self.requests, self.timers)
        self.actions: list[Action] = []
        self.stopping = False
        self._look_at = 0.0
        """The time of LOOK, if that is set."""
        self.moved = False
        """Whether queued requests may have to go elsewhere; the core looks after each event."""
        self.authorized: Authorized | None = None
        """The keys that may be used; None on a broker without keys."""
        self.accepted = self.served = 0
        """Requests that were accepted, and those that were answered with a result."""
        self.counts: Counter[str] = Counter()
        """failed.<code>, refused.<code>, and what was dropped: late, duplicate, malformed, ..."""
        self.statistics = Statistics(started)
        self.tracing = Tracing()
        self.access: AccessLog | None = None
        """Requests for the access log; None if there is none."""
        self.poison: dict[Key, tuple[str, wire.Error]] = {}
        """The last poison requests: the client's key, and the error that was sent."""
        self.notes = Notes({"workers": 1000})
        """Lines for the log."""
        self._history = History()

    # --- history and log ------------------------------------------------------------------------------------

    def history(self, subject: Key | bytes) -> list[str]:
        """The last events of a request (its Key) or a worker (its peer): a line each, with the time since the start.

        A request that was answered with a result at its first attempt has none.
        """
        request = self.requests.get(subject) if isinstance(subject, Key) else None
        if request is not None and request.is_plain:
            self._tell(request)
        return self._history.of(subject, self.started)

    def record(self, subject: Key | bytes, event: str, now: float, detail: object = "") -> None:
        """Add an event that changes no state to the history."""
        self._history.add(now, subject, event, detail)

    def _tell(self, request: PendingRequest) -> None:
        """Write down what happened to a request so far: from now on it is not plain, and has its story written."""
        request.is_plain = False
        self._history.add(request.accepted_at, request.key, "accepted", request.wanted.model)
        if request.has_waited:
            self._history.add(request.accepted_at, request.key, "queued")
        if request.worker is not None:
            self._history.add(request.dispatched_at, request.key, "dispatched", request.worker.name)

    def transition(self, request: PendingRequest, event: str, now: float, detail: object = "") -> None:
        if request.is_plain:
            self._tell(request)
        request.state = REQUEST_TRANSITIONS[request.state][event]
        self._history.add(now, request.key, event, detail)
        if request.trace:
            self.tracing.step(request, event, now, detail)

    def worker_transition(self, worker: Worker, event: str, now: float, detail: object = "") -> None:
        worker.state = WORKER_TRANSITIONS[worker.state][event]
        self._history.add(now, worker.peer, event, detail)

    def note(self, now: float, kind: str, text: str, level: int = logging.WARNING) -> None:
        self.notes.add(now, kind, text, level)

    def note_latest(self, changed: list[tuple[str, int]], now: float) -> None:
        for name, version in changed:
            what = f"version {version} is the latest now" if version != LATEST else "no worker serves it any longer"
            self.note(now, "workers", f"model {name!r}: {what}", logging.INFO)

    def routed(self, tried: bool, texts: list[str], now: float) -> None:
        """Workers say something else of models' configurations. Call it before the scheduler finds new pools."""
        for text in texts:
            self.note(now, "workers", text, logging.INFO)
        if tried:
            self.scheduler.canaries = self.routes.canaries()

    # --- the steps of a request -----------------------------------------------------------------------------

    def accept(self, request: PendingRequest, worker: Worker | None, now: float) -> None:
        """Promise a reply, and place the request."""
        self.requests[request.key] = request
        self.accepted += 1
        if request.deadline < self.deadlines.first:
            self.deadlines.add(request)
        if request.trace:
            self._tell(request)
        if worker is None:
            self.place(request, None, now)
        else:
            self.dispatch(request, worker, now)

    def place(self, request: PendingRequest, worker: Worker | None, now: float) -> None:
        """Dispatch to `worker`, or queue if that is None."""
        if worker is not None:
            self.dispatch(request, worker, now)
            return
        why = self.too_large(request, now)
        if why is not None:
            self.fail(request, "too large", now, Status.INVALID_ARGUMENT, why)
            return
        if request.is_plain:
            request.state, request.has_waited = RequestState.QUEUED, True
        else:
            self.transition(request, "queued", now)
        self.scheduler.push(request, again=request.attempt > 0)
        if not self.scheduler.served(request.wanted):
            queue = self.scheduler.queues[request.wanted]
            queue.unserved |= len(queue) == 1  # `pools_changed` cares for those that were here before
            self.deadlines.set(request, self._waits_until(request, now))
        elif request.wanted in self.scheduler.mixed:
            self.settle(request.wanted, now)

    def reroute(self, now: float) -> None:
        """Move queued requests whose label stands for another version now, or whose canary is over."""
        for request, found in self.resolver.moved(now):
            if not isinstance(found, Wanted):
                self.fail(request, "unserved", now, *found)
                continue
            self.scheduler.discard(request)
            request.wanted = found
            self.transition(request, "moved", now, found.version)
            self.scheduler.push(request)
            if not self.scheduler.served(found):
                self.scheduler.queues[found].unserved = True
                self.deadlines.set(request, self._waits_until(request, now))
            else:
                self.deadlines.set(request, request.deadline)

    def _tried(self, trial: Trial, request: PendingRequest, reply: wire.Result | wire.Error, now: float) -> None:
        """Count a request of a model with a canary; end the trial if the canary is worse."""
        version = request.runs or request.wanted.version
        status, compute = (OK, reply.compute_us / 1e6) if isinstance(reply, wire.Result) else (reply.code, 0.0)
        if why := trial.ended(version, status, compute, now):
            self.counts["canary_returns"] += 1
            self.moved = True
            text = f"version {trial.canary.version} is no canary any more, and gets no share of the requests: {why}"
            self.note(now, "workers", f"model {request.wanted.model!r}: {text}")
            self.actions += self.routes.tell_returned(request.wanted.model)

    def dispatch(self, request: PendingRequest, worker: Worker, now: float) -> None:
        """Give a request to a worker: the next attempt."""
        if request.is_plain:
            request.state = _HELD
        else:
            self.transition(request, "dispatched", now, worker.name)
        wanted, deadline, held = request.wanted, request.deadline, worker.held
        runs = self.scheduler.given(wanted, worker)
        session, number = request.key
        request.attempt = attempt = request.attempt + 1
        request.runs, request.worker, request.dispatched_at = runs, worker, now
        place = session, number, attempt
        worker.nbytes += request.nbytes
        if place in held:  # the client sent a request again after it expired at this worker: it takes its own place
            worker.nbytes -= held[place].nbytes
        held[place] = request
        if request.is_timed:
            self.timers.set(request.key, deadline)
        budget_us = int((deadline - now) * 1e6) if deadline > now else 0
        message = _new(wire.Dispatch, (session, number, attempt, wanted[0], runs, budget_us))
        self.actions.append(ToWorker(worker.peer, message, request.payload))

    def end(
        self, request: PendingRequest, event: str, now: float, reply: wire.Result | wire.Error, payload: Payload = ()
    ) -> None:
        """Send the one terminal reply of an accepted request."""
        if request.is_plain and event == SERVED:
            request.state = _ENDED
        else:
            self.transition(request, event, now)
        if self.routes.by_model:
            route = self.routes.by_model.get(request.wanted.model)
            if route is not None and route.trial is not None and not route.trial.returned:
                self._tried(route.trial, request, reply, now)
        del self.requests[request.key]
        if request.is_timed:
            self.timers.cancel(request.key)
        if request.trace:
            self.tracing.end(request, reply)
        if self.access is not None:
            self.access.add(access_of(request, reply, payload, now), now)
        self.actions.append(ToClient(request.client, reply, payload))

    def fail(self, request: PendingRequest, event: str, now: float, status: Status, text: str) -> None:
        """End a request, queued or at a worker, with an error of the broker."""
        if request.worker is not None:
            # The slot stays taken until the worker answers.
            self.actions.append(ToWorker(request.worker.peer, wire.Revoke(*request.key, request.attempt)))
        elif self.scheduler.holds(request):
            self.scheduler.discard(request)
        self.fail_with(request, event, now, error_of(request.key, status, text))

    def fail_with(self, request: PendingRequest, event: str, now: float, error: wire.Error) -> None:
        """End a request that no worker holds with an error."""
        self.counts[f"failed.{error.code}"] += 1
        self.statistics.failed(request, request.runs or self.version_of(request.wanted), error.code, now)
        self.end(request, event, now, error)

    def awaits(self, worker: Worker, request: PendingRequest, attempt: int) -> bool:
        """Whether a request waits for this attempt, so that the worker's answer counts."""
        return request.state is _HELD and request.worker is worker and request.attempt == attempt

    def _waits_until(self, request: PendingRequest, now: float) -> float:
        """Until when a request that no worker serves waits for one.

        A request that was at a lost worker waits until its deadline. It may be poison: if it failed earlier, its client
        would send it again with a new number, and it would take down worker after worker.
        """
        if request.lost:
            return request.deadline
        lost_at = self.catalog.lost_at(request.wanted.model)
        return min(request.deadline, max(now + self.policy.worker_grace, lost_at + self.policy.restart_grace))

    # --- workers --------------------------------------------------------------------------------------------

    def feed(self, worker: Worker, now: float) -> None:
        """Fill a worker's free slots from the queues."""
        while self.scheduler.queues and worker.free > 0:
            request = self.scheduler.next_for(worker, now)
            if request is None:
                return
            self.dispatch(request, worker, now)

    def settle_mixed(self, now: float) -> None:
        """Look at the queues whose workers differ in speed: what they wait for may have come, or may not come soon."""
        for wanted in self.scheduler.waiting():
            self.settle(wanted, now)

    def relieve(self, wanted: Wanted, longest: int, now: float) -> Worker | None:
        """Make room in a queue that is full: what waits for a quicker worker goes to one that is free. Returns a worker
        for a new request if there is no queue at all."""
        if wanted not in self.scheduler.queues:
            return self.scheduler.any_free(wanted, longest)
        request, worker, _ = self.scheduler.next_of(wanted, now, pressed=True)
        if worker is not None:
            self.dispatch(request, worker, now)
        return None

    def settle(self, wanted: Wanted, now: float) -> None:
        """Dispatch the queued requests that should not wait for a quicker worker."""
        scheduler = self.scheduler
        request: PendingRequest | None = None
        while wanted in scheduler.queues:
            request, worker, again = scheduler.next_of(wanted, now)
            if again and (LOOK not in self.timers or now + again < self._look_at):
                self._look_at = now + again
                self.timers.set(LOOK, self._look_at)
            if worker is None:
                break
            self.dispatch(request, worker, now)
        else:
            return
        pool = scheduler.pools[wanted]
        for worker in (*pool.first, *pool.helpers):  # others may fit where the first one is too large
            if request is None or worker.max_frame_bytes < request.longest:
                self.feed(worker, now)

    def pools_changed(self, now: float) -> None:
        """Look at all queues again after the pools changed.

        A model's latest version may now be one whose workers are free. Requests whose model lost its last worker wait a
        short while for another.
        """
        scheduler = self.scheduler
        self.reroute(now)
        for wanted, queue in list(scheduler.queues.items()):
            if scheduler.served(wanted) and queue.longest > scheduler.pools[wanted].takes:
                for request in list(queue):
                    why = self.too_large(request, now)
                    if why is not None:
                        self.fail(request, "too large", now, Status.INVALID_ARGUMENT, why)
        for worker in self.workers.values():
            self.feed(worker, now)
        self.settle_mixed(now)
        for wanted, queue in scheduler.queues.items():
            served = scheduler.served(wanted)
            if not served and not queue.unserved:
                for request in queue:
                    self.deadlines.set(request, self._waits_until(request, now))
            queue.unserved = not served

    def lose(self, worker: Worker, why: str, now: float, *, returns: bool = True) -> None:
        """Forget a worker and place its requests again. `returns`: whether its supervisor may start another."""
        del self.workers[worker.peer]
        self.timers.cancel(worker.peer)
        self.routed(*self.routes.left(worker.peer), now)
        self.note_latest(self.scheduler.remove(worker), now)
        if worker.state is WorkerState.DRAINING and not worker.held:
            self.note(now, "workers", f"worker {worker} left", logging.INFO)
        else:
            self.counts["lost_workers"] += 1
            self.note(now, "workers", f"worker {worker} is lost: {why}; it held {len(worker.held)} requests")
            if returns:
                self.catalog.lost((name for name, _ in worker.models), now)
        self.worker_transition(worker, "lost", now, why)
        pending = [(r, attempt) for (_, _, attempt), r in worker.held.items() if self.awaits(worker, r, attempt)]
        first = next(iter(worker.held.values()), None)
        # A request that expired here still refers to its worker. Until a full garbage collection, which is rare in a
        # broker, that cycle would keep the payloads of all requests that the worker held.
        worker.held.clear()
        for request, attempt in reversed(pending):  # each goes before the queued ones, so that their order stays
            self.transition(request, "lost", now, worker.name)
            request.worker = None
            # Which request took the worker down? First attempts may run together, and an answer may be lost with its
            # sender, so each of them is a suspect. Later attempts run alone, in order: only the first one is a suspect.
            if request is first or attempt == 1:
                request.lost += (worker.name,)
            if len(request.lost) >= self.policy.max_attempts:
                self._give_up(request, why, now)
            else:
                self.counts["retried"] += 1
                self.resolver.follow(request, now)
                self.place(request, self.scheduler.choose(request.wanted, request.longest, now), now)
        self.pools_changed(now)

    def _give_up(self, request: PendingRequest, why: str, now: float) -> None:
        """Fail a poison request, and remember it: if the reply is lost, its client sends it again."""
        times = f"{len(request.lost)} time{'s' * (len(request.lost) > 1)}"
        text = f"lost its worker {times} ({', '.join(request.lost)}; the last: {why})"
        self.fail(request, "given up", now, Status.ABORTED, text)
        what = f"request {request.key} for model {request.wanted.model!r}"
        self.note(now, "aborted", f"{what} is ABORTED: it {text}")
        self.poison[request.key] = request.user, error_of(request.key, Status.ABORTED, text)
        if len(self.poison) > _POISON_KEPT:
            del self.poison[next(iter(self.poison))]

    # --- what sides ask and say -----------------------------------------------------------------------------

    def too_large(self, request: PendingRequest, now: float) -> str | None:
        """Why no worker that serves a request takes its frames; None if one does, or if no worker serves it."""
        pool = self.scheduler.pools.get(request.wanted)
        if pool is None or request.longest <= (most := pool.takes):
            return None
        text = too_large(request, most, self.max_frame_bytes)
        self.note(now, "frames", text)
        return text

    def allows(self, user: str, model: str) -> bool:
        """Whether the client's key `user` is for a model; True on a broker without keys."""
        return self.authorized is None or (
            (grant := self.authorized.clients.get(user)) is not None and grant.allows(model)
        )

    def unserved(self, request: PendingRequest) -> tuple[Status, str]:
        """The error of a request that no worker serves."""
        wanted, user = request.wanted, request.user
        if wanted.version == UNKNOWN:
            found = self.routes.labeled(wanted.model, request.label)
            assert not isinstance(found, int), "a queued request follows its label at once"
            return found
        return unserved(self.scheduler, self.catalog, functools.partial(self.allows, user), wanted)

    def version_of(self, wanted: Wanted) -> int:
        """The version that counts requests for this; 0 if no worker ever had one for them."""
        pool = self.scheduler.pools.get(wanted)
        return self.catalog.newest(wanted) if pool is None else pool.version

    def probe(self, peer: bytes) -> None:
        self.actions.append(ToWorker(peer, wire.Probe(self.max_frame_bytes)))

    def malformed(self, event: Malformed, now: float) -> None:
        """Answer bytes that are not a message."""
        self.counts["malformed"] += 1
        whose = "a client" if event.frontend else "a worker"
        self.note(now, "malformed", f"bytes of {whose}{at(event.address)} are not a message: {event.error.message}")
        error = error_of(event.error.key or NO_REQUEST, event.error.code, event.error.message)
        self.actions.append(ToClient(event.peer, error) if event.frontend else ToWorker(event.peer, error))
