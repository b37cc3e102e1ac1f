"""Floods: frames and streams by which a client makes work and wants nothing. Pure."""

from __future__ import annotations

from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode
from zmq_offload.gateway.http2.settings import Limits


class Floods:
    """Counts them between two ticks. Beyond the limits the connection ends."""

    __slots__ = ("_frames", "_limits", "_resets")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._resets = self._frames = 0

    def tick(self) -> None:
        """Time has passed: what the peer may do in a certain time, it may do again."""
        self._resets = self._frames = 0

    def reset(self) -> None:
        """The peer began a stream for nothing (CVE-2023-44487)."""
        self._resets += 1
        if self._resets > self._limits.resets:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

    def idle_frame(self) -> None:
        """A frame does not serve any request."""
        self._frames += 1
        if self._frames > self._limits.idle_frames:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that serve no request")
