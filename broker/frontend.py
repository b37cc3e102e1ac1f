"""What clients say, and what the broker does about it."""

from __future__ import annotations

import functools
from typing import Any

from broker import admission
from broker.events import FromClient, ToClient
from broker.ledger import Ledger, error_of
from broker.state import PendingRequest, Wanted
from broker.status import describe_models, describe_status
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import Key
from zmq_offload.protocol.payload import encode_body

_new = tuple.__new__
"""As the NamedTuple's own constructor, which costs twice as much."""


class Frontend(Ledger):
    """The clients' side."""

    def _from_client(self, event: FromClient, now: float) -> None:
        if self.authorized is not None and event.user not in self.authorized.clients:
            # The connection was made when the key was good still.
            number = 0 if isinstance(event.message, wire.Ping) else event.message.id
            self._refuse(event, Key(event.message.session, number), Status.UNAUTHENTICATED, "the key was revoked", now)
            return
        _ON[type(event.message)](self, event, event.message, now)

    def _refuse(self, event: FromClient, key: Key, status: Status, text: str, now: float) -> None:
        self.counts[f"refused.{status.value}"] += 1
        if status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
            grant = None if self.authorized is None else self.authorized.clients.get(event.user)
            name = "" if grant is None else f" ({grant.name})"
            self._note(now, "keys", f"key {event.user or '(none)'}{name} of a client is refused: {text}")
        self._actions.append(ToClient(event.peer, error_of(key, status, text)))

    def _request(self, event: FromClient, message: wire.Request, now: float) -> None:
        peer, payload, user = event.peer, event.payload, event.user
        key = Key(message.session, message.id)
        if not self.allows(user, message.model):
            self._refuse(event, key, Status.PERMISSION_DENIED, f"this key is not for model {message.model!r}", now)
            return
        again = self.requests.get(key)
        if again is not None:
            if again.user != user:
                self._refuse(event, key, Status.PERMISSION_DENIED, "this session is another key's", now)
                return
            # A client that reconnected sends all that it waits for; the attempt that is out already serves.
            again.client = peer
            self.counts["duplicate"] += 1
            return
        poison = self.poison.get(key)
        if poison is not None and poison[0] == user:
            self.counts["duplicate"] += 1
            self._actions.append(ToClient(peer, poison[1]))
            return
        nbytes = sum(map(len, payload))
        longest = nbytes if len(payload) == 1 else max(map(len, payload), default=0)
        if longest > self.max_frame_bytes:
            text = (
                f"the inputs have a frame of {longest} bytes; this broker takes at most {self.max_frame_bytes} "
                f"(--max-frame-bytes), the client {message.max_frame_bytes} (max_frame_bytes)"
            )
            self._note(now, "frames", f"model {message.model!r}: {text}")
            self._refuse(event, key, Status.INVALID_ARGUMENT, text, now)
            return
        deadline = now + message.budget_us / 1e6
        wanted = _new(Wanted, (message.model, message.version, b"" if message.version else message.signature))
        request = PendingRequest(
            key=key,
            client=peer,
            owner=user.encode() or message.session,
            user=user,
            wanted=wanted,
            priority=message.priority,
            deadline=deadline,
            accepted_at=now,
            payload=payload,
            nbytes=nbytes,
            longest=longest,
            max_frame_bytes=message.max_frame_bytes,
        )
        worker = None if self.stopping or deadline <= now else self.scheduler.choose(wanted, longest)
        if worker is None:
            refused = self._refusal(request, now)
            if refused is not None:
                self._history.add(now, key, "refused", refused[1])
                self._refuse(event, key, *refused, now)
                return
            for other in admission.evicted(self.scheduler, self.policy, request):
                text = "the queue is full, and other clients have less in it; try again later"
                self._fail(other, "evicted", now, Status.RESOURCE_EXHAUSTED, text)
        self._accept(request, worker, now)

    def _refusal(self, request: PendingRequest, now: float) -> tuple[Status, str] | None:
        """Why a request that would have to queue is not accepted, if it is not."""
        if request.deadline <= now:
            return Status.DEADLINE_EXCEEDED, "its deadline had passed when it arrived"
        if self.stopping:
            return Status.UNAVAILABLE, "the broker is shutting down"
        if (
            not self.scheduler.served(request.wanted)
            and self.known
            and not self._was_known(request.wanted)
            and not self._is_young(now)
        ):
            return self._nobody_serves(request.wanted, request.user)
        too_large = self._too_large(request, now)
        if too_large is not None:
            return Status.INVALID_ARGUMENT, too_large
        full = admission.refusal(self.scheduler, self.policy, request)
        return None if full is None else (Status.RESOURCE_EXHAUSTED, full)

    def _cancel(self, event: FromClient, message: wire.Cancel, now: float) -> None:
        request = self.requests.get(Key(*message))
        if request is not None and request.user == event.user:
            request.client = event.peer
            self._fail(request, "cancelled", now, Status.CANCELLED, "cancelled by its client")

    def _query(self, event: FromClient, message: wire.Query, now: float) -> None:
        if message.what == "models":
            body = encode_body([m for m in describe_models(self.scheduler) if self.allows(event.user, m["name"])])
        else:
            body = encode_body(describe_status(self, now, functools.partial(self.allows, event.user)))
        key = Key(message.session, message.id)
        if len(body) > limits.BODY_BYTES:
            text = f"the answer has {len(body)} bytes; the limit is {limits.BODY_BYTES}"
            self._refuse(event, key, Status.RESOURCE_EXHAUSTED, text, now)
            return
        self._actions.append(ToClient(event.peer, wire.Answer(*key), [body]))

    def _ping(self, event: FromClient, message: wire.Ping, now: float) -> None:
        missing = []
        for number in message.ids:
            request = self.requests.get(Key(message.session, number))
            if request is None or request.user != event.user:
                missing.append(number)
            else:
                request.client = event.peer
        self._actions.append(ToClient(event.peer, wire.Pong(message.session, missing, self.max_frame_bytes)))


_ON: dict[type, Any] = {
    wire.Request: Frontend._request,
    wire.Cancel: Frontend._cancel,
    wire.Query: Frontend._query,
    wire.Ping: Frontend._ping,
}
"""What a client's message does."""
