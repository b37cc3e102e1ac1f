"""What a transport is: how one kind of server is called. `zmq_offload.transports.client` does all the rest.

A transport is a class whose instances are `Transport`s: one instance for each server. `infer` passes one request to the
server, in the thread that calls it; many threads may do so at once. What all transports have in common is not its
business: arguments are checked already; arrays are contiguous and little-endian; the version is a number or None;
futures, failover, the choice of a version by its signature, use after `close` and use in a forked child are the
client's.

The rules of `Transport.infer`:

- It returns, or raises an `OffloadError`, by `attempt.until`. That time is for everything: looking a name up,
  connecting (by `attempt.connect_until`), sending, waiting. `attempt.seconds()` is what is left of it.
- Unavailable: no connection, or it broke. DeadlineExceeded: the time is over. ProtocolError: the server's bytes are
  no message of the protocol. A server's own error keeps its code (`zmq_offload.transports.codes`). The client tries the
  next server after these three; inference has no side effects, so a request may be sent twice.
- Where it waits, it can be stopped: `with attempt.stopped_by(connection.abort)`. The function is called in another
  thread, at most once, and must not wait. What then is raised does not matter.
- After it has returned or raised, nothing of it reads the inputs or writes to the outputs.
- Results may be written to the arrays in `request.outputs`, which are then returned. Each array that is returned
  belongs to the caller, and is aligned as NumPy's are.
- At most `options.max_frame_bytes` are taken for an output. ResourceExhausted says which limit was reached.

`tests/transports/contract.py` has these rules as tests, for each transport.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple, Protocol

from zmq_offload.errors import Cancelled, DeadlineExceeded, Unavailable
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.transports.url import Url


class Abilities(NamedTuple):
    """What is possible over a transport. docs/transports.md has the same as a table."""

    cancel: bool
    """A canceled request is taken back: the server hears of it."""
    priority: bool
    """The priority of a request is passed on. Otherwise it is ignored."""
    deadline: bool
    """The server hears how much time is left, and can drop requests that are late."""
    versions: bool
    """A request can be for a version, and a reply says which version ran."""
    shared: bool
    """Requests in flight share a connection. Otherwise each has a connection of its own meanwhile."""
    labels: bool = False
    """A request can be for the version that a label stands for."""


class Options(NamedTuple):
    """The client's options that concern its transports."""

    max_frame_bytes: int
    """Largest output in bytes."""


class Request(NamedTuple):
    """What to run. `version` None is the server's latest, or with a label the version that the label stands for, which
    must have the `signature` if there is one."""

    model: str
    version: int | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] | None
    priority: int
    label: str = ""
    signature: bytes = b""


class Reply(NamedTuple):
    """What came of it. `version` None: the server did not say which ran."""

    outputs: Mapping[str, Array]
    version: int | None


class Served(NamedTuple):
    """A version of a model that a server has; None where versions have no numbers."""

    version: int | None
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


class Transport(Protocol):
    """The way to one server. Threads share it. See the rules in the module's text."""

    ABILITIES: ClassVar[Abilities]

    def __init__(self, url: Url, options: Options) -> None:
        """Take a server's URL, without connecting. Raises InvalidArgument for a URL that cannot be used, and
        FailedPrecondition if a package is missing."""

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model and wait for its outputs."""

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions of a model that the server has, the latest first. Raises as `infer`, and NotFound if there are
        none. Only the versions that are looked at need be asked for."""

    def close(self) -> None:
        """Disconnect. All attempts have been stopped before; some may not have returned yet."""

    def forget(self) -> None:
        """Let go of all connections in a forked child, without touching them: the parent uses them. The transport is
        not used any more. Must not wait for a lock: a thread of the parent may have held it."""


class Cancellation:
    """Whether a call is canceled, and what stops the attempt that it waits for."""

    __slots__ = ("_lock", "_stop", "canceled")

    def __init__(self) -> None:
        self.canceled = False
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Stop the attempt in hand, and let no other begin."""
        with self._lock:
            self.canceled = True
            stop, self._stop = self._stop, None
            if stop is not None:
                stop()

    @contextmanager
    def stopped_by(self, stop: Callable[[], object]) -> Iterator[None]:
        """In the body, `stop` is what stops the attempt. After the body it is not called any more."""
        with self._lock:
            if self.canceled:
                raise Cancelled("the call was canceled")
            self._stop = stop
        try:
            yield
        finally:
            with self._lock:
                self._stop = None


class Attempt:
    """One try of a call at one server: the time that it has, and what stops it. Times are those of `time.monotonic`."""

    __slots__ = ("_cancellation", "by_close", "connect_until", "until")

    def __init__(self, until: float, connect_until: float, cancellation: Cancellation, by_close: bool = False) -> None:
        self.until, self.connect_until = until, connect_until
        self.by_close = by_close
        """Only `Transport.close` stops the attempt: no caller has a future of it. So it need not use `stopped_by`, if
        closing ends what waits."""
        self._cancellation = cancellation

    @property
    def canceled(self) -> bool:
        return self._cancellation.canceled

    def seconds(self) -> float:
        """The seconds that are left, more than 0. Raises DeadlineExceeded, or Cancelled."""
        if self.canceled:
            raise Cancelled("the call was canceled")
        left = self.until - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("deadline exceeded")
        return left

    def seconds_to_connect(self) -> float:
        """The seconds that are left to connect. Raises as `seconds`, and Unavailable."""
        self.seconds()
        left = self.connect_until - time.monotonic()
        if left <= 0:
            raise Unavailable("the server cannot be reached in time")
        return left

    @contextmanager
    def stopped_by(self, stop: Callable[[], object]) -> Iterator[None]:
        """In the body, `stop` is what stops the attempt, called from another thread."""
        with self._cancellation.stopped_by(stop):
            yield
