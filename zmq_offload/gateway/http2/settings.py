"""Settings of the two ends of a connection (RFC 9113, section 6.5). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode
from zmq_offload.gateway.http2.frames import LARGEST_MAX_FRAME, LARGEST_WINDOW, SMALLEST_MAX_FRAME

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

DEFAULT_WINDOW = 65_535


@dataclass(frozen=True, slots=True)
class Limits:
    """What this end allows its peer on one connection.

    Attributes
    ----------
    streams : int
        Streams at once.
    window : int
        Bytes that the peer may send on a stream before it needs leave for more. A message up to this size is never
        held up.
    frame : int
        Payload of a frame.
    header_block : int
        Bytes of a header block, and of its fields when they are decoded. Beyond them the connection ends.
    resets : int
        Streams that may be reset or refused between two calls of `Connection.tick`.
    idle_frames : int
        Frames that ask for work and do none (PING, SETTINGS, empty DATA and CONTINUATION) between two ticks.
    """

    streams: int = 256
    window: int = 2 << 20
    frame: int = LARGEST_MAX_FRAME
    header_block: int = 65_536
    resets: int = 1000
    idle_frames: int = 1000

    def settings(self) -> dict[int, int]:
        """The settings that tell the peer."""
        return {
            MAX_CONCURRENT_STREAMS: self.streams,
            INITIAL_WINDOW_SIZE: self.window,
            MAX_FRAME_SIZE: self.frame,
            MAX_HEADER_LIST_SIZE: self.header_block,
        }


@dataclass(slots=True)
class PeerSettings:
    """What the peer allows. This end encodes headers without a table, so HEADER_TABLE_SIZE says nothing to it."""

    window: int = DEFAULT_WINDOW
    frame: int = SMALLEST_MAX_FRAME

    def apply(self, pairs: list[tuple[int, int]]) -> None:
        """Take over settings in their order; unknown ones are ignored."""
        for name, value in pairs:
            if name == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
                self.window = value
            elif name == MAX_FRAME_SIZE:
                if not SMALLEST_MAX_FRAME <= value <= LARGEST_MAX_FRAME:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
                self.frame = value
            elif name == ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
