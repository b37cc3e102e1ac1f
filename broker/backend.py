"""What workers say, and what the broker does about it."""

from __future__ import annotations

import logging
from typing import Any

from broker.announcement import parse_models
from broker.events import FromWorker, Malformed, ToClient, ToWorker
from broker.ledger import Ledger, error_of
from broker.lifecycle import WorkerState
from broker.state import Model, Payload, PendingRequest, Worker
from zmq_offload.errors import ProtocolError, Status
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import SESSION_BYTES, Key

_NOBODY = Key(bytes(SESSION_BYTES), 0)
_CODES = frozenset(status.value for status in Status)


class Backend(Ledger):
    """The workers' side."""

    def _from_worker(self, event: FromWorker, now: float) -> None:
        message = event.message
        if self.authorized is not None and event.user not in self.authorized.workers:
            # The connection was made when the key was good still.
            self._note(now, "keys", f"key {event.user} of a worker{_at(event.address)} was revoked")
            error = error_of(_NOBODY, Status.UNAUTHENTICATED, "the key was revoked")
            self._actions.append(ToWorker(event.peer, error))
            return
        if type(message) is wire.Announce:
            self._announce(event, message, now)
            return
        worker = self.workers.get(event.peer)
        if worker is None:
            # Lost and come back, or older than this broker. What it answers was given to somebody else or will be.
            self.counts["late"] += type(message) in (wire.Done, wire.Failed)
            # One that goes need not introduce itself.
            answer = wire.Farewell() if type(message) is wire.Goodbye else wire.Identify()
            self._actions.append(ToWorker(event.peer, answer))
            return
        worker.heard_at = now
        if worker.state is WorkerState.QUIET:
            self._heard(worker, now)
        _ON[type(message)](self, worker, message, event.payload, now)
        self._feed(worker, now)

    def _announce(self, event: FromWorker, message: wire.Announce, now: float) -> None:
        peer = event.peer
        try:
            models = parse_models(event.payload)
        except ProtocolError as error:
            self._malformed(Malformed(peer, False, error, event.address), now)
            return
        if self.authorized is not None:
            grant = self.authorized.workers[event.user]
            refused = [model for model in models if not grant.allows(model[0])]
            if refused:
                for model in refused:
                    del models[model]
                names = ", ".join(sorted({repr(name) for name, _ in refused}))
                text = f"this key is not for {names}; nothing is asked of them here"
                whose = f"key {event.user} ({grant.name}) of worker {message.name}{_at(event.address)}"
                self._note(now, "keys", f"{whose}: {text}")
                self._actions.append(ToWorker(peer, error_of(_NOBODY, Status.PERMISSION_DENIED, text)))
        worker = self.workers.get(peer)
        changes = models.keys() if worker is None else models.keys() - worker.models.keys()
        if worker is None:
            worker = self.workers[peer] = Worker(peer, message.name, message.slots, now, event.user, event.address)
            self._note(now, "workers", f"worker {worker} came: {message.slots} slots, {_listing(models)}", logging.INFO)
        else:
            if models.keys() != worker.models.keys():
                self._note(now, "workers", f"worker {worker} changes: {_listing(models)}", logging.INFO)
            if worker.state is WorkerState.QUIET:
                self._heard(worker, now)
        worker.name, worker.slots, worker.heard_at = message.name, message.slots, now
        worker.max_frame_bytes = message.max_frame_bytes
        worker.most_slots = max(message.slots, worker.most_slots if worker.held else 0)
        self._history.add(now, peer, "announced", f"{message.name}, {message.slots} slots, {len(models)} models")
        self._learn(models)
        if worker.state is WorkerState.DRAINING:
            worker.serve(models)
        else:
            self._note_latest(self.scheduler.update(worker, models, reset=self._is_young(now)), now)
            self._note_newer(sorted({name for name, _ in changes}), now)
        self._timers.set(peer, now + self.policy.heartbeat)
        self._actions.append(self._probe(peer))  # before its first Dispatch: it says what results this broker takes
        self._settle(now)

    def _heard(self, worker: Worker, now: float) -> None:
        self._worker_transition(worker, "heard", now)
        self._note(now, "workers", f"worker {worker} is heard again", logging.INFO)

    def _heartbeat(self, worker: Worker, message: wire.Heartbeat, payload: Payload, now: float) -> None:
        pass  # that it was heard is all that it says

    def _done(self, worker: Worker, message: wire.Done, payload: Payload, now: float) -> None:
        request = self._answered(worker, message)
        if request is not None:
            longest = len(payload[0]) if len(payload) == 1 else max(map(len, payload), default=0)
            if longest > request.max_frame_bytes or longest > self.max_frame_bytes:
                self._too_large_for_its_client(request, payload, now)
                return
            worker.served += 1
            self.counts["served"] += 1
            queue_us = int((request.dispatched_at - request.accepted_at) * 1e6)
            broker_us = int((now - request.accepted_at) * 1e6)
            result = wire.Result(*request.key, request.runs, queue_us, message.compute_us, broker_us)
            self._end(request, "served", now, result, payload)

    def _too_large_for_its_client(self, request: PendingRequest, payload: Payload, now: float) -> None:
        text = (
            f"the outputs have a frame of {max(map(len, payload))} bytes; the client takes at most "
            f"{request.max_frame_bytes} (max_frame_bytes), this broker {self.max_frame_bytes} (--max-frame-bytes)"
        )
        self._note(now, "frames", f"model {request.wanted.model!r}: {text}")
        request.worker = None  # its slot is free already
        self._fail(request, "failed", now, Status.INVALID_ARGUMENT, text)

    def _failed(self, worker: Worker, message: wire.Failed, payload: Payload, now: float) -> None:
        request = self._answered(worker, message)
        if request is not None and message.code == Status.NOT_FOUND.value and request.runs_as not in worker.models:
            # The version was taken away while the request was on its way there; another worker or version may serve it.
            request.worker = None
            self._transition(request, "returned", now, worker.name)
            self._place(request, self.scheduler.choose(request.wanted, request.longest), now)
        elif request is not None:
            worker.failed += 1
            # A code that is none must not grow the table of counts.
            code = message.code if message.code in _CODES else Status.INTERNAL.value
            self.counts[f"failed.{code}"] += 1
            self._end(request, "failed", now, wire.Error(*request.key, code, message.text))

    def _answered(self, worker: Worker, message: wire.Done | wire.Failed) -> PendingRequest | None:
        """Free the slot of an attempt; its request, if that still waits for this very attempt."""
        key = Key(message.session, message.id)
        request = worker.held.pop((key, message.attempt), None)
        if not worker.held:
            worker.most_slots = worker.slots
        if request is not None:
            worker.nbytes -= request.nbytes
            if self._waits_for(worker, request, message.attempt):
                return request
        self.counts["late"] += 1
        return None

    def _goodbye(self, worker: Worker, message: wire.Goodbye, payload: Payload, now: float) -> None:
        if worker.state is not WorkerState.DRAINING:
            self._note(now, "workers", f"worker {worker} says goodbye, with {len(worker.held)} requests", logging.INFO)
        self._worker_transition(worker, "goodbye", now)
        self._note_latest(self.scheduler.remove(worker), now)
        self._actions.append(ToWorker(worker.peer, wire.Farewell()))
        self._settle(now)

    def _malformed(self, event: Malformed, now: float) -> None:
        self.counts["malformed"] += 1
        whose = "a client" if event.frontend else "a worker"
        self._note(now, "malformed", f"bytes of {whose}{_at(event.address)} are not a message: {event.error.message}")
        error = error_of(event.error.key or _NOBODY, event.error.code, event.error.message)
        self._actions.append((ToClient if event.frontend else ToWorker)(event.peer, error))


def _listing(models: dict[tuple[str, int], Model]) -> str:
    return f"serves {', '.join(f'{name}:{version}' for name, version in sorted(models)) or 'nothing'}"


def _at(address: str) -> str:
    return f" at {address}" if address else ""


_ON: dict[type, Any] = {
    wire.Done: Backend._done,
    wire.Failed: Backend._failed,
    wire.Goodbye: Backend._goodbye,
    wire.Heartbeat: Backend._heartbeat,
}
"""What the message of a worker that announced itself does."""
