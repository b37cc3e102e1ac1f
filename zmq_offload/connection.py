"""What the clients have in common: their socket, their options, and tensors in and out of calls."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from zmq_offload import transport
from zmq_offload.errors import Internal, InvalidArgument, OffloadError, ProtocolError
from zmq_offload.handshake import Security, Watch
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import Array, decode_body, decode_tensors, encode_tensors
from zmq_offload.repository import check_model_name
from zmq_offload.results import Outputs, Timings
from zmq_offload.session import Complete, Policy, Send, Session

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take unless it says otherwise."""

_BATCH = 64
"""Messages taken from the socket at a time."""

_SHARED = 8192
"""libzmq reads into buffers of this size, and frames that fit share one: a result that small is copied out, so that
keeping it does not keep its neighbours."""

_REGAIN_AT_EASE = 0.02
_REGAIN_BY_FORCE = 5.0
"""Seconds: for memory that is on its way back, and for libzmq to drop what it still holds of a closed connection."""


class Connection:
    """A socket to one of several brokers. Not thread-safe."""

    def __init__(
        self,
        broker: str | Sequence[str],
        policy: Policy,
        max_frame_bytes: int,
        key: str | None = None,
        broker_key: str | None = None,
    ) -> None:
        self.endpoints = [broker] if isinstance(broker, str) else list(broker)
        if not self.endpoints:
            raise InvalidArgument("a client needs at least one broker endpoint")
        for endpoint in self.endpoints:
            transport.check_endpoint(endpoint)
        key = key or os.environ.get("ZMQ_OFFLOAD_CLIENT_KEY")
        broker_key = broker_key or os.environ.get("ZMQ_OFFLOAD_BROKER_KEY")
        if bool(key) != bool(broker_key):
            raise InvalidArgument("a client's key and its broker's key belong together")
        self._security = Security(key, broker_key)
        self._max_frame_bytes = max_frame_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.session = Session(os.urandom(wire.SESSION_BYTES), self.endpoints, policy)
        self._endpoint = 0
        self._lent: dict[int, list[zmq.MessageTracker]] = {}
        try:
            self._open()
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def _open(self) -> None:
        self.socket = transport.make_socket(
            self._context,
            zmq.DEALER,
            max_frame_bytes=self._max_frame_bytes,
            heartbeat=transport.CLIENTS_HEARTBEAT,
        )
        self._security.protect(self.socket)
        self._watch = Watch(self.socket)
        transport.connect(self.socket, self.endpoints[self._endpoint])
        self._inbox = transport.Inbox(self.socket)

    def request(
        self, model: str, inputs: Mapping[str, Any], version: int | None, timeout: float, priority: int
    ) -> tuple[Any, ...]:
        """What begins a request in the session: the arguments of its `request`, but for the time. All that is wrong
        with them is found here.

        Raises InvalidArgument naming the argument or input.
        """
        wanted = check_call(model, timeout, version, priority)
        return model, self._payload(inputs), timeout, wanted, priority

    def _payload(self, inputs: Mapping[str, Any]) -> list[Any]:
        """`[header, frame, ...]` of a call's inputs; what is an array already is sent from its own memory.

        Raises InvalidArgument naming the input that cannot be sent.
        """
        arrays = _arrays(inputs)
        payload = encode_tensors(arrays)
        # The broker takes no more either, unless told to: it would close the connection without a word.
        most = self._max_frame_bytes
        if max(map(len, payload)) > most:
            for name, array in arrays.items():
                if array.nbytes > most:
                    raise InvalidArgument(f"input {name!r} has {array.nbytes} bytes; max_frame_bytes allows {most}")
            raise InvalidArgument(
                f"all small inputs together have {len(payload[0])} bytes, names included; max_frame_bytes allows {most}"
            )
        return payload

    def reconnect(self, endpoint: int) -> None:
        """Connect to endpoint number `endpoint`; what is queued in the old connection is lost."""
        self._watch.close()
        self.socket.close(linger=0)
        self._endpoint = endpoint
        self._open()

    def refusal(self) -> str | None:
        """Why the broker does not let this client in, or None if nothing says so."""
        why = self._watch.refusal()
        return None if why is None else f"the broker at {self.endpoints[self._endpoint]} {why}"

    def send(self, action: Send) -> None:
        message = action.message
        try:
            lent = transport.send(self.socket, [wire.encode(message), *action.payload], track=True)
        except zmq.Again:
            return  # a connection whose key was refused takes nothing; the session hears of that by `refusal`
        if lent and isinstance(message, wire.Request):
            self._lent.setdefault(message.id, []).extend(lent)

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker]:
        """The memory that was lent for a call that ends now, so far as it is not back yet.

        It nearly always is, long since: who answers a request has read all of it. Where it is not, because the broker
        does not read or because the request was sent twice, `regain` it before the caller may do with it what it wants.
        """
        lent = self._lent.pop(number, None)
        if lent is None or all(tracker.done for tracker in lent) or _wait_for(lent, _REGAIN_AT_EASE):
            return ()
        return lent

    def regain(self, lent: Sequence[zmq.MessageTracker]) -> None:
        """Have memory back by giving up the connection, and what is queued there, for a new one."""
        self.reconnect(self._endpoint)
        if not _wait_for(lent, _REGAIN_BY_FORCE):
            raise Internal("the memory of a request's inputs is still being read after its connection was closed")

    def receive(self, most: int = _BATCH) -> list[tuple[wire.ToClient, Sequence[Any]]]:
        """The messages that wait, at most so many, without waiting for more; the socket was said to have one. What is
        no message is dropped: no call can be told of it."""
        messages: list[tuple[wire.ToClient, Sequence[Any]]] = []
        for frames in self._inbox.take(min(most, _BATCH)):
            message = _decoded(frames[0])
            if message is not None:
                messages.append((message, frames[1:]))
        return messages

    def waiting(self) -> bool:
        """Whether there is a message."""
        return self._inbox.waiting()

    def close(self) -> None:
        self._watch.close()
        self.socket.close(linger=100)  # a last Cancel
        self._context.term()


