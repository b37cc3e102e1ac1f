"""The memory that the clients of a process share with brokers and workers on its host."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from zmq_offload.client.link import lost
from zmq_offload.net.sharedmemory.references import SharedFrame
from zmq_offload.net.sharedmemory.sharing import EVERY, SHARED_FROM, Sharing, Unreadable, sharing_of
from zmq_offload.protocol import messages as wire

log = logging.getLogger("zmq_offload")


class Memory:
    """An arena for the inputs of all clients of a process, and readers of outputs. Any thread may use it."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._lock = threading.Lock()  # an arena belongs to one thread at a time
        self._tick_at = time.monotonic() + EVERY
        self.properties = sharing.properties

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        with self._lock:
            return self._sharing.proof(told, kind)

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        return self._sharing.is_proof(given, kind)

    def placed(self, payload: Sequence[Any]) -> list[Any]:
        """A payload with copies of its long frames in the arena, as far as there is room."""
        found = list(payload)
        for at in range(1, len(found)):
            frame = found[at]
            if len(frame) >= SHARED_FROM:
                with self._lock:
                    room = self._sharing.arena.take(len(frame))
                if room is not None:
                    # NumPy's copy lets other threads run.
                    np.frombuffer(room, np.uint8)[:] = np.frombuffer(frame, np.uint8)
                    found[at] = room
        return found

    def lent(self, frames: list[Any]) -> list[Any]:
        """What to send for a message to a peer that shares. References hold until the frames are dropped."""
        with self._lock:
            return self._sharing.lent(frames)

    def own(self, frames: Sequence[Any]) -> list[Any]:
        """A payload with copies of what its references stand for: outputs belong to their callers for good, who may
        write to them. Raises Unreadable."""
        found = list(frames)
        for at, frame in enumerate(found):
            if type(frame) is SharedFrame:
                with self._lock:
                    (lies,) = self._sharing.read((frame,))
                found[at] = np.array(lies).data
        return found

    def tick(self, now: float) -> None:
        """To be called every few seconds."""
        if now >= self._tick_at:
            with self._lock:
                self._tick_at = now + EVERY
                self._sharing.tick()


Reply: TypeAlias = "tuple[wire.Result | wire.Error, Sequence[Any]]"
"""A message and its payload."""


def own(memory: Memory | None, message: wire.Result, payload: Sequence[Any]) -> Reply:
    """A message and its payload, which refers to no shared memory any more."""
    if memory is None:
        return message, payload
    try:
        return message, memory.own(payload)
    except Unreadable as error:
        return lost(message, error), ()


_memories: weakref.WeakValueDictionary[tuple[int, int], Memory] = weakref.WeakValueDictionary()


def _memory(size: int) -> Memory | None:
    """The memory of this process, of at most `size` bytes, as long as a client uses it. None if there is none."""
    key = os.getpid(), size
    found = _memories.get(key)
    if found is None and (sharing := sharing_of(size, log)) is not None:
        found = _memories.setdefault(key, Memory(sharing))
    return found


class Offer:
    """Offers the memory of this process to a broker on the same host. A `zmq_offload.net.zmtp.Sharer`.

    `size` is in bytes; with 0 nothing is offered. `connected` returns the socket of the connection.
    """

    def __init__(self, size: int, connected: Callable[[], socket.socket | None]) -> None:
        self._size = size
        self._connected = connected
        self.memory: Memory | None = None
        """None as long as no broker on this host has greeted."""

    @property
    def properties(self) -> Mapping[bytes, bytes]:
        to = self._connected()
        if not self._size or to is None or not _is_here(to):
            return {}
        if self.memory is None:
            self.memory = _memory(self._size)
        return {} if self.memory is None else self.memory.properties

    def end(self) -> None:
        """Let go of the memory, without waiting for the garbage collector."""
        self._size, self.memory = 0, None

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        return None if self.memory is None else self.memory.proof(told, kind)

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        return self.memory is not None and self.memory.is_proof(given, kind)


def _is_here(connected: socket.socket) -> bool:
    """Whether the other end of a connection may be on this host: then both ends have one address."""
    return connected.family == socket.AF_UNIX or connected.getpeername()[0] == connected.getsockname()[0]
