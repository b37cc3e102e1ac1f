"""What both clients share: the socket, the options, and the tensors of calls."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from zmq_offload.client.arguments import check_call, check_max_frame_bytes, check_policy
from zmq_offload.client.results import Outputs, Timings
from zmq_offload.client.session import ClientSession, Complete, Payload, RetryPolicy, Send
from zmq_offload.errors import Internal, InvalidArgument, OffloadError, ProtocolError, Unavailable, one_line
from zmq_offload.net import transport
from zmq_offload.net.endpoints import check_brokers
from zmq_offload.net.handshake import HandshakeMonitor, clients_security
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import Array, decode_body, decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import Latest, array_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

log = logging.getLogger("zmq_offload")

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take by default."""

_FILES = 12
"""Files that a client opens: for libzmq's threads, the socket, its monitor, the connection and the driver."""

_BATCH = 64
"""Messages taken from the socket at a time."""

_SHARED = 8192
"""Bytes of libzmq's receive buffers, which small frames share. A smaller output is copied, so that keeping it does not
keep the whole buffer."""

_RECLAIM_AT_EASE = 0.02
_RECLAIM_BY_FORCE = 5.0
"""Seconds to wait for lent memory: while its connection is open, and after it was closed."""


_STILL_READ = "the memory of a request's inputs is still being read after its connection was closed"

_inherited: list[object] = []
"""Sockets of the parent process. They cannot be closed here, and collecting them would give warnings."""


class Connection:
    """A socket to one of several brokers. Not thread-safe.

    Raises InvalidArgument for endpoints, numbers and keys that cannot be used, FailedPrecondition for unreadable keys,
    Unavailable if the system has no sockets left.

    With `reclaims`, the memory of a call's inputs is not read any more when the call has ended. Without, libzmq may
    still read it, and its owner does not change it.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        policy: RetryPolicy | None,
        max_frame_bytes: int,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        *,
        reclaims: bool = True,
    ) -> None:
        self.endpoints = check_brokers(broker)
        self._max_frame_bytes = check_max_frame_bytes(max_frame_bytes)
        self.session = ClientSession(
            os.urandom(wire.SESSION_BYTES), self.endpoints, check_policy(policy), self._max_frame_bytes
        )
        self._security = clients_security(key, broker_key)
        self._endpoint = 0
        self._reclaims = reclaims
        self._lent: dict[int, list[zmq.MessageTracker]] = {}
        self.is_open = False
        self._check_files()
        try:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        except zmq.ZMQError as error:
            raise self._unavailable(error) from None
        try:
            self._open()
        except BaseException:
            self._context.term()
            raise

    def _check_files(self) -> None:
        """Raise Unavailable if the system has too few files left.

        libzmq aborts the process if its threads get only some of the files that they need.
        """
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(_FILES // 2):
                pipes.append(os.pipe())  # noqa: PERF401  (the pipes opened before an error must be closed)
        except OSError as error:
            raise self._unavailable(error) from None
        finally:
            for file in itertools.chain(*pipes):
                os.close(file)

    @property
    def endpoint(self) -> str:
        """Endpoint of the current broker."""
        return self.endpoints[self._endpoint]

    def _open(self) -> None:
        try:
            socket = transport.make_socket(
                self._context,
                zmq.DEALER,
                max_frame_bytes=self._max_frame_bytes,
                heartbeat=transport.CLIENTS_HEARTBEAT,
            )
        except (zmq.ZMQError, OSError) as error:
            raise self._unavailable(error) from None
        monitor: HandshakeMonitor | None = None
        try:
            self._security.protect(socket)
            monitor = HandshakeMonitor(socket)
            transport.connect(socket, self.endpoint)
        except BaseException as error:
            if monitor is not None:
                monitor.close()
            socket.close(linger=0)
            if isinstance(error, (zmq.ZMQError, OSError)):
                raise self._unavailable(error) from None
            raise
        self.socket, self._monitor = socket, monitor
        self._inbox = transport.Inbox(socket)
        self.is_open = True

    def _unavailable(self, error: zmq.ZMQError | OSError) -> Unavailable:
        return Unavailable(f"cannot connect to {self.endpoint}: {error.strerror or one_line(error)}")

    def reopen(self) -> None:
        """Connect after a failure, to the current broker or the first one after it for which that works."""
        for _ in self.endpoints[1:]:
            with contextlib.suppress(OffloadError):
                self._open()
                return
            self._endpoint = (self._endpoint + 1) % len(self.endpoints)
        self._open()

    def reset(self) -> None:
        """Disconnect after any failure, so that no lent memory is read any more."""
        lent = [tracker for trackers in self._lent.values() for tracker in trackers]
        self._lent.clear()
        self._shut(linger=0)
        if lent and not _wait_for(lent, _RECLAIM_BY_FORCE):
            log.error(_STILL_READ)

    def failure(self, error: Exception) -> OffloadError:
        """Return the error of a call when driving the connection has failed; a new one for each call."""
        if isinstance(error, OffloadError):
            return type(error)(error.message)
        if isinstance(error, (zmq.ZMQError, OSError)):
            return Unavailable(f"the connection to {self.endpoint} failed: {error.strerror or one_line(error)}")
        return Internal(f"the client failed: {type(error).__name__}: {one_line(error)}")

    def _shut(self, linger: int) -> None:
        if self.is_open:
            self.is_open = False
            with contextlib.suppress(zmq.ZMQError):
                self._monitor.close()
            with contextlib.suppress(zmq.ZMQError):
                self.socket.close(linger=linger)

    def request(
        self, model: str, inputs: Mapping[str, ArrayLike], version: int | Latest | None, timeout: float, priority: int
    ) -> tuple[str, Payload, float, int, int, bytes]:
        """Validate a call and return the positional arguments for `ClientSession.request`.

        Raises InvalidArgument naming the argument or input.
        """
        timeout, wanted, priority, signature = check_call(model, timeout, version, priority)
        return model, self._payload(inputs), timeout, wanted, priority, signature

    def _payload(self, inputs: Mapping[str, ArrayLike]) -> Payload:
        """Return `[header, frame, ...]` of a call's inputs. Large arrays are sent from their own memory.

        Raises InvalidArgument naming the input that cannot be sent.
        """
        arrays = _arrays(inputs)
        payload = encode_tensors(arrays)
        # The session checks the broker's limit.
        most = self._max_frame_bytes
        if max(map(len, payload)) > most:
            for name, array in arrays.items():
                if array.nbytes > most:
                    raise InvalidArgument(f"input {name!r} has {array.nbytes} bytes; max_frame_bytes allows {most}")
            raise InvalidArgument(
                f"the small inputs together have {len(payload[0])} bytes, names included; max_frame_bytes allows {most}"
            )
        return payload

    def reconnect(self, endpoint: int) -> None:
        """Connect to endpoint number `endpoint`, dropping what is queued in the old connection."""
        self._shut(linger=0)
        self._endpoint = endpoint
        self._open()

    def refusal(self) -> str | None:
        """Say why the broker refuses this client, or return None."""
        why = self._monitor.refusal()
        return None if why is None else f"the broker at {self.endpoint} {why}"

    def send(self, action: Send) -> None:
        message = action.message
        try:
            lent = transport.send(self.socket, [wire.encode(message), *action.payload], track=self._reclaims)
        except zmq.Again:
            return  # its key was refused, so the socket takes nothing; the session learns that from `refusal`
        if lent and isinstance(message, wire.Request):
            self._lent.setdefault(message.id, []).extend(lent)

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker]:
        """Return trackers of the input memory of a call that ends now, if libzmq still reads it.

        A worker that replies has read all of the request, so the memory is nearly always free. If it is not, because
        the broker does not read or because the request was sent twice, `reclaim` it before the call ends.
        """
        lent = self._lent.pop(number, None) if self._lent else None
        if lent is None or all(tracker.done for tracker in lent) or _wait_for(lent, _RECLAIM_AT_EASE):
            return ()
        return lent

    def reclaim(self, lent: Sequence[zmq.MessageTracker]) -> None:
        """Reclaim lent memory by closing the socket, which drops anything queued in it, and reconnecting."""
        self.reconnect(self._endpoint)
        if not _wait_for(lent, _RECLAIM_BY_FORCE):
            raise Internal(_STILL_READ)

    def receive(self, most: int = _BATCH) -> list[tuple[wire.ToClient, Sequence[object]]]:
        """Return up to `most` messages that have arrived, after a poll said that there is one.

        Bytes that are not a message are dropped, since they belong to no call.
        """
        messages: list[tuple[wire.ToClient, Sequence[object]]] = []
        for frames in self._inbox.take(min(most, _BATCH)):
            message = _decoded(frames[0])
            if message is not None:
                messages.append((message, frames[1:]))
        return messages

    def waiting(self) -> bool:
        """Whether a message has arrived."""
        return self._inbox.waiting()

    @property
    def emptied(self) -> bool:
        """Whether the last `receive` found that there were no more."""
        return self._inbox.emptied

    def close(self, linger: int = 100) -> None:
        """Disconnect. `linger` is in milliseconds, for a last Cancel."""
        self._shut(linger)
        self._context.term()

    def forget(self) -> None:
        """Let go of the parent's socket in a forked child."""
        self.is_open = False
        self._lent.clear()
        _inherited.append((self._context, self.socket, self._monitor))


