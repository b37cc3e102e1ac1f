"""What all connections to brokers share: the options, the session, and the tensors of calls."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import zmq

from zmq_offload.client.arguments import arrays_of, check_call, check_input_bytes, check_max_frame_bytes, check_policy
from zmq_offload.client.results import Outputs, Timings
from zmq_offload.client.session import ClientSession, Complete, Payload, RetryPolicy, Send
from zmq_offload.client.spread import in_order
from zmq_offload.errors import Internal, InvalidArgument, OffloadError, ProtocolError, Status, Unavailable, one_line
from zmq_offload.net.sharedmemory.sharing import Sharing, Unreadable
from zmq_offload.net.stream import Stream
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import Packed
from zmq_offload.protocol.payload import Array, decode_body, decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take by default."""

_SHARED = 8192
"""Bytes of libzmq's receive buffers, which small frames share. A smaller output is copied, so that keeping it does not
keep the whole buffer. So is one whose memory cannot be written to, as outputs are their caller's."""


class Link(ABC):
    """A connection to one of several brokers. Not thread-safe.

    `endpoints` are checked (`check_brokers`). Raises InvalidArgument for numbers that cannot be used.
    """

    is_open = False

    def __init__(self, endpoints: Sequence[str], policy: RetryPolicy | None, max_frame_bytes: int) -> None:
        self._max_frame_bytes = check_max_frame_bytes(max_frame_bytes)
        self.policy = policy = check_policy(policy)
        token = os.urandom(wire.SESSION_BYTES)
        self.endpoints = in_order(endpoints, token, spread=policy.spread)
        self.session = ClientSession(token, self.endpoints, policy, self._max_frame_bytes)
        self._endpoint = 0

    @property
    def endpoint(self) -> str:
        """Endpoint of the current broker."""
        return self.endpoints[self._endpoint]

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

    def failure(self, error: Exception) -> OffloadError:
        """Return the error of a call when driving the connection has failed; a new one for each call."""
        if isinstance(error, OffloadError):
            return type(error)(error.message)
        if isinstance(error, (zmq.ZMQError, OSError)):
            return Unavailable(f"the connection to {self.endpoint} failed: {error.strerror or one_line(error)}")
        return Internal(f"the client failed: {type(error).__name__}: {one_line(error)}")

    def request(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        version: int | Latest | None,
        timeout: float,
        priority: int,
        label: str | None = None,
    ) -> tuple[str, Payload, float, int, int, bytes, str]:
        """Validate a call and return the positional arguments for `ClientSession.request`.

        Raises InvalidArgument naming the argument or input.
        """
        timeout, wanted, priority, signature, label = check_call(model, timeout, version, priority, label)
        return model, self.payload(arrays_of(inputs)), timeout, wanted, priority, signature, label

    def payload(self, arrays: Mapping[str, Array]) -> Payload:
        """Return `[header, frame, ...]` of a call's inputs. Large arrays are sent from their own memory.

        Raises InvalidArgument naming the input that cannot be sent.
        """
        payload = encode_tensors(arrays)
        # The session checks the broker's limit.
        if max(map(len, payload)) > self._max_frame_bytes:
            _refuse_size(
                len(payload[0]), ((name, array.nbytes) for name, array in arrays.items()), self._max_frame_bytes
            )
        return payload

    def packed_request(
        self,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        label: str | None = None,
    ) -> tuple[str, Payload, float, int, int, bytes, str]:
        """The same as `request` for inputs that are frames already."""
        return checked_request(model, inputs, version, timeout, priority, label, self._max_frame_bytes)

    @abstractmethod
    def _open(self) -> None:
        """Begin to connect to the current endpoint. Raises OffloadError if that is not possible."""

    @abstractmethod
    def send(self, action: Send) -> None:
        """Send, now, with the next `flush`, or when there is a connection."""

    def flush(self) -> None:  # noqa: B027  (libzmq sends by itself)
        """Send what was gathered."""

    @abstractmethod
    def receive(self, most: int) -> list[tuple[wire.ToClient, Sequence[object]]]:
        """Return messages that have arrived, about `most` at once."""

    @abstractmethod
    def refusal(self) -> str | None:
        """Say why the broker refuses this client, or return None."""

    @abstractmethod
    def _shut(self) -> None:
        """Disconnect, dropping what is queued."""

    def reconnect(self, endpoint: int) -> None:
        """Connect to endpoint number `endpoint`, dropping what is queued in the old connection."""
        self._shut()
        self._endpoint = endpoint
        self._open()

    @abstractmethod
    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker | Stream]:
        """A call ends. Return what still reads its memory and has to be stopped."""

    @abstractmethod
    def reclaim(self, lent: Sequence[zmq.MessageTracker | Stream]) -> None:
        """Reclaim lent memory by connecting anew."""

    @abstractmethod
    def reset(self) -> None:
        """Disconnect after any failure."""

    @abstractmethod
    def close(self, linger: int = 100) -> None:
        """Disconnect. `linger` is in milliseconds, for a last Cancel."""

    @abstractmethod
    def forget(self) -> None:
        """Let go of the parent's connection in a forked child."""


