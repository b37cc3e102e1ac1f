"""Calls at TVM's RPC server: one round trip each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from zmq_offload.errors import (
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ProtocolError,
    from_status,
)
from zmq_offload.protocol import messages, tensors
from zmq_offload.protocol.payload import Array, decode_body, decode_tensors, encode_tensors
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.tvmrpc import parcel, wire
from zmq_offload.transports.tvmrpc.connecting import Target, begun, tracked
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.url import Url

_STEP = 0.05
"""Seconds between looks at whether a call is canceled that waits for another thread to connect."""

_REPLIES: frozenset[type[Any]] = frozenset((messages.Result, messages.Error, messages.Answer))


class TvmRpcTransport:
    """Calls at one server: `tvmrpc://HOST:PORT[?key=KEY]`, or one that a tracker gives: `?tracker=KEY`."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=False, priority=False, deadline=False, versions=True, shared=True)

    def __init__(self, url: Url, options: Options) -> None:
        url.only("key", "tracker")
        if {"key", "tracker"} <= url.query.keys():
            raise InvalidArgument(f"server {url.text!r} has key and tracker; give one of them")
        self._by_tracker = "tracker" in url.query
        self._place = Target(url.host, url.port, url.query.get("tracker", url.query.get("key", "")))
        if self._by_tracker and not self._place.key:
            raise InvalidArgument(f"server {url.text!r} has an empty key for the tracker; use ?tracker=KEY")
        self._most = options.max_frame_bytes
        self._session: Session | None = None
        self._function = 0
        self._closed = False
        self._connecting = threading.Lock()

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model on the server."""
        envelope = messages.Request(
            parcel.SESSION, 0, request.model, request.version or messages.LATEST, 0, 0, b"", self._most
        )
        message, frames = self._asked([messages.encode(envelope), *encode_tensors(request.inputs)], attempt)
        if not isinstance(message, messages.Result):
            raise ProtocolError(f"the server answers a request with {type(message).__name__}")
        outputs = {name: _owned(view, request.outputs, name) for name, view in decode_tensors(frames).items()}
        return Reply(outputs, message.version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions in the server's repository, the latest first."""
        query = messages.encode(messages.Query(parcel.SESSION, 0, "models"))
        _, frames = self._asked([query], attempt)
        found = [
            Served(int(one["version"]), _specs(one["inputs"]), _specs(one["outputs"]))
            for one in cast("Sequence[Any]", decode_body(frames, "an Answer"))
            if isinstance(one, Mapping) and one.get("name") == model
        ]
        if not found:
            raise NotFound(f"model {model!r} is not in the repository of the TVM RPC server at {self._place.address}")
        return sorted(found, key=lambda one: one.version or 0, reverse=True)

    def close(self) -> None:
        """End the session."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def forget(self) -> None:
        """Nothing: the connection is the parent's, and its end is not told the server."""

    def _asked(self, frames: Sequence[parcel.Frame], attempt: Attempt) -> tuple[Any, list[memoryview]]:
        """Send a message, and return what answers it, with the frames that follow. Raises the server's error."""
        session = self._connected(attempt)
        buffers = parcel.pack(frames)
        start = wire.call_with_bytes(self._function, sum(map(len, buffers)))
        answer = wire.decode_bytes(session.call([start, *buffers], attempt))
        if isinstance(answer, wire.Failed):
            raise Internal(f"the function of the TVM RPC server failed: {wire.shown(answer.text)}")
        envelope, *rest = parcel.unpack(answer)
        message = messages.decode(bytes(envelope), _REPLIES)
        if isinstance(message, messages.Error):
            raise from_status(message.code, message.text)
        return message, [memoryview(bytes(rest[0])), *rest[1:]] if rest else []

    def _connected(self, attempt: Attempt) -> Session:
        """The session, which the first call begins."""
        while not self._connecting.acquire(timeout=min(_STEP, attempt.seconds_to_connect())):
            pass
        try:
            session = self._session
            if session is None or not session.usable:
                if session is not None:
                    session.close()
                session = self._session = None
                session = self._begun(attempt)
                if self._closed:
                    session.close()
                    raise Cancelled("the client is closed")
                self._session = session
            return session
        finally:
            self._connecting.release()

    def _begun(self, attempt: Attempt) -> Session:
        target = tracked(self._place, attempt) if self._by_tracker else self._place
        connection, self._function = begun(target, attempt, parcel.FUNCTION)
        session = Session(connection, target.address, self._most)
        if not self._function:
            session.close()
            raise FailedPrecondition(
                f"the TVM RPC server at {target.address} has no function {parcel.FUNCTION!r}; start it by "
                "python -m zmq_offload.transports.tvmrpc.server --repository DIR"
            )
        return session


def _specs(described: Iterable[object]) -> list[tensors.TensorSpec]:
    return [tensors.TensorSpec.from_json(one) for one in described]


def _owned(view: Array, given: Mapping[str, Array] | None, name: str) -> Array:
    """An output in memory of its own: the caller's array, if it fits."""
    place = None if given is None else given.get(name)
    if place is None or place.shape != view.shape or place.dtype != view.dtype:
        return np.array(view)
    np.copyto(place, view)
    return place
