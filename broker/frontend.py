"""What the broker does with clients' messages. Pure."""

from __future__ import annotations

import functools
from dataclasses import replace

from broker import admission
from broker.accesslog import access_of_refused
from broker.admission import QueueLimits
from broker.events import FromClient, ToClient
from broker.ledger import Ledger
from broker.listing import error_of
from broker.state import PendingRequest, Wanted, sizes
from broker.status import describe_models, describe_status
from broker.ways import Ways
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import Key
from zmq_offload.protocol.payload import encode_body

_new = tuple.__new__
"""Half the cost of the NamedTuple's own constructor."""


class Frontend:
    """The side of the clients."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.ways: Ways | None = None
        """How peers are connected; None if nobody knows."""

    def handle(self, event: FromClient, now: float) -> None:
        ledger, message = self._ledger, event.message
        if ledger.authorized is not None and event.user not in ledger.authorized.clients:
            # The connection is older than the revocation.
            number = 0 if isinstance(message, wire.Ping) else message.id
            self._refuse(event, Key(message.session, number), Status.UNAUTHENTICATED, "the key was revoked", now)
        elif isinstance(message, wire.Request):
            self._request(event, message, now)
        elif isinstance(message, wire.Ping):
            self._ping(event, message)
        elif isinstance(message, wire.Cancel):
            self._cancel(event, message, now)
        else:
            self._query(event, message, now)

    def _refuse(self, event: FromClient, key: Key, status: Status, text: str, now: float) -> None:
        ledger = self._ledger
        ledger.counts[f"refused.{status.value}"] += 1
        if status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
            grant = None if ledger.authorized is None else ledger.authorized.clients.get(event.user)
            name = "" if grant is None else f" ({grant.name})"
            ledger.note(now, "keys", f"key {event.user or '(none)'}{name} of a client is refused: {text}")
        if ledger.access is not None and isinstance(event.message, wire.Request):
            ledger.access.add(access_of_refused(event, event.message, key, status.value), now)
        ledger.actions.append(ToClient(event.peer, error_of(key, status, text)))

    def _request(self, event: FromClient, message: wire.Request, now: float) -> None:
        ledger = self._ledger
        peer, payload, user = event.peer, event.payload, event.user
        session, number, model, version, budget_us, priority, signature, max_frame_bytes, label, trace, caller = message
        key = _new(Key, (session, number))
        if ledger.authorized is not None and not ledger.allows(user, model):
            self._refuse(event, key, Status.PERMISSION_DENIED, f"this key is not for model {model!r}", now)
            return
        if (key in ledger.requests or (ledger.poison and key in ledger.poison)) and self._sent_again(event, key, now):
            return
        nbytes, longest = sizes(payload)
        if longest > ledger.max_frame_bytes:
            text = (
                f"the inputs have a frame of {longest} bytes; this broker takes at most {ledger.max_frame_bytes} "
                f"(--max-frame-bytes), the client {max_frame_bytes} (max_frame_bytes)"
            )
            ledger.note(now, "frames", f"model {model!r}: {text}")
            self._refuse(event, key, Status.INVALID_ARGUMENT, text, now)
            return
        deadline = now + budget_us / 1e6
        wanted = asked = _new(Wanted, (model, version, b"" if version else signature))
        owner = user.encode() if user else session
        if label or model in ledger.routes.by_model:
            if label and version:
                text = f"the request names version {version} and label {label!r}; name one of them"
                self._refuse(event, key, Status.INVALID_ARGUMENT, text, now)
                return
            found = ledger.resolver.resolve(wanted, label, caller.encode() or owner, now)
            if not isinstance(found, Wanted):
                self._refuse(event, key, *found, now)
                return
            wanted = found
            priority, deadline = self._bounded(model, priority, deadline, now)
        # By position, and without what few requests have, a Struct is made faster.
        request = PendingRequest(
            key, peer, owner, wanted, priority, deadline, now, payload, nbytes, longest, max_frame_bytes, user
        )
        if label or wanted is not asked:
            request.label, request.asked, request.caller = label, asked, caller.encode() or owner
        if ledger.tracing.enabled:
            request.trace = ledger.tracing.wanted(trace, key)
        worker = None if ledger.stopping or deadline <= now else ledger.scheduler.choose(wanted, longest, now)
        if (
            worker is None
            and wanted in ledger.scheduler.mixed
            and not ledger.stopping
            and deadline > now
            and not admission.has_room(ledger.scheduler, self._queue_limits(wanted.model), request)
        ):
            worker = ledger.relieve(wanted, longest, now)
        if worker is None and not self._may_queue(event, request, now):
            return
        ledger.accept(request, worker, now)

    def _bounded(self, model: str, priority: int, deadline: float, now: float) -> tuple[int, float]:
        """The priority and the deadline of a request, as the configuration of its model has them."""
        route = self._ledger.routes.by_model.get(model)
        if route is None:
            return priority, deadline
        if route.settings.timeout_us is not None:
            deadline = min(deadline, now + route.settings.timeout_us / 1e6)
        return max(-limits.PRIORITY, min(limits.PRIORITY, priority + route.settings.priority)), deadline

    def _queue_limits(self, model: str) -> QueueLimits:
        """The bounds of the queue for a model."""
        bounds, route = self._ledger.queue_limits, self._ledger.routes.by_model.get(model)
        if route is None or route.settings.max_queued is None:
            return bounds
        return replace(bounds, max_queued_per_model=min(bounds.max_queued_per_model, route.settings.max_queued))

    def _sent_again(self, event: FromClient, key: Key, now: float) -> bool:
        """Answer a request that the broker already has, or knows to be poison; False if it is to run all the same."""
        ledger = self._ledger
        request = ledger.requests.get(key)
        if request is not None:
            if request.user != event.user:
                self._refuse(event, key, Status.PERMISSION_DENIED, "this session belongs to another key", now)
                return True
            # A client that reconnected sends all that it waits for; the current attempt serves it.
            request.client = event.peer
        else:
            user, error = ledger.poison[key]
            if user != event.user:
                return False
            ledger.actions.append(ToClient(event.peer, error))
        ledger.counts["duplicate"] += 1
        return True

    def _may_queue(self, event: FromClient, request: PendingRequest, now: float) -> bool:
        """Make room for a request in the queues, or refuse it."""
        ledger = self._ledger
        refused = self._refusal(request, now)
        if refused is not None:
            ledger.record(request.key, "refused", now, refused[1])
            self._refuse(event, request.key, *refused, now)
            return False
        bounds = self._queue_limits(request.wanted.model)
        if admission.has_room(ledger.scheduler, bounds, request):
            return True
        for other in admission.evicted(ledger.scheduler, bounds, request):
            text = "the queue is full, and other clients have less in it; try again later"
            ledger.fail(other, "evicted", now, Status.RESOURCE_EXHAUSTED, text)
        return True

    def _refusal(self, request: PendingRequest, now: float) -> tuple[Status, str] | None:
        """Why a request that no worker can take now is not accepted; None if it is."""
        ledger = self._ledger
        if request.deadline <= now:
            return Status.DEADLINE_EXCEEDED, "the deadline had already passed on arrival"
        if ledger.stopping:
            return Status.UNAVAILABLE, "the broker is shutting down"
        if (
            not ledger.scheduler.served(request.wanted)
            and ledger.catalog
            and not ledger.catalog.has(request.asked or request.wanted)
            and not ledger.resolver.starting(now)
        ):
            return ledger.unserved(request)
        too_large = ledger.too_large(request, now)
        if too_large is not None:
            return Status.INVALID_ARGUMENT, too_large
        bounds = self._queue_limits(request.wanted.model)
        if admission.has_room(ledger.scheduler, bounds, request):
            return None
        full = admission.refusal(ledger.scheduler, bounds, request)
        return None if full is None else (Status.RESOURCE_EXHAUSTED, full)

    def _cancel(self, event: FromClient, message: wire.Cancel, now: float) -> None:
        request = self._ledger.requests.get(Key(*message))
        if request is not None and request.user == event.user:
            request.client = event.peer
            self._ledger.fail(request, "canceled", now, Status.CANCELLED, "canceled by its client")

    def _query(self, event: FromClient, message: wire.Query, now: float) -> None:
        allows = functools.partial(self._ledger.allows, event.user)
        if message.what == "models":
            body = encode_body(describe_models(self._ledger, allows))
        else:
            body = encode_body(describe_status(self._ledger, now, allows, self.ways))
        key = Key(message.session, message.id)
        if len(body) > limits.BODY_BYTES:
            text = f"the answer has {len(body)} bytes; the limit is {limits.BODY_BYTES}"
            self._refuse(event, key, Status.RESOURCE_EXHAUSTED, text, now)
            return
        self._ledger.actions.append(ToClient(event.peer, wire.Answer(*key), [body]))

    def _ping(self, event: FromClient, message: wire.Ping) -> None:
        ledger = self._ledger
        missing = []
        for number in message.ids:
            request = ledger.requests.get(Key(message.session, number))
            if request is None or request.user != event.user:
                missing.append(number)
            else:
                request.client = event.peer
        ledger.actions.append(ToClient(event.peer, wire.Pong(message.session, missing, ledger.max_frame_bytes)))
