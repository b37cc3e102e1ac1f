"""What the broker does with workers' messages. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from broker.announcement import parse_gpu, parse_models
from broker.events import FromWorker, Malformed, ToWorker
from broker.ledger import SERVED, Ledger
from broker.lifecycle import WorkerState
from broker.listing import NO_REQUEST, at, error_of, newer_version
from broker.state import Model, Payload, PendingRequest, Worker, sizes
from zmq_offload.errors import ProtocolError, Status
from zmq_offload.protocol import messages as wire

_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""

_QUIET = WorkerState.QUIET

_CODES = frozenset(status.value for status in Status)


class Backend:
    """The side of the workers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def handle(self, event: FromWorker, now: float) -> None:
        ledger, message = self._ledger, event.message
        if ledger.authorized is not None and event.user not in ledger.authorized.workers:
            # The connection is older than the revocation.
            ledger.note(now, "keys", f"key {event.user} of a worker{at(event.address)} was revoked")
            error = error_of(NO_REQUEST, Status.UNAUTHENTICATED, "the key was revoked")
            ledger.actions.append(ToWorker(event.peer, error))
            return
        if isinstance(message, wire.Announce):
            self._announce(event, message, now)
            return
        worker = ledger.workers.get(event.peer)
        if worker is None:
            self._unknown(event)
            return
        worker.heard_at = now
        if worker.state is _QUIET:
            self._heard(worker, now)
        if isinstance(message, wire.Done):
            self._done(worker, message, event.payload, now)
        elif isinstance(message, wire.Failed):
            self._failed(worker, message, now)
        elif isinstance(message, wire.Heartbeat):
            if event.payload:
                self._note_gpu(worker, event, now)
            worker.memory_bytes = message.memory_bytes or worker.memory_bytes  # a busy one does not tell
            if message.elsewhere >= 0:
                worker.elsewhere = message.elsewhere
        else:
            self._goodbye(worker, message, now)
        if ledger.scheduler.queues and not ledger.moved:  # else the core looks at all queues
            ledger.feed(worker, now)
            if ledger.scheduler.mixed:
                ledger.settle_mixed(now)

    def _note_gpu(self, worker: Worker, event: FromWorker, now: float) -> None:
        try:
            worker.gpu = parse_gpu(event.payload)
        except ProtocolError as error:
            self._ledger.malformed(Malformed(event.peer, False, error, event.address), now)

    def _unknown(self, event: FromWorker) -> None:
        """Answer a worker that was lost and came back, or that is older than this broker.

        Its requests went to others, or will.
        """
        ledger, message = self._ledger, event.message
        ledger.counts["late"] += isinstance(message, wire.Done | wire.Failed)
        # A worker that leaves need not announce itself.
        answer = wire.Farewell() if isinstance(message, wire.Goodbye) else wire.Identify()
        ledger.actions.append(ToWorker(event.peer, answer))

    # --- announcements --------------------------------------------------------------------------------------

    def _announce(self, event: FromWorker, message: wire.Announce, now: float) -> None:
        ledger, peer = self._ledger, event.peer
        try:
            models = parse_models(event.payload)
        except ProtocolError as error:
            ledger.malformed(Malformed(peer, False, error, event.address), now)
            return
        self._drop_forbidden(models, event, message, now)
        worker = ledger.workers.get(peer)
        before = worker.models.keys() if worker else frozenset[tuple[str, int]]()
        if worker is None:
            worker = ledger.workers[peer] = Worker(peer, message.name, message.slots, now, event.user, event.address)
            text = f"worker {worker} came: {message.slots} slots, {_listing(models)}"
            ledger.note(now, "workers", text, logging.INFO)
        else:
            if models.keys() != before:
                ledger.note(now, "workers", f"worker {worker} changes: {_listing(models)}", logging.INFO)
            if worker.state is WorkerState.QUIET:
                self._heard(worker, now)
        added = {name for name, _ in models.keys() - before}
        worker.name, worker.slots, worker.heard_at = message.name, message.slots, now
        worker.max_frame_bytes = message.max_frame_bytes
        worker.device, worker.restarts = message.device, message.restarts
        worker.most_slots = max(message.slots, worker.most_slots if worker.held else 0)
        ledger.record(peer, "announced", now, f"{message.name}, {message.slots} slots, {len(models)} models")
        ledger.catalog.add(models)
        if worker.state is WorkerState.DRAINING:
            worker.serve(models)
        else:
            ledger.routed(*ledger.routes.announced(peer, models), now)
            for name in {name for name, _ in models}:
                ledger.actions += ledger.routes.tell_returned(name, peer)
            ledger.note_latest(ledger.scheduler.update(worker, models, reset=ledger.resolver.starting(now)), now)
            self._note_newer(sorted(added), now)
        ledger.timers.set(peer, now + ledger.policy.heartbeat)
        ledger.probe(peer)  # before its first Dispatch: it tells the largest frame that this broker takes
        ledger.pools_changed(now)

    def _drop_forbidden(
        self, models: dict[tuple[str, int], Model], event: FromWorker, message: wire.Announce, now: float
    ) -> None:
        """Take the models that the worker's key is not for out of an announcement, and tell the worker."""
        ledger = self._ledger
        if ledger.authorized is None:
            return
        grant = ledger.authorized.workers[event.user]
        refused = [model for model in models if not grant.allows(model[0])]
        if not refused:
            return
        for model in refused:
            del models[model]
        names = ", ".join(sorted({repr(name) for name, _ in refused}))
        text = f"this key is not for {names}; this worker gets no requests for them"
        whose = f"key {event.user} ({grant.name}) of worker {message.name}{at(event.address)}"
        ledger.note(now, "keys", f"{whose}: {text}")
        ledger.actions.append(ToWorker(event.peer, error_of(NO_REQUEST, Status.PERMISSION_DENIED, text)))

    def _note_newer(self, names: Iterable[str], now: float) -> None:
        """Say why a version that a worker announced is not used: the other workers may never load it."""
        for name in names:
            text = newer_version(self._ledger.scheduler, name)
            if text is not None:
                self._ledger.note(now, "workers", text, logging.INFO)

    def _heard(self, worker: Worker, now: float) -> None:
        self._ledger.worker_transition(worker, "heard", now)
        self._ledger.note(now, "workers", f"worker {worker} is heard again", logging.INFO)

    # --- answers --------------------------------------------------------------------------------------------

    def _done(self, worker: Worker, message: wire.Done, payload: Payload, now: float) -> None:
        ledger = self._ledger
        request = self._answered(worker, message)
        session, number, _, compute_us, rows, _ = message
        if message.batch:  # the others of its batch have the same time
            worker.busy_us += compute_us
            worker.unmeasured -= 1
            if request is None or worker.unmeasured > 0:
                worker.answered_at = now
            elif ledger.scheduler.measured(worker, request, compute_us / 1e6, message.batch, now):
                ledger.moved = True
        if request is None:
            return
        nbytes, longest = sizes(payload)
        if longest > request.max_frame_bytes or longest > ledger.max_frame_bytes:
            self._too_large_for_its_client(request, longest, now)
            return
        worker.served += 1
        ledger.served += 1
        ledger.statistics.served(request, message, nbytes, now)
        if request.trace:
            ledger.tracing.rows[request.key] = rows
        accepted_at = request.accepted_at
        queue_us, broker_us = int((request.dispatched_at - accepted_at) * 1e6), int((now - accepted_at) * 1e6)
        result = _new(wire.Result, (session, number, request.runs, queue_us, compute_us, broker_us))
        ledger.end(request, SERVED, now, result, payload)

    def _too_large_for_its_client(self, request: PendingRequest, longest: int, now: float) -> None:
        text = (
            f"the outputs have a frame of {longest} bytes; the client takes at most {request.max_frame_bytes} "
            f"(max_frame_bytes), this broker {self._ledger.max_frame_bytes} (--max-frame-bytes)"
        )
        self._ledger.note(now, "frames", f"model {request.wanted.model!r}: {text}")
        self._ledger.fail_with(request, "failed", now, error_of(request.key, Status.INVALID_ARGUMENT, text))

    def _failed(self, worker: Worker, message: wire.Failed, now: float) -> None:
        ledger = self._ledger
        request = self._answered(worker, message)
        if request is None:
            return
        if message.code == Status.NOT_FOUND.value and request.runs_as not in worker.models:
            # The version was removed while the request was on its way; another worker or version may serve it.
            ledger.transition(request, "returned", now, worker.name)
            request.worker = None
            ledger.resolver.follow(request, now)
            ledger.place(request, ledger.scheduler.choose(request.wanted, request.longest, now), now)
            return
        worker.failed += 1
        # An unknown code must not make the table of counts grow.
        code = message.code if message.code in _CODES else Status.INTERNAL.value
        ledger.fail_with(request, "failed", now, wire.Error(*request.key, code, message.text))

    def _answered(self, worker: Worker, message: wire.Done | wire.Failed) -> PendingRequest | None:
        """Free the slot of an attempt; return its request if that still waits for this attempt."""
        held = worker.held
        request = held.pop(message[:3], None)
        if not held:
            worker.most_slots = worker.slots
        if request is not None:
            worker.nbytes -= request.nbytes
            if self._ledger.awaits(worker, request, message[2]):
                return request
        self._ledger.counts["late"] += 1
        return None

    def _goodbye(self, worker: Worker, message: wire.Goodbye, now: float) -> None:
        ledger = self._ledger
        if worker.state is not WorkerState.DRAINING:
            text = f"worker {worker} says goodbye, with {len(worker.held)} requests"
            ledger.note(now, "workers", text, logging.INFO)
        ledger.worker_transition(worker, "goodbye", now)
        ledger.routed(*ledger.routes.left(worker.peer), now)
        ledger.note_latest(ledger.scheduler.remove(worker), now)
        ledger.actions.append(ToWorker(worker.peer, wire.Farewell()))
        ledger.pools_changed(now)


def _listing(models: dict[tuple[str, int], Model]) -> str:
    return f"serves {', '.join(f'{name}:{version}' for name, version in sorted(models)) or 'nothing'}"
