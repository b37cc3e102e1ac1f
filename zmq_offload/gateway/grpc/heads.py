"""The heads of calls: gRPC's part of HTTP/2's headers. Pure.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument, OffloadError, ResourceExhausted, Unimplemented
from zmq_offload.gateway.grpc.codings import CODINGS, IDENTITY
from zmq_offload.gateway.http2.headers import RequestHead

_TYPE = re.compile(r"application/grpc(\+proto)?(;.*)?", re.IGNORECASE)
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class CallHead(NamedTuple):
    """The head of a call.

    `timeout` is in seconds. `coding` is how compressed messages of the client are compressed, and `reply_coding` how
    it wants its replies: as it sends, if it reads that, too. `status` is the HTTP status of what is no gRPC call.
    `size` is that of all fields.
    """

    path: str
    metadata: Mapping[str, str]
    timeout: float | None = None
    coding: str = IDENTITY
    reply_coding: str = IDENTITY
    status: int = 200
    error: OffloadError | None = None
    size: int = 0


def call_head(head: RequestHead, largest: int) -> CallHead:
    """Read a head. `largest` is for the size of all its fields."""
    metadata: dict[str, str] = {}
    for name, value in head.fields:
        metadata[name] = f"{metadata[name]},{value}" if name in metadata else value
    if head.method != "POST":
        return CallHead(head.path, metadata, status=405)
    if not _TYPE.fullmatch(metadata.get("content-type", "")):
        return CallHead(head.path, metadata, status=415)
    try:
        if head.size > largest:
            raise ResourceExhausted(f"the call has {head.size} bytes of metadata; at most {largest} are taken")
        coding = metadata.get("grpc-encoding", IDENTITY)
        if coding not in CODINGS:
            raise Unimplemented(f"grpc-encoding {coding!r} is not known; use one of {', '.join(CODINGS)}")
        read = metadata.get("grpc-accept-encoding", "").replace(" ", "").split(",")
        reply_coding = coding if coding in read else IDENTITY
        return CallHead(
            head.path, metadata, _timeout(metadata.get("grpc-timeout")), coding, reply_coding, size=head.size
        )
    except OffloadError as error:
        return CallHead(head.path, metadata, error=error)


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if not match:
        raise InvalidArgument(f"grpc-timeout {text!r} is not a time; use up to 8 digits and one of H, M, S, m, u, n")
    return int(match[1]) * _UNITS[match[2]]
