"""One connection of a server: bytes in, events out; commands in, bytes out. Pure: it knows no socket and no clock.

Data is passed on as it arrives, also in the midst of a frame, and is not collected here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic

from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode, StreamFault
from zmq_offload.gateway.http2.events import Begun, Data, Drained, Event, Failed, Head, Reset
from zmq_offload.gateway.http2.frames import LARGEST_ID, LARGEST_WINDOW
from zmq_offload.gateway.http2.headers import Decoder, RequestHead
from zmq_offload.gateway.http2.reading import Reader
from zmq_offload.gateway.http2.sending import Sender
from zmq_offload.gateway.http2.settings import DEFAULT_WINDOW, Limits
from zmq_offload.gateway.http2.streams import Stream

_REMEMBERED = 1024
"""Streams that this end reset, of which frames may be on their way."""

_LEFT_OVER = 64 * 1024
"""Data that a peer may send on a stream that this end has ended, before it is told to stop.

To tell it at once is allowed, but clients do not expect it: curl takes it for an error.
"""

_TINY = 256
"""A peer that lets held data go on in steps below this makes work."""

_DRAINING = b"draining"


class Connection(Reader, Generic[Head]):
    """The server's end of a connection.

    `interpret` makes of a request's head what the owner needs; it may raise StreamFault. Its result is used again for
    a head that is repeated. All events of a call are to be handled before the next call of `receive` or `arrived`.
    Commands for a stream that is over do nothing.

    Attributes
    ----------
    failed : bool
        Whether the peer broke a rule, so that the connection is over.
    greeted : bool
        Whether the peer has begun to speak HTTP/2.
    """

    def __init__(self, interpret: Callable[[RequestHead], Head], limits: Limits) -> None:
        super().__init__(limits)
        self.failed = False
        self._events: list[Event[Head]] = []
        self._decoder = Decoder(interpret, limits.header_block)
        self._sender = Sender()
        self._streams: dict[int, Stream] = {}
        self._done: dict[int, int] = {}  # streams that only this end has ended, and what may still arrive of them
        self._forgiven: dict[int, None] = {}
        self._last = 0
        self._closing = False
        self._allowed = LARGEST_WINDOW
        self._block: tuple[int, int, bytearray] = (0, 0, bytearray())
        # The stream of the DATA frame that arrives (None: nobody wants it), and whether the frame ends the stream.
        self._target: Stream | None = None
        self._ends = False
        start = frames.settings(limits.settings()) + frames.window_update(0, LARGEST_WINDOW - DEFAULT_WINDOW)
        self._sender.out.append(start)

    # What the owner asks and does.

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def finished(self) -> bool:
        """Whether nothing more happens: the connection failed, or it takes no streams and has none."""
        return self.failed or (self._closing and not self._streams)

    @property
    def size(self) -> int:
        """The size of the data that `take` returns, without frames' heads and other frames."""
        return self._sender.size

    def take(self) -> list[Buffer]:
        """What is to be written, in order."""
        out, self._sender.out = self._sender.out, []
        self._sender.size = 0
        return out

    def tick(self) -> None:
        """Time has passed: what the peer may do in a certain time, it may do again."""
        self._floods.tick()

    def receive(self, data: Buffer) -> list[Event[Head]]:
        """Take bytes of the peer. Raises nothing: a broken rule is an event."""
        events = self._events = []
        if not self.failed:
            try:
                self._read(data)
            except ConnectionFault as fault:
                self._sender.out.append(frames.goaway(self._last, fault.code, str(fault)))
                self.failed = self._closing = True
                self._streams.clear()
                self._done.clear()
                self._sender.held = 0
                events.append(Failed(fault.code, str(fault)))
        return events

    def arriving(self) -> tuple[int, int] | None:
        """The stream and the size of the data that comes next, if the head of its frame is here already.

        The owner may receive up to this size of data elsewhere. It then calls `arrived` instead of `receive`.
        """
        return (self._target.number, self._left) if self._target and self._left else None

    def arrived(self, size: int) -> list[Event[Head]]:
        """The owner received data of the stream that `arriving` named. The event of its end has no data."""
        events = self._events = []
        self._left -= size
        if not self._left and not self._padding:
            self._data(b"", True)
        return events

    def headers(self, number: int, block: bytes) -> None:
        """Send the head of a response."""
        if number in self._streams:
            self._sender.headers(number, block, False)

    def data(self, number: int, parts: Iterable[Buffer]) -> bool:
        """Send data; whether all of it is sent. If not, the event `Drained` says when it is."""
        if stream := self._streams.get(number):
            self._sender.data(stream, parts)
            return not stream.held
        return True

    def end(self, number: int, trailers: bytes) -> None:
        """End a response after its data, be it `Drained` or not. Without a head before, the trailers are the head."""
        if stream := self._streams.get(number):
            stream.trailers = trailers
            if not stream.held:
                self._end(stream, trailers)

    def reset(self, number: int, code: ErrorCode) -> None:
        """End a stream at once."""
        if stream := self._streams.get(number):
            self._abandon(stream, code)

    def allow(self, number: int, size: int) -> None:
        """Let the peer send at least `size` bytes on a stream from now on."""
        stream = self._streams.get(number)
        if stream and not stream.ended and (more := min(size, LARGEST_WINDOW) - stream.allowed) > 0:
            stream.allowed += more
            self._sender.out.append(frames.window_update(number, more))

    def allowed(self, number: int) -> int:
        """How many bytes the peer may still send on a stream."""
        stream = self._streams.get(number)
        return stream.allowed if stream else 0

    @property
    def all_held(self) -> int:
        """How many bytes flow control holds back on all streams."""
        return self._sender.held

    def held(self, number: int) -> int:
        """How many bytes flow control holds back on a stream."""
        stream = self._streams.get(number)
        return stream.held if stream else 0

    def drain(self) -> None:
        """Take no new streams, except those that the peer begins before it hears of it. When `finished`, close."""
        if not self._closing:
            notice = frames.goaway(LARGEST_ID, ErrorCode.NO_ERROR) + frames.frame(frames.PING, 0, 0, _DRAINING)
            self._sender.out.append(notice)

    def close(self, code: ErrorCode, reason: str = "") -> None:
        """Take no new streams from now on. Those that are open go on."""
        if not self._closing:
            self._closing = True
            self._sender.out.append(frames.goaway(self._last, code, reason))

    # DATA.

    def _data_begun(self, number: int, flags: int, length: int, size: int) -> None:
        self._allowed -= length
        if self._allowed < LARGEST_WINDOW >> 1:
            self._sender.out.append(frames.window_update(0, LARGEST_WINDOW - self._allowed))
            self._allowed = LARGEST_WINDOW
        stream = self._find(number, "DATA", closed=ErrorCode.STREAM_CLOSED)
        self._ends = bool(flags & frames.END_STREAM)
        if number in self._done:
            self._left_over(number, length)
        if not size and not self._ends:
            self._floods.idle_frame()
        if stream:
            stream.allowed -= length
            if stream.expected is not None:
                stream.expected -= size
            fault = ErrorCode.NO_ERROR
            if stream.ended:
                fault = ErrorCode.STREAM_CLOSED
            elif stream.allowed < 0:
                fault = ErrorCode.FLOW_CONTROL_ERROR
            elif stream.expected and (stream.expected < 0 or self._ends):
                fault = ErrorCode.PROTOCOL_ERROR
            if fault:
                self._break(stream, fault)
                stream = None
        self._target = stream

    def _data(self, data: Buffer, last: bool) -> None:
        if stream := self._target:
            ended = stream.ended = last and self._ends
            if len(data) or ended:
                self._events.append(Data(stream.number, data, ended))

    def _skip(self, length: int) -> None:
        self._target, self._left, self._padding = None, 0, length

    # Other frames.

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            if not number & 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {number}")
            block = frames.unpadded(flags, payload)
            if flags & frames.END_HEADERS:
                self._headers(number, flags, block)
            else:
                self._within_block = True
                self._block = (number, flags, bytearray(block))
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(number, frames.read_number(payload))
        elif kind == frames.RST_STREAM:
            code = frames.read_number(payload)
            self._done.pop(number, None)
            if stream := self._find(number, "RST_STREAM"):
                self._floods.reset()
                self._remove(stream)
                self._events.append(Reset(number, code))
        elif kind == frames.CONTINUATION:
            self._continuation(number, flags, payload)
        elif kind == frames.PRIORITY:
            self._floods.idle_frame()  # RFC 9113 keeps this frame and gives it no meaning
            if not number or len(payload) != 5:
                code = ErrorCode.FRAME_SIZE_ERROR if number else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFault(code, f"PRIORITY with {len(payload)} bytes on stream {number}")
        elif kind == frames.PUSH_PROMISE or number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} on stream {number}")
        elif kind == frames.PING:
            self._ping(flags, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        else:  # GOAWAY: the streams that are open go on
            self._floods.idle_frame()
            frames.check_goaway(payload)

    def _continuation(self, number: int, flags: int, payload: bytes) -> None:
        self._floods.idle_frame()
        first, first_flags, block = self._block
        block += payload
        if number != first:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"CONTINUATION on stream {number}, not {first}")
        if len(block) > self._limits.header_block:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._within_block = False
            self._headers(number, first_flags, bytes(block))

    def _headers(self, number: int, flags: int, block: bytes) -> None:
        ended = bool(flags & frames.END_STREAM)
        if number <= self._last:
            self._trailers(number, ended, block)
            return
        self._last = number
        try:
            if self._closing or len(self._streams) + len(self._done) >= self._limits.streams:
                self._decoder.skip(block)
                raise StreamFault(ErrorCode.REFUSED_STREAM, "too many streams, or the connection ends")
            head, expected = self._decoder.request(block)
            if ended and expected:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, "content-length without data")
        except StreamFault as fault:
            self._floods.reset()
            self._refuse(number, fault.code)
            return
        self._streams[number] = Stream(
            number, allowed=self._limits.window, window=self._sender.peer.window, expected=expected, ended=ended
        )
        self._events.append(Begun(number, head, ended))

    def _trailers(self, number: int, ended: bool, block: bytes) -> None:
        try:
            self._decoder.trailers(block)
            fault = ErrorCode.NO_ERROR if ended else ErrorCode.PROTOCOL_ERROR
        except StreamFault as malformed:
            fault = malformed.code
        if stream := self._find(number, "HEADERS", closed=ErrorCode.STREAM_CLOSED):
            if stream.ended:
                fault = ErrorCode.STREAM_CLOSED
            elif stream.expected:
                fault = ErrorCode.PROTOCOL_ERROR
            if fault:
                self._break(stream, fault)
            else:
                stream.ended = True
                self._events.append(Data(number, b"", True))
        elif ended:
            self._done.pop(number, None)

    def _window_update(self, number: int, increment: int) -> None:
        increment &= LARGEST_WINDOW
        stream = self._find(number, "WINDOW_UPDATE") if number else None
        if stream:
            if not increment or stream.window + increment > LARGEST_WINDOW:
                self._break(stream, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
                return
            if stream.held and increment < _TINY:
                self._floods.idle_frame()
            if self._sender.widen(stream, increment):
                self._drained([stream])
        elif not number:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self._drained(self._sender.widen_all(increment))

    def _settings(self, flags: int, payload: bytes) -> None:
        self._floods.idle_frame()
        if not flags & frames.ACK:
            self._drained(self._sender.apply(frames.read_settings(payload), self._streams.values()))
        elif payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS confirm and set")

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a PING frame has {len(payload)} bytes")
        self._floods.idle_frame()
        if not flags & frames.ACK:
            self._sender.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAINING:
            self.close(ErrorCode.NO_ERROR)

    # Streams.

    def _find(self, number: int, kind: str, closed: ErrorCode = ErrorCode.NO_ERROR) -> Stream | None:
        """An open stream, or None if a frame for it is to be ignored. `closed`: such a frame may not follow its end."""
        stream = self._streams.get(number)
        if not stream:
            if not number & 1 or number > self._last:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{kind} on stream {number}, which has not begun")
            if closed and number not in self._forgiven and number not in self._done:
                raise ConnectionFault(closed, f"{kind} on stream {number}, which has ended")
        return stream

    def _end(self, stream: Stream, trailers: bytes) -> None:
        self._sender.headers(stream.number, trailers, True)
        self._remove(stream)
        if not stream.ended:
            self._done[stream.number] = _LEFT_OVER

    def _left_over(self, number: int, length: int) -> None:
        """Data arrives on a stream that this end has ended."""
        self._done[number] -= length
        if self._ends:
            del self._done[number]
        elif self._done[number] < 0:
            del self._done[number]
            self._refuse(number, ErrorCode.NO_ERROR)

    def _drained(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            self._events.append(Drained(stream.number))
            if stream.trailers is not None:
                self._end(stream, stream.trailers)

    def _break(self, stream: Stream, code: ErrorCode) -> None:
        """The peer broke a rule on a stream."""
        self._floods.reset()
        self._abandon(stream, code)
        self._events.append(Reset(stream.number, code))

    def _abandon(self, stream: Stream, code: ErrorCode) -> None:
        self._remove(stream)
        self._refuse(stream.number, code)

    def _refuse(self, number: int, code: ErrorCode) -> None:
        self._sender.out.append(frames.reset(number, code))
        self._forgiven[number] = None
        if len(self._forgiven) > _REMEMBERED:
            del self._forgiven[next(iter(self._forgiven))]

    def _remove(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self._sender.forget(stream)
        if self._target is stream:
            self._target = None
