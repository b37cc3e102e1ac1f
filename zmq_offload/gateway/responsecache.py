"""The answers of models that are kept, within bounds. Pure: the time is passed in.

An answer is kept under the model, its version, the build of that version, and the bytes of the inputs. So it is never
given to a request that a worker would answer from other weights.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from zmq_offload.gateway.catalog import Model
from zmq_offload.protocol.packed import Packed
from zmq_offload.protocol.payload import Buffer

Frames: TypeAlias = Sequence[bytes]

OVERHEAD = 512
"""Bytes that an entry takes beside its frames, about: the objects of its key, of its frames and of the table."""

LARGEST_SHARE = 8
"""An answer is kept only if it takes at most one part in so many of the cache: a single one must not empty it."""

LARGEST_INPUTS = 16 * 1024 * 1024
"""Inputs over this are not looked up, in bytes. The digest of 1 MB takes 0.6 ms of the event loop."""


class Key(NamedTuple):
    """What an answer is kept under. `digest` is the SHA-256 of the build and of the inputs: names, datatypes, shapes
    and bytes."""

    model: str
    version: int
    digest: bytes


def key_of(model: Model, inputs: Packed) -> Key | None:
    """The key of a request for a version; None if its answers are not kept, or if the inputs are too large."""
    if model.cache is None or sum(inputs.layout.sizes) > LARGEST_INPUTS:
        return None
    digest = hashlib.sha256(model.cache.build.encode() + b"\0")
    # The first frame begins with the header, which says how long all frames are. So no two requests join to the same
    # bytes.
    for frame in inputs.frames:
        digest.update(frame)
    return Key(model.name, model.version, digest.digest())


class _Entry(NamedTuple):
    frames: Frames
    nbytes: int
    until: float


class ResponseCache:
    """Answers in memory, at most `max_bytes` with their overhead. Those that were not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.evicted = 0
        """Answers that made room for others."""
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Frames | None:
        """The frames of an answer; None if there is none, or if its time is over."""
        found = self._entries.get(key)
        if found is None:
            return None
        if now >= found.until:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found.frames

    def put(self, key: Key, frames: Sequence[Buffer], seconds: float, now: float) -> None:
        """Keep a copy of an answer for `seconds`. Too large a one is not kept."""
        nbytes = OVERHEAD + sum(map(len, frames))
        if nbytes * LARGEST_SHARE > self.max_bytes:
            return
        if key in self._entries:
            self._drop(key)
        while self.nbytes + nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1
        self._entries[key] = _Entry([bytes(frame) for frame in frames], nbytes, now + seconds)
        self.nbytes += nbytes

    def _drop(self, key: Key) -> None:
        self.nbytes -= self._entries.pop(key).nbytes