def _decoded(frame: bytes) -> wire.ToClient | None:
    try:
        return wire.decode(frame, wire.TO_CLIENT)
    except ProtocolError:
        return None


def _wait_for(trackers: Sequence[zmq.MessageTracker], seconds: float) -> bool:
    """Whether each tracker is done within `seconds`."""
    try:
        for tracker in trackers:
            tracker.wait(seconds)
    except zmq.NotDone:
        return False
    return True


def _arrays(inputs: Mapping[str, ArrayLike]) -> Mapping[str, Array]:
    if type(inputs) is not dict and not isinstance(inputs, Mapping):  # a check against an abstract class is slow
        raise InvalidArgument(f"inputs is a {type(inputs).__name__}; use a mapping of names to arrays")
    for value in inputs.values():
        if type(value) is not np.ndarray:
            return {name: _array(name, value) for name, value in inputs.items()}
    return inputs  # type: ignore[return-value,unused-ignore]  # all values are arrays


def _array(name: str, value: object) -> Array:
    try:
        return array_of(value)
    except ValueError as error:
        raise InvalidArgument(f"input {name!r} is not an array: {error}") from None


def outputs_of(done: Complete, total: float, model: str, *, kept: bool = True) -> Outputs | OffloadError:
    """Decode a Result. Returns the error if its tensors cannot be decoded. `kept`: the caller may keep the outputs."""
    message = done.message
    assert isinstance(message, wire.Result)
    timings = Timings(message.queue_us / 1e6, message.compute_us / 1e6, message.broker_us / 1e6, total)
    try:
        tensors = decode_tensors(done.payload)
    except ProtocolError as error:
        return error
    if kept:
        for name, array in tensors.items():
            if array.nbytes < _SHARED:
                tensors[name] = array.copy()
    return Outputs(tensors, model, message.version, timings)


def answer_of(done: Complete, total: float = 0.0, model: str = "") -> Any:
    """Decode an Answer. Returns the error if its body cannot be decoded."""
    try:
        return decode_body(done.payload, "an Answer")
    except ProtocolError as error:
        return error
