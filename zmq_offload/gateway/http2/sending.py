"""What goes out on a connection: headers and data of its streams, as far as flow control lets them. Pure.

Data is neither joined nor copied: the caller's parts are sent as they are, or as views.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode
from zmq_offload.gateway.http2.frames import HEAD, LARGEST_WINDOW
from zmq_offload.gateway.http2.settings import DEFAULT_WINDOW, PeerSettings
from zmq_offload.gateway.http2.streams import Stream

TURN = 256 * 1024
"""When streams wait for the connection's window, each sends at most this much before the next one's turn."""


class Sender:
    """Collects in `out` what is to be written.

    `size` is that of the data in it, `held` that of all data that flow control holds back.
    """

    def __init__(self) -> None:
        self.out: list[Buffer] = []
        self.size = 0
        self.held = 0
        self.peer = PeerSettings()
        self._window = DEFAULT_WINDOW
        self._waiting: dict[int, Stream] = {}

    def headers(self, number: int, block: bytes, end: bool) -> None:
        """A head, or trailers if `end`. The blocks of this end are small: one frame holds them."""
        flags = frames.END_HEADERS | frames.END_STREAM if end else frames.END_HEADERS
        self.out.append(HEAD.pack(len(block) << 8 | frames.HEADERS, flags, number) + block)

    def data(self, stream: Stream, parts: Iterable[Buffer]) -> None:
        """Send data, after what is held back already."""
        size = 0
        added = []
        for part in parts:
            length = part.nbytes if isinstance(part, memoryview) else len(part)
            if length:
                size += length
                added.append(part)
        if not stream.held and size <= stream.window and size <= self._window and size <= self.peer.frame:
            if size:
                stream.window -= size
                self._window -= size
                self.size += size
                self.out.append(HEAD.pack(size << 8, 0, stream.number))
                self.out += added
            return
        stream.held += size
        self.held += size
        stream.parts += added
        self._waiting[stream.number] = stream
        self._advance(stream, LARGEST_WINDOW)

    def forget(self, stream: Stream) -> None:
        """Drop what is held back."""
        if self._waiting.pop(stream.number, None):
            self.held -= stream.held

    def widen(self, stream: Stream, increment: int) -> bool:
        """A stream's window grows; whether all that was held back is sent now."""
        stream.window += increment
        return stream.held > 0 and self._advance(stream, LARGEST_WINDOW)

    def widen_all(self, increment: int) -> list[Stream]:
        """The connection's window grows. Returns the streams of which all is sent now."""
        self._window += increment
        if self._window > LARGEST_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {self._window}")
        drained = []
        turns = deque(self._waiting.values())
        while turns and self._window > 0:
            stream = turns.popleft()
            if self._advance(stream, TURN):
                drained.append(stream)
            elif stream.window > 0:
                turns.append(stream)
                self._waiting[stream.number] = self._waiting.pop(stream.number)
        return drained

    def apply(self, pairs: list[tuple[int, int]], streams: Iterable[Stream]) -> list[Stream]:
        """Take over the peer's settings and confirm them. Returns the streams of which all is sent now."""
        before = self.peer.window
        self.peer.apply(pairs)
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        change = self.peer.window - before
        drained = []
        if change:
            for stream in streams:
                if stream.window + change > LARGEST_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {self.peer.window}")
                if self.widen(stream, change):
                    drained.append(stream)
        return drained

    def _advance(self, stream: Stream, most: int) -> bool:
        """Send at most `most` bytes of what is held back; whether all of it is sent."""
        while stream.held and most > 0:
            size = min(stream.held, stream.window, self._window, self.peer.frame, most)
            if size <= 0:
                break
            stream.held -= size
            self.held -= size
            stream.window -= size
            self._window -= size
            most -= size
            self.size += size
            self.out.append(HEAD.pack(size << 8, 0, stream.number))
            self._move(stream.parts, size)
        if stream.held:
            return False
        self._waiting.pop(stream.number, None)
        return True

    def _move(self, parts: list[Buffer], size: int) -> None:
        """Move `size` bytes from the parts to the output."""
        while size:
            view = memoryview(parts[0]).cast("B")
            if len(view) > size:
                parts[0] = view[size:]
                view = view[:size]
            else:
                del parts[0]
            self.out.append(view)
            size -= len(view)