class Watched(Link):
    """A connection that an event loop watches, as `AsyncDriver` uses it."""

    gathers = False
    """Whether `send` does little, and `flush` sends all that was gathered."""
    way: object
    """What leads to the broker now. Another after `reconnect`."""

    @abstractmethod
    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        """Let the loop call `ready` whenever messages have arrived."""

    @abstractmethod
    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call it no more."""

    @abstractmethod
    def waiting(self) -> bool:
        """Whether a message has arrived."""

    @property
    @abstractmethod
    def emptied(self) -> bool:
        """Whether the last `receive` found that there were no more."""


class Polled(Link):
    """A connection that a thread waits for, as `Exchange` uses it."""

    @property
    def due(self) -> float:
        """When `wait` is to be called at the latest, so that the connection stays alive or is made again."""
        return math.inf

    @property
    def is_idle(self) -> bool:
        """Whether it can be left alone until it is `due`, or somebody needs it."""
        return True

    @abstractmethod
    def wake_by(self, descriptor: int) -> None:
        """Let `wait` return when this descriptor can be read."""

    @abstractmethod
    def wait(self, seconds: float | None) -> tuple[bool, bool]:
        """Wait, at most so long. Whether messages have arrived, and whether the descriptor of `wake_by` is ready."""


def checked_request(
    model: str, inputs: Packed, version: int | None, timeout: float, priority: int, label: str | None, most: int
) -> tuple[str, Payload, float, int, int, bytes, str]:
    """The positional arguments for `ClientSession.request`, for inputs that are frames of at most `most` bytes.

    Raises InvalidArgument naming the argument or input.
    """
    timeout, wanted, priority, signature, name = check_call(model, timeout, version, priority, label)
    sizes = inputs.layout.sizes
    if max(sizes) > most:
        _refuse_size(sizes[0], ((place.name, place.stop - place.start) for place in inputs.layout.places), most)
    return model, inputs.frames, timeout, wanted, priority, signature, name


def _refuse_size(head: int, inputs: Iterable[tuple[str, int]], most: int) -> NoReturn:
    """Raise the error of inputs, of which the bytes are given, with a frame that is too large."""
    check_input_bytes(inputs, most)
    raise InvalidArgument(f"the small inputs together have {head} bytes, names included; max_frame_bytes allows {most}")


def decoded(frame: bytes) -> wire.ToClient | None:
    """Decode an envelope. None if these bytes are not a message: they belong to no call."""
    try:
        return wire.decode(frame, wire.TO_CLIENT)
    except ProtocolError:
        return None


def in_place(
    sharing: Sharing | None, message: wire.ToClient, payload: Sequence[Any]
) -> tuple[wire.ToClient, Sequence[object]]:
    """A message and its payload, of which tensors in shared memory are read where they lie."""
    if sharing is None or type(message) is not wire.Result:
        return message, payload
    try:
        return message, sharing.read(payload)
    except Unreadable as error:
        return lost(message, error), ()


def lost(message: wire.Result, why: Unreadable) -> wire.Error:
    """What a Result becomes whose outputs cannot be read: their owner ended just now."""
    text = f"the outputs were lost: {why}"
    return wire.Error(message.session, message.id, Status.UNAVAILABLE.value, text)


def result_of(done: Complete, total: float) -> tuple[int, Timings]:
    """Version and timings of a Result. `total` is in seconds."""
    message = done.message
    assert isinstance(message, wire.Result)
    timings = Timings(message.queue_us / 1e6, message.compute_us / 1e6, message.broker_us / 1e6, total)
    return message.version, timings


def outputs_of(done: Complete, total: float, model: str) -> Outputs | OffloadError:
    """Decode a Result. Returns the error if its tensors cannot be decoded."""
    outputs = views_of(done, total, model)
    if isinstance(outputs, Outputs):
        for name, array in outputs.items():
            if array.nbytes < _SHARED or type(array.base) is bytes:
                outputs[name] = array.copy()
    return outputs


def views_of(done: Complete, total: float, model: str) -> Outputs | OffloadError:
    """As `outputs_of`. The outputs are views of the message: to be copied, not to be kept or written to."""
    version, timings = result_of(done, total)
    try:
        return Outputs(decode_tensors(done.payload), model, version, timings)
    except ProtocolError as error:
        return error


def answer_of(done: Complete, total: float = 0.0, model: str = "") -> Any:
    """Decode an Answer. Returns the error if its body cannot be decoded."""
    try:
        return decode_body(done.payload, "an Answer")
    except ProtocolError as error:
        return error
