"""HTTP requests and responses, apart from how they travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

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


@dataclass(slots=True)
class Response:
    """A response. The connection adds Content-Length and what belongs to the connection.

    If it is `compressible`, it is compressed for a client that asks for that. As with Triton, only results of models
    are: tritonclient.http.aio asks for compression always, and does not decompress any other response.
    """

    status: int
    body: Buffers = ()
    headers: list[tuple[str, str]] = field(default_factory=list)
    compressible: bool = False


Respond: TypeAlias = Callable[[Response], None]
"""Takes the one response to a request."""

Handler: TypeAlias = "Callable[[Request, Respond], Cancel | None]"
"""Answers a request, at once or later. What it returns is called if the client goes away before the answer."""
