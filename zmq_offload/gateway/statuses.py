"""One table from our status codes to those of gRPC and HTTP. Pure.

The numbers of gRPC are those of https://grpc.io/docs/guides/status-codes/. The HTTP statuses are those of
google.rpc.Code's comments (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto).
"""

from __future__ import annotations

from typing import NamedTuple

from zmq_offload.errors import Status


class Code(NamedTuple):
    """What a status code is in other protocols."""

    grpc: int
    http: int


CODES = {
    Status.CANCELLED: Code(1, 499),
    Status.INVALID_ARGUMENT: Code(3, 400),
    Status.DEADLINE_EXCEEDED: Code(4, 504),
    Status.NOT_FOUND: Code(5, 404),
    Status.ALREADY_EXISTS: Code(6, 409),
    Status.PERMISSION_DENIED: Code(7, 403),
    Status.RESOURCE_EXHAUSTED: Code(8, 429),
    Status.FAILED_PRECONDITION: Code(9, 400),
    Status.ABORTED: Code(10, 409),
    Status.UNIMPLEMENTED: Code(12, 501),
    Status.INTERNAL: Code(13, 500),
    Status.UNAVAILABLE: Code(14, 503),
    Status.UNAUTHENTICATED: Code(16, 401),
}
"""Status code -> gRPC's number and HTTP's status."""
