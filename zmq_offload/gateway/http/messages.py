"""HTTP requests and responses, apart from how they travel."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from zmq_offload.gateway.calls import Buffer, Buffers, Cancel
from zmq_offload.net.grants import Grant


@dataclass(slots=True)
class Request:
    """A whole request.

    `path` and `query` are as they were sent, still percent-encoded. Names in `headers` are in lower case. `body` is
    decoded: it has no transfer coding and no content coding any more. It belongs to the request and is not used again.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Buffer
    grant: Grant


class Compression(enum.Enum):
    """For which clients a response is compressed.

    HTTP libraries say in each request that they accept several codings. One that accepts a single coding was told to:
    only for it are numbers in binary compressed, which takes 36 ms a MB and hardly makes them smaller.
    """

    NONE = enum.auto()
    ACCEPTING = enum.auto()
    ASKING = enum.auto()


class Pipe(Protocol):
    """Where a response goes that has no end of its own."""

    def send(self, part: bytes) -> int:
        """Send bytes; how many bytes in all the client has not taken yet."""

    def abort(self) -> None:
        """Close the connection at once."""


@dataclass(slots=True)
class Response:
    """A response. The connection adds Content-Length and what belongs to the connection.

    With a `stream`, the body has no end: the stream gets the pipe for it once the head is written, and returns what to
    call when the client is gone. The pipe may be used until then.

    As with Triton, only results of models are compressed: tritonclient.http.aio accepts codings always, and does not
    decompress any other response.
    """

    status: int
    body: Buffers = ()
    headers: Sequence[tuple[str, str]] = ()
    compression: Compression = Compression.NONE
    stream: Callable[[Pipe], Cancel] | None = None


Respond: TypeAlias = Callable[[Response], None]
"""Takes the one response to a request."""

Handler: TypeAlias = "Callable[[Request, Respond], Cancel | None]"
"""Answers a request, at once or later. What it returns is called if the client goes away before the answer."""
