"""Heads and trailers of responses, as header blocks. Pure."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from zmq_offload.errors import OffloadError, ResourceExhausted, Status, Unimplemented
from zmq_offload.gateway.grpc.codings import CODINGS, IDENTITY
from zmq_offload.gateway.grpc.limits import Limits
from zmq_offload.gateway.http2.headers import encode
from zmq_offload.gateway.statuses import CODES

_HEAD = ((":status", "200"), ("content-type", "application/grpc"))

_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What grpc-message has unencoded."""

_LONGEST = 1000
"""Characters of a message; clients refuse metadata that is much longer."""

HEADS = {coding: encode([*_HEAD, *([("grpc-encoding", coding)] if coding != IDENTITY else [])]) for coding in CODINGS}
"""Heads of responses by how their messages are compressed."""

SUCCESS = encode([("grpc-status", "0")])
"""Trailers of a call that succeeded."""


def exhausted(limits: Limits) -> ResourceExhausted:
    """The error of a message, or a reply, that is more than all connections together may hold."""
    return ResourceExhausted(
        f"the gateway holds {limits.held_bytes} bytes of messages and unread replies; try again later"
    )


def failure(error: OffloadError, *, begun: bool) -> bytes:
    """What ends a call that failed: trailers, or head and trailers in one if no head was sent."""
    return _failure(error.code, error.message, begun)


@lru_cache(256)
def _failure(code: Status, message: str, begun: bool) -> bytes:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - 3]}..."
    fields = [("grpc-status", str(CODES[code].grpc)), ("grpc-message", quote(message, _PLAIN).strip())]
    if code is Unimplemented.code:
        fields.append(("grpc-accept-encoding", ",".join(CODINGS)))
    return encode(fields if begun else [*_HEAD, *fields])


@lru_cache(16)
def no_call(status: int) -> bytes:
    """The response to what is no gRPC call."""
    more = [("allow", "POST")] if status == 405 else [("accept-post", "application/grpc")]
    return encode([(":status", str(status)), *more])
