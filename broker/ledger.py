"""What the broker knows, and a request's way through it: placed, dispatched, ended. The sides (`broker.frontend`,
`broker.backend`) decide on messages; a request enters by `_accept` and leaves by `_end`, and there is no other way."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from broker.events import Action, Authorized, ToClient, ToWorker
from broker.lifecycle import REQUEST_TRANSITIONS, WORKER_TRANSITIONS, History, WorkerState
from broker.listing import no_version_fits, served_listing, suggestion
from broker.liveness import LivenessPolicy
from broker.notes import Notes
from broker.scheduler import Scheduler
from broker.state import Model, Payload, PendingRequest, Wanted, Worker
from zmq_offload.errors import Status
from zmq_offload.net.timers import Timers
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST, Key

STOP = "stop"
"""The timer of a stop's grace."""


_POISON_KEPT = 1000
"""Poison requests that are remembered."""


class Ledger:
    """`started` is the time at which the broker came up. `max_frame_bytes` is the largest frame that it takes."""

    def __init__(self, policy: LivenessPolicy, started: float, max_frame_bytes: int = limits.MESSAGE_BYTES) -> None:
        self.policy = policy
        self.started = started
        self.max_frame_bytes = max_frame_bytes
        self.requests: dict[Key, PendingRequest] = {}
        self.workers: dict[bytes, Worker] = {}
        self.scheduler = Scheduler()
        self.stopping = False
        self.authorized: Authorized | None = None
        """Whose keys are taken; None where there are no keys and anybody is."""
        self.counts: Counter[str] = Counter()
        """accepted, served, failed.<code>, refused.<code>, and what was dropped: late, duplicate, malformed, ..."""
        self.known: dict[str, dict[int, bytes]] = {}
        """Models that were announced, their versions and those' signatures; the oldest are forgotten."""
        self.lost_at: dict[str, float] = {}
        """model -> when a worker that held it was lost, for the models in `known`."""
        self.poison: dict[Key, tuple[str, wire.Error]] = {}
        """The last requests that lost too many workers: the keys they were asked with, and what their clients were
        told."""
        self.notes = Notes()
        """What the log is to say."""
        self._history = History()
        self._timers: Timers[Any] = Timers()  # a request's Key, a worker's peer, or STOP
        self._actions: list[Action] = []

    def history(self, subject: Key | bytes) -> list[str]:
        """How a request (its Key) or a worker (its peer) got where it is, one line a step, times since the start. The
        last ten thousand steps of all are kept."""
        return self._history.of(subject, self.started)

    # --- steps ----------------------------------------------------------------------------------------------

    def _transition(self, request: PendingRequest, event: str, now: float, detail: object = "") -> None:
        request.state = REQUEST_TRANSITIONS[request.state][event]
        self._history.add(now, request.key, event, detail)

    def _worker_transition(self, worker: Worker, event: str, now: float, detail: object = "") -> None:
        worker.state = WORKER_TRANSITIONS[worker.state][event]
        self._history.add(now, worker.peer, event, detail)

    def _note(self, now: float, kind: str, text: str, level: int = logging.WARNING) -> None:
        self.notes.add(now, kind, text, level)

    # --- a request's way ------------------------------------------------------------------------------------

    def _accept(self, request: PendingRequest, worker: Worker | None, now: float) -> None:
        """Promise an answer."""
        self.requests[request.key] = request
        self.counts["accepted"] += 1
        self._timers.set(request.key, request.deadline)
        self._history.add(now, request.key, "accepted", request.wanted.model)
        self._place(request, worker, now)

    def _place(self, request: PendingRequest, worker: Worker | None, now: float) -> None:
        """Dispatch to `worker`, or queue where that is None."""
        if worker is not None:
            self._dispatch(request, worker, now)
            return
        too_large = self._too_large(request, now)
        if too_large is not None:
            self._fail(request, "too large", now, Status.INVALID_ARGUMENT, too_large)
            return
        self._transition(request, "queued", now)
        self.scheduler.push(request, again=request.attempt > 0)
        if not self.scheduler.served(request.wanted):
            queue = self.scheduler.queues[request.wanted]
            queue.unserved |= len(queue) == 1  # those that were here before are `_settle`'s
            self._timers.set(request.key, self._waits_until(request, now))

    def _dispatch(self, request: PendingRequest, worker: Worker, now: float) -> None:
        self._transition(request, "dispatched", now, worker.name)
        self.scheduler.given(worker)
        request.attempt += 1
        request.worker, request.dispatched_at = worker, now
        request.runs = self.scheduler.version_for(request.wanted, worker)
        place = request.key, request.attempt
        # One that expired there and was sent again takes its own place.
        before = worker.held.get(place)
        worker.held[place] = request
        worker.nbytes += request.nbytes - (0 if before is None else before.nbytes)
        self._timers.set(request.key, request.deadline)
        budget_us = max(0, int((request.deadline - now) * 1e6))
        message = wire.Dispatch(*request.key, request.attempt, request.wanted.model, request.runs, budget_us)
        self._actions.append(ToWorker(worker.peer, message, request.payload))

    def _feed(self, worker: Worker, now: float) -> None:
        """Fill a worker's free slots from the queues."""
        while self.scheduler.queues and worker.free > 0 and (request := self.scheduler.next_for(worker)) is not None:
            self._dispatch(request, worker, now)

    def _waits_until(self, request: PendingRequest, now: float) -> float:
        """Until when a request that nobody serves waits for a worker to appear.

        What was at a worker that was lost waits until its deadline. It may be what took the worker down; told that
        nobody is there, its client would send it again, under a new number, and it would take down worker after worker.
        """
        if request.lost:
            return request.deadline
        lost_at = self.lost_at.get(request.wanted.model, -math.inf)
        return min(request.deadline, max(now + self.policy.worker_grace, lost_at + self.policy.restart_grace))

    def _settle(self, now: float) -> None:
        """What models are served by whom changed. The latest version may be one now whose workers are free; and
        requests whose model lost its last worker get a short while for another to appear."""
        scheduler = self.scheduler
        for wanted, queue in list(scheduler.queues.items()):
            if scheduler.served(wanted) and queue.longest > scheduler.pools[wanted].takes:
                for request in list(queue):
                    too_large = self._too_large(request, now)
                    if too_large is not None:
                        self._fail(request, "too large", now, Status.INVALID_ARGUMENT, too_large)
        for worker in self.workers.values():
            self._feed(worker, now)
        for wanted, queue in scheduler.queues.items():
            served = scheduler.served(wanted)
            if not served and not queue.unserved:
                for request in queue:
                    self._timers.set(request.key, self._waits_until(request, now))
            queue.unserved = not served

    def _end(
        self, request: PendingRequest, event: str, now: float, reply: wire.Result | wire.Error, payload: Payload = ()
    ) -> None:
        """The one terminal reply of an accepted request."""
        self._transition(request, event, now)
        del self.requests[request.key]
        self._timers.cancel(request.key)
        self._actions.append(ToClient(request.client, reply, payload))

    def _fail(self, request: PendingRequest, event: str, now: float, status: Status, text: str) -> None:
        """End a request with an error of the broker's, wherever it is."""
        if request.worker is not None:
            # The slot stays taken until the worker answers.
            self._actions.append(ToWorker(request.worker.peer, wire.Revoke(*request.key, request.attempt)))
        elif self.scheduler.holds(request):
            self.scheduler.discard(request)
        self.counts[f"failed.{status.value}"] += 1
        self._end(request, event, now, error_of(request.key, status, text))

    def _waits_for(self, worker: Worker, request: PendingRequest, attempt: int) -> bool:
        """Whether this very attempt is the one whose answer counts."""
        return self.requests.get(request.key) is request and request.worker is worker and request.attempt == attempt

    def _lose(self, worker: Worker, why: str, now: float, *, returns: bool = True) -> None:
        """Forget a worker and give what it held to others. `returns`: whether its supervisor may start another."""
        del self.workers[worker.peer]
        self._timers.cancel(worker.peer)
        self._note_latest(self.scheduler.remove(worker), now)
        # A worker that said goodbye and has nothing left is not lost, it went.
        if worker.state is not WorkerState.DRAINING or worker.held:
            self.counts["lost_workers"] += 1
            self._note(now, "workers", f"worker {worker} is lost: {why}; it held {len(worker.held)} requests")
            if returns:
                self.lost_at.update((name, now) for name, _ in worker.models)
        else:
            self._note(now, "workers", f"worker {worker} went", logging.INFO)
        self._worker_transition(worker, "lost", now, why)
        wanted = [(r, attempt) for (_, attempt), r in worker.held.items() if self._waits_for(worker, r, attempt)]
        first = next(iter(worker.held.values()), None)
        # A request that expired here still names its worker. The two would keep each other, and the payloads of all
        # that was held here, until a full garbage collection, which is rare where almost nothing is made to stay.
        worker.held.clear()
        for request, attempt in reversed(wanted):  # each goes before those that queue, so that their order stays
            request.worker = None
            self._transition(request, "lost", now, worker.name)
            # Which one took it down? First attempts may run together, and an answer may be lost with its sender, so
            # all of those are suspects. Later ones run alone and in the order of dispatch: there only the first is.
            if request is first or attempt == 1:
                request.lost += (worker.name,)
            if len(request.lost) >= self.policy.max_attempts:
                times = f"{len(request.lost)} time{'s' * (len(request.lost) > 1)}"
                text = f"lost its worker {times} ({', '.join(request.lost)}; the last: {why})"
                self._fail(request, "given up", now, Status.ABORTED, text)
                what = f"request {request.key} for model {request.wanted.model!r}"
                self._note(now, "aborted", f"{what} is ABORTED: it {text}")
                # Should the answer be lost, its client will send it again, and it must not take down more workers.
                self.poison[request.key] = request.user, error_of(request.key, Status.ABORTED, text)
                if len(self.poison) > _POISON_KEPT:
                    del self.poison[next(iter(self.poison))]
            else:
                self.counts["retried"] += 1
                self._place(request, self.scheduler.choose(request.wanted, request.longest), now)
        self._settle(now)

    # --- models ---------------------------------------------------------------------------------------------

    def _note_latest(self, changed: list[tuple[str, int]], now: float) -> None:
        for name, version in changed:
            what = f"version {version} is the latest now" if version != LATEST else "nobody serves it any more"
            self._note(now, "workers", f"model {name!r}: {what}", logging.INFO)

    def _note_newer(self, names: Iterable[str], now: float) -> None:
        """Say why a version that a worker announced is not used. It may be for ever: others may fail to load it."""
        for name in names:
            newer = self.scheduler.newer(name)
            if newer is None:
                continue
            version, with_it, without = newer
            slots, more = sum(worker.slots for worker in with_it), sum(worker.slots for worker in without)
            have = f"{len(with_it)} of {len(with_it + without)} workers with {slots} of {slots + more} slots have it"
            text = (
                f"model {name!r}: version {version} is not the latest yet; {have}, and it needs more than half of "
                f"both. Without it: {', '.join(worker.name for worker in without)}"
            )
            self._note(now, "workers", text, logging.INFO)

    def _learn(self, models: dict[tuple[str, int], Model]) -> None:
        for (name, version), model in models.items():
            versions = self.known.setdefault(name, {})
            versions[version] = model.signature
            if len(versions) > limits.BODY_ITEMS:
                del versions[min(versions)]
            if len(self.known) > limits.BODY_ITEMS:
                oldest = next(iter(self.known))
                del self.known[oldest]
                self.lost_at.pop(oldest, None)

    def _was_known(self, wanted: Wanted) -> bool:
        versions = self.known.get(wanted.model, {})
        if wanted.signature:
            return wanted.signature in versions.values()
        return bool(versions) if wanted.version == LATEST else wanted.version in versions

    def _is_young(self, now: float) -> bool:
        """Whether workers may not have announced themselves yet that were here before this broker."""
        return now < self.started + self.policy.worker_grace

    def _too_large(self, request: PendingRequest, now: float) -> str | None:
        """Why no worker that serves a request takes its frames, or None if one does, or none serves it."""
        pool = self.scheduler.pools.get(request.wanted)
        if pool is None or request.longest <= (most := pool.takes):
            return None
        text = (
            f"the inputs have a frame of {request.longest} bytes; the workers of {request.wanted.model!r} take at most "
            f"{most} (their --max-frame-bytes), this broker {self.max_frame_bytes}"
        )
        self._note(now, "frames", text)
        return text

    def _probe(self, peer: bytes) -> ToWorker:
        return ToWorker(peer, wire.Probe(self.max_frame_bytes))

    def allows(self, user: str, model: str) -> bool:
        """Whether the client's key `user`, where there are keys, is for a model."""
        return self.authorized is None or (
            (grant := self.authorized.clients.get(user)) is not None and grant.allows(model)
        )

    def _nobody_serves(self, wanted: Wanted, user: str) -> tuple[Status, str]:
        name, version, signature = wanted
        what = f"model {name!r}" + ("" if version == LATEST else f" version {version}")
        allows = functools.partial(self.allows, user)
        served = f"served are: {served_listing(self.scheduler, allows)}"
        if not self.known:
            # Workers that load a large subgraph take longer to come up than the broker. Nothing is known not to be.
            return Status.UNAVAILABLE, f"no worker has announced itself yet, so {what} is not served"
        if signature and self.scheduler.served(Wanted(name)):
            return Status.FAILED_PRECONDITION, no_version_fits(self.scheduler, name)
        if self._was_known(wanted):
            return Status.UNAVAILABLE, f"no worker that holds {what} is there now; {served}"
        return Status.NOT_FOUND, f"no worker ever announced {what}; {served}{suggestion(self.scheduler, allows, name)}"


def error_of(key: tuple[bytes, int], status: Status, text: str) -> wire.Error:
    return wire.Error(*key, status.value, text[: limits.MESSAGE_CHARS])