def _decoded(frame: bytes) -> wire.ToClient | None:
    try:
        return wire.decode(frame, wire.TO_CLIENT)  # type: ignore[no-any-return]
    except ProtocolError:
        return None


def _wait_for(trackers: Sequence[zmq.MessageTracker], seconds: float) -> bool:
    """Whether all are done within so many seconds each."""
    try:
        for tracker in trackers:
            tracker.wait(seconds)
    except zmq.NotDone:
        return False
    return True


def check_call(model: str, timeout: float, version: int | None, priority: int) -> int:
    """The version as it is sent. Raises InvalidArgument naming the argument that is wrong."""
    try:
        return _checked(model, timeout, version, priority)
    except TypeError:  # what cannot be hashed is none of these either
        return _checked.__wrapped__(model, timeout, version, priority)


@functools.lru_cache(256, typed=True)  # a program calls with the same few again and again
def _checked(model: str, timeout: float, version: int | None, priority: int) -> int:
    check_model_name(model)
    check_timeout(timeout)
    if version is not None and (type(version) is not int or not 0 < version <= limits.VERSION):
        raise InvalidArgument(f"version {version!r} is not a whole number from 1; leave it out for the latest")
    if type(priority) is not int or abs(priority) > limits.PRIORITY:
        raise InvalidArgument(
            f"priority {priority!r} is not a whole number from -{limits.PRIORITY} to {limits.PRIORITY}"
        )
    return wire.LATEST if version is None else version


def check_timeout(timeout: float) -> float:
    """`timeout`, if a call can have it; raises InvalidArgument otherwise."""
    most = limits.BUDGET_US / 1e6
    if not isinstance(timeout, (int, float)) or timeout is True or not 0 < timeout <= most:
        raise InvalidArgument(f"timeout {timeout!r} is not a time above 0 and at most {most:.0f} seconds")
    return timeout


def _arrays(inputs: Mapping[str, Any]) -> Mapping[str, Array]:
    if type(inputs) is not dict and not isinstance(inputs, Mapping):  # asking an ABC is slow
        raise InvalidArgument(f"inputs are a mapping of names to arrays, not {type(inputs).__name__}")
    for value in inputs.values():
        if type(value) is not np.ndarray:
            return {name: _array(name, value) for name, value in inputs.items()}
    return inputs


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise InvalidArgument(f"input {name!r} is no array: {error}") from None


def outputs_of(done: Complete, total: float, model: str) -> Outputs | OffloadError:
    """A Result as outputs, or why it is none."""
    message = done.message
    assert isinstance(message, wire.Result)
    timings = Timings(message.queue_us / 1e6, message.compute_us / 1e6, message.broker_us / 1e6, total)
    try:
        tensors = decode_tensors(done.payload)
    except ProtocolError as error:
        return error
    for name, array in tensors.items():
        if array.nbytes < _SHARED:
            tensors[name] = array.copy()
    return Outputs(tensors, model, message.version, timings)


def answer_of(done: Complete, total: float = 0.0, model: str = "") -> Any:
    """An Answer's body, or the error that it is none."""
    try:
        return decode_body(done.payload, "an Answer")
    except ProtocolError as error:
        return error


def copy_into(outputs: Outputs, into: Mapping[str, Array]) -> None:
    """Put output tensors into the caller's arrays. Raises InvalidArgument naming the first that does not fit."""
    if outputs.keys() != into.keys():
        raise InvalidArgument(f"{outputs.model!r} returns {', '.join(outputs)}; arrays are for {', '.join(into)}")
    for name, array in outputs.items():
        place = into[name]
        if (place.shape, place.dtype) != (array.shape, array.dtype):
            raise InvalidArgument(
                f"output {name!r} of {outputs.model!r} is {array.dtype}{list(array.shape)}, "
                f"the array for it is {place.dtype}{list(place.shape)}"
            )
        np.copyto(place, array)
        outputs[name] = place
