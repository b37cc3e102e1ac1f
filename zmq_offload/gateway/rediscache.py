"""Answers in Redis, which several gateways share. Redis bounds its memory itself (`maxmemory`, `maxmemory-policy`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from zmq_offload.common.extras import needs
from zmq_offload.errors import InvalidArgument, ProtocolError, one_line
from zmq_offload.gateway.responsecache import Frames, Key
from zmq_offload.protocol.messages import unpack
from zmq_offload.protocol.payload import Buffer, encode_body

log = logging.getLogger("gateway")

TIMEOUT = 0.1
"""Seconds after which an answer of Redis counts as none: a request must not wait for a cache."""

PAUSE = 2.0
"""Seconds in which Redis is not asked after it failed."""

MOST_WAITING = 1024
"""Commands under way; more lookups count as misses, and more answers are not kept."""

LARGEST = 4 * 1024 * 1024
"""Bytes of an answer that is kept at most. A larger one takes so long that it would look like a server that hangs, and
no model would have its answers."""

_FRAMES = 300


def name_of(key: Key) -> str:
    """The name of an answer in Redis."""
    return f"zmq-offload:1:{key.model}:{key.version}:{key.digest.hex()}"


class Redis:
    """A `zmq_offload.gateway.caching.Store` in a Redis server. Make it in its event loop.

    `url` is `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, `rediss://` for TLS, or `unix://PATH`. A server that
    does not answer costs TIMEOUT once in PAUSE seconds; meanwhile requests go to workers.
    """

    def __init__(self, url: str) -> None:
        with needs("redis"):
            from redis.asyncio import Redis as Client
        parts = urlsplit(url)
        self._where = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
        try:
            self._client: Any = Client.from_url(url, socket_connect_timeout=1.0)
        except ValueError as error:
            raise InvalidArgument(
                f"--cache-redis: {one_line(error)}; use redis://HOST:PORT/DATABASE, rediss:// or unix://PATH"
            ) from None
        self._asleep_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, key: Key, found: Callable[[Frames | None], None]) -> None:
        if not self._start(self._get(key, found)):
            found(None)

    def put(self, key: Key, frames: Sequence[Buffer], seconds: float) -> None:
        if sum(map(len, frames)) > LARGEST:
            return
        # Encoded now: the frames may change after the return.
        self._start(self._put(name_of(key), encode_body([bytes(frame) for frame in frames]), seconds))

    def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        closing = asyncio.ensure_future(self._client.aclose())
        closing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _start(self, work: Any) -> bool:
        if self._closed or time.monotonic() < self._asleep_until or len(self._tasks) >= MOST_WAITING:
            work.close()
            return False
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _get(self, key: Key, found: Callable[[Frames | None], None]) -> None:
        frames: Frames | None = None
        try:
            data = await asyncio.wait_for(self._client.get(name_of(key)), TIMEOUT)
            frames = None if data is None else _frames_of(data)
        except asyncio.CancelledError:
            pass  # the gateway ends; the request is refused by the fabric
        except Exception as error:
            self._failed(error)
        found(frames)

    async def _put(self, name: str, data: bytes, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._client.set(name, data, px=max(1, round(seconds * 1000))), TIMEOUT * 10)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._asleep_until:
            what = "no answer in time" if isinstance(error, TimeoutError | asyncio.TimeoutError) else one_line(error)
            log.warning("the cache at redis %s is not used for %g s: %s", self._where, PAUSE, what)
            self._asleep_until = now + PAUSE


def _frames_of(data: bytes) -> Frames | None:
    """The frames of an entry; None if it is not ours."""
    try:
        frames = unpack(data, "an entry of the cache", _FRAMES)
    except ProtocolError:
        return None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, bytes) for frame in frames):
        return None
    return frames
