"""Bytes to frames (RFC 9113, sections 3.4 and 4). Pure.

The payload of a DATA frame is passed on as it arrives, and so is never held here. Other frames are small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode
from zmq_offload.gateway.http2.floods import Floods
from zmq_offload.gateway.http2.frames import HEAD, LARGEST_ID, NUMBER, PREFACE
from zmq_offload.gateway.http2.settings import Limits


class Reader(ABC):
    """The reading half of a connection. Its methods raise ConnectionFault."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._floods = Floods(limits)
        self._small = min(limits.frame, limits.header_block)
        self._partial = b""
        self._prefaced = False
        self.greeted = False  # the first frame is here
        self._within_block = False
        # What is still to come of the DATA frame that arrives, or of a frame that nobody reads.
        self._left = self._padding = 0

    @property
    def partial(self) -> bool:
        """Whether a frame other than DATA, or the headers of a stream, are here in part."""
        return bool(self._partial) or self._within_block

    @abstractmethod
    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A frame other than DATA."""

    @abstractmethod
    def _window_update(self, number: int, increment: int) -> None:
        """A WINDOW_UPDATE frame. The first bit of `increment` says nothing."""

    @abstractmethod
    def _data_begun(self, number: int, flags: int, length: int, size: int) -> None:
        """A DATA frame begins: `length` counts for flow control, `size` is the data without padding."""

    @abstractmethod
    def _data(self, data: Buffer, last: bool) -> None:
        """Some of the frame's data is here. `last`: the frame is whole now."""

    def _read(self, data: Buffer) -> None:
        view = memoryview(self._partial + data if self._partial else data)
        position, end = 0, len(view)
        if not self._prefaced:
            if view[: len(PREFACE)] != PREFACE[:end]:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the preface of HTTP/2 is missing")
            if end < len(PREFACE):
                self._partial = bytes(view)
                return
            self._prefaced = True
            position = len(PREFACE)
        while True:
            if self._left or self._padding:
                position = self._payload(view, position)
            start = position + HEAD.size
            if end < start:
                break
            word, flags, number = HEAD.unpack_from(view, position)
            length, kind, number = word >> 8, word & 0xFF, number & LARGEST_ID
            if length > self._small or not self.greeted or self._within_block or kind == frames.CONTINUATION:
                self._check_head(kind, flags, length)
            if kind == frames.DATA:
                padding = 0
                if flags & frames.PADDED:
                    if not length:
                        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without payload")
                    if start == end:
                        break
                    padding = view[start] + 1
                    start += 1
                if padding > length:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a DATA frame of {length} bytes is all padding")
                self._left, self._padding = length - padding, max(0, padding - 1)
                self._data_begun(number, flags, length, self._left)
                if not self._left and not self._padding:
                    self._data(b"", True)
            elif kind == frames.WINDOW_UPDATE and length == NUMBER.size <= end - start:  # comes twice with each call
                self._window_update(number, NUMBER.unpack_from(view, start)[0])
                start += NUMBER.size
            elif kind > frames.CONTINUATION:
                self._floods.idle_frame()
                self._skip(length)
            else:
                if end - start < length:
                    break
                self._frame(kind, flags, number, bytes(view[start : start + length]))
                start += length
            position = start
        self._partial = bytes(view[position:])

    @abstractmethod
    def _skip(self, length: int) -> None:
        """A frame of an unknown type begins."""

    def _check_head(self, kind: int, flags: int, length: int) -> None:
        if length > self._limits.frame:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame has {length} bytes")
        if length > self._limits.header_block and 0 < kind <= frames.CONTINUATION:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a frame of type {kind} has {length} bytes")
        if self._within_block != (kind == frames.CONTINUATION):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION is out of place, or missing")
        if not self.greeted:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS are not the first frame")
            self.greeted = True

    def _payload(self, view: memoryview, position: int) -> int:
        """Take what is here of the payload that arrives; returns where it ends."""
        data = view[position : position + self._left]
        position += len(data)
        self._left -= len(data)
        if not self._left:
            skipped = min(self._padding, len(view) - position)
            self._padding -= skipped
            position += skipped
        last = not self._left and not self._padding
        if last or len(data):
            self._data(data, last)
        return position
