"""What a process shares with its peers: an arena of its own, and readers of theirs."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zmq_offload.net.sharedmemory import host, segment
from zmq_offload.net.sharedmemory.arena import Arena
from zmq_offload.net.sharedmemory.offers import PROPERTY, Offered
from zmq_offload.net.sharedmemory.readers import Readers
from zmq_offload.net.sharedmemory.references import FIRST, SharedFrame, take_out
from zmq_offload.net.sharedmemory.segment import Unreadable as Unreadable
from zmq_offload.net.sharedmemory.segment import Use

SHARED_FROM = 64 * 1024
"""Bytes from which a frame is shared. To copy a shorter one through sockets costs less than to share it."""

EVERY = 2.0
"""Seconds between two calls of `tick`."""


class Sharing:
    """Raises OSError if the system does not let this process share memory."""

    def __init__(self, size: int) -> None:
        _check_system()
        self.arena = Arena(size)
        self._readers = Readers(note=self.arena.note_mapped)
        self.offer = host.offer_of(self.arena)
        """What peers are offered."""
        self.properties: Mapping[bytes, bytes] = {PROPERTY: self.offer.packed()}

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        """See `zmq_offload.net.zmtp.Sharer`."""
        return host.proof(self._readers, self.offer, told.get(PROPERTY.lower(), b""), kind)

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        """See `zmq_offload.net.zmtp.Sharer`."""
        return host.is_proof(self.arena, given, kind)

    def memory(self, nbytes: int) -> memoryview:
        """Memory for a message of which tensors may be lent."""
        taken = self.arena.take(nbytes) if nbytes >= SHARED_FROM else None
        return np.empty(nbytes, np.uint8).data if taken is None else taken

    def placed(self, payload: Sequence[Any]) -> Sequence[Any]:
        """A payload whose long frames lie in the arena, as far as there is room. None is copied that does already."""
        found = list(payload)
        for at, frame in enumerate(found):
            if at and len(frame) >= SHARED_FROM and not self.arena.has(frame):
                taken = self.arena.take(len(frame))
                if taken is not None:
                    taken[:] = frame
                    found[at] = taken
        return found

    def lent(self, frames: list[Any]) -> list[Any]:
        """What to send for a message to a peer that shares: references to the frames that lie in the arena, which hold
        until the frames are dropped, and references that are in the message already."""
        shares = False
        for at in range(FIRST, len(frames)):
            frame = frames[at]
            if type(frame) is SharedFrame:
                shares = True
            elif len(frame) >= SHARED_FROM and type(frame) is memoryview:
                reference = self.arena.find(frame)
                if reference is not None:
                    frames[at] = SharedFrame(reference)
                    shares = True
        return take_out(frames) if shares else frames

    def given(self, frames: list[Any]) -> list[Any]:
        """What to send for a message to a peer that shares: its long frames are copied to the arena, as far as there is
        room, until they are read."""
        shares = False
        for at in range(FIRST, len(frames)):
            frame = frames[at]
            if len(frame) >= SHARED_FROM:
                reference = self.arena.give(frame)
                if reference is not None:
                    frames[at] = SharedFrame(reference)
                    shares = True
        return take_out(frames) if shares else frames

    def read(self, frames: Sequence[Any]) -> list[Any]:
        """A message with the bytes that its references stand for, where they lie. Raises Unreadable."""
        return [self._readers.read(frame.reference) if type(frame) is SharedFrame else frame for frame in frames]

    def use_of(self, offer: Offered) -> Use | None:
        """How a peer's arena is used. None if it has ended."""
        return self._readers.use_of(*offer.arena)

    @property
    def reads(self) -> bool:
        """Whether memory of peers is mapped, which `tick` gives back when they have ended."""
        return len(self._readers) > 0

    def tick(self) -> None:
        """To be called every few seconds."""
        self.arena.tick()
        self._readers.tick()


@functools.cache
def _check_system() -> None:
    """Raise OSError where this process could not open the memory of others like it, or where locks do not work."""
    arena, readers = Arena(1), Readers()
    reference = arena.give(b".")
    assert reference is not None
    try:
        read = readers.read(reference)
    except Unreadable as error:
        raise OSError(errno.ENOTSUP, str(error)) from None
    arena.tick()
    if arena.used != 1:
        raise OSError(errno.ENOTSUP, "locks of open files do not work here")
    del read
    arena.tick()
    if arena.used:
        raise OSError(errno.ENOTSUP, "locks of open files stay when they are given up")


def sharing_of(size: int, log: logging.Logger) -> Sharing | None:
    """What this process shares, in an arena of at most `size` bytes. None if that is 0, or the system has no memory to
    share."""
    if not size or not segment.SUPPORTED:
        return None
    try:
        return Sharing(size)
    except OSError as error:
        log.warning("tensors are not passed through shared memory: %s", error.strerror or error)
        return None
