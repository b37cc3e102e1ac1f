"""One connection to a server, with calls in flight: they go out in order, and answers come back in order.

Of the threads that wait for an answer, one drives: it sends for all and receives for all. When it leaves, the next one
drives. A call that is given up after it was sent leaves its answer behind, which is thrown away when it comes. The
connection is not dropped for that: the server would first finish the call, and then load the library again.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from zmq_offload.errors import OffloadError, ProtocolError, Unavailable, one_line
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.tvmrpc import wire
from zmq_offload.transports.tvmrpc.incoming import Incoming
from zmq_offload.transports.tvmrpc.leaving import leave
from zmq_offload.transports.tvmrpc.values import Buffer

AHEAD = 4
"""Calls at the server at a time. One more than runs hides the network; those that wait here can be taken back."""

OWED = 30.0
"""Seconds after which a connection is dropped whose server still owes the answer of a call that was given up."""

_PIECES = 64
"""Buffers that are sent at once."""


Late: TypeAlias = "Callable[[Sequence[memoryview]], Sequence[bytes]]"
"""Takes the answers of a call that was given up, none if it was not sent. Returns packets that free what it would have
freed, or what the answers hold on the server."""


class _Call:
    """A call at a session: packets, of which each is answered by one. `given_up`: when its caller left, which throws
    its answers away."""

    __slots__ = ("answers", "event", "expected", "given_up", "late", "left")

    def __init__(self, buffers: Sequence[Buffer], expected: int, late: Late | None) -> None:
        self.left = [view for buffer in buffers if (view := memoryview(buffer).cast("B")).nbytes]
        self.event = threading.Event()
        self.expected = expected
        self.answers: list[memoryview] = []
        self.late = late
        self.given_up: float | None = None

    @property
    def answered(self) -> bool:
        return len(self.answers) == self.expected


class Session:
    """A connection on which a session has begun. Threads share it. `most`: bytes of an answer.

    `prompt`: tell the server at once of each answer that came. TVM's server sends the answers of several packets by
    Nagle's algorithm: the second waits until the first is acknowledged, which takes 40 ms otherwise.
    """

    def __init__(self, connection: socket.socket, address: str, most: int, prompt: bool = False) -> None:
        self._socket, self._address = connection, address
        self._incoming = Incoming(connection, address, most)
        self._prompt = prompt
        connection.setblocking(False)
        self._lock = threading.RLock()
        self._waiting: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._driver: _Call | None = None
        self._failure: OffloadError | None = None
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()

    @property
    def usable(self) -> bool:
        """Whether calls can be made."""
        with self._lock:
            if self._driver is None:
                self._receive()  # what came since the last call
            first = self._sent[0] if self._sent else None
            if first is not None and first.given_up is not None and time.monotonic() - first.given_up > OWED:
                self._fail(Unavailable(f"the TVM RPC server at {self._address} is silent for {OWED:.0f} s"))
            return self._failure is None

    def call(
        self,
        buffers: Sequence[Buffer],
        attempt: Attempt,
        expected: int = 1,
        *,
        late: Late | None = None,
        first: bool = False,
    ) -> list[memoryview]:
        """Send packets, and return those that answer them, without their lengths. `first`: before those that wait."""
        call = _Call(buffers, expected, late)

        def stop() -> None:
            call.event.set()
            self._wake()

        with self._lock:
            if self._failure is not None:
                raise _again(self._failure)
            if first:
                self._waiting.appendleft(call)
            else:
                self._waiting.append(call)
        try:
            with attempt.stopped_by(stop):
                return self._awaited(call, attempt)
        except BaseException:
            self._give_up(call)
            raise

    def close(self) -> None:
        """End the session. The server is told, and gets time to send what it owes: TVM's own server ends, and does not
        say so, when it cannot send."""
        with self._lock:
            whole = all(not call.left for call in self._sent)
            owed = bool(self._sent)
            self._fail(Unavailable("the connection was closed"))
        try:
            if whole:
                self._socket.send(wire.shutdown())
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            owed = False
        if owed:
            leave(self._socket)
        else:
            self._socket.close()

    # --- a call ---------------------------------------------------------------------------------------------

    def _awaited(self, call: _Call, attempt: Attempt) -> list[memoryview]:
        while not call.answered:
            seconds = attempt.seconds()
            with self._lock:
                if self._failure is not None:
                    raise _again(self._failure)
                leads = self._driver is None and not call.answered
                if leads:
                    self._driver = call
                elif not call.answered:
                    call.event.clear()
            if leads:
                try:
                    self._drive(call, attempt)
                finally:
                    self._resign()
            else:
                self._wake()  # there is more to send
                call.event.wait(seconds)
        return call.answers

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
                self._clean_up(call)
                return
            call.given_up = time.monotonic()
            if call.answered:
                self._clean_up(call)
            else:
                call.left = [memoryview(bytes(view)) for view in call.left]  # the arrays are the caller's again

    def _clean_up(self, call: _Call) -> None:
        """Free on the server what a call left there that was given up. Needs the lock; the next call sends it."""
        packets = [] if call.late is None else call.late(call.answers)
        if packets:
            cleaning = _Call(packets, len(packets), None)
            cleaning.given_up = time.monotonic()
            self._waiting.append(cleaning)

    # --- driving --------------------------------------------------------------------------------------------

    def _drive(self, call: _Call, attempt: Attempt) -> None:
        while not call.answered:
            seconds = attempt.seconds()
            with self._lock:
                if self._failure is not None:
                    return
                self._send()
                unsent = any(one.left for one in self._sent)
            if self._prompt:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            self._poll.register(self._wake_in, select.POLLIN)
            ready = dict(self._poll.poll(seconds * 1000))
            if self._wake_in in ready:
                os.read(self._wake_in, 4096)
            if ready.get(self._socket.fileno(), 0) & ~select.POLLOUT:
                self._receive()

    def _resign(self) -> None:
        with self._lock:
            self._driver = None
            for one in (*self._sent, *self._waiting):
                if one.given_up is None and not one.answered:
                    one.event.set()
                    break

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake
            os.write(self._wake_out, b"\0")

    def _send(self) -> None:
        """Send what can be sent. Needs the lock."""
        try:
            while True:
                call = self._sent[-1] if self._sent and self._sent[-1].left else None
                if call is None:
                    if not self._waiting or len(self._sent) >= AHEAD:
                        return
                    call = self._waiting.popleft()
                    if call.given_up is not None:
                        call.given_up = time.monotonic()  # its answers are owed from now on
                    self._sent.append(call)
                count = self._socket.sendmsg(call.left[:_PIECES])
                while count:
                    first = call.left[0]
                    if count < first.nbytes:
                        call.left[0] = first[count:]
                        break
                    count -= first.nbytes
                    del call.left[0]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(self._broken(error))

    def _receive(self) -> None:
        """Receive what is there. Only the driver does, or who holds the lock while there is none."""
        try:
            while (packet := self._incoming.packet()) is not None:
                with self._lock:
                    self._take(packet)
        except OffloadError as error:
            with self._lock:
                self._fail(error)
        except OSError as error:
            with self._lock:
                self._fail(self._broken(error))

    def _take(self, packet: memoryview) -> None:
        """An answer is there. Needs the lock."""
        call = self._sent[0] if self._sent else None
        if call is None or (call.left and len(call.answers) + 1 == call.expected):
            raise ProtocolError(f"the TVM RPC server at {self._address} answers what nobody asked")
        call.answers.append(packet)
        if call.answered:
            self._sent.popleft()
            call.event.set()
            if call.given_up is not None:
                self._clean_up(call)

    def _broken(self, error: OSError) -> Unavailable:
        why = error.strerror or one_line(error)
        return Unavailable(f"the connection to the TVM RPC server at {self._address} failed: {why}")

    def _fail(self, error: OffloadError) -> None:
        """End all calls. Needs the lock."""
        self._failure = self._failure or error
        for call in (*self._sent, *self._waiting):
            call.event.set()
        self._wake()

    def __del__(self) -> None:
        for end in (self._wake_in, self._wake_out):
            os.close(end)


def _again(error: OffloadError) -> OffloadError:
    """The same error, a new one for each call."""
    return type(error)(error.message)
