"""Requests of a broker for its access log."""

from __future__ import annotations

from broker.events import FromClient
from broker.state import Payload, PendingRequest
from zmq_offload.common.accesslog import OK, Access
from zmq_offload.protocol import messages as wire


def access_of(request: PendingRequest, reply: wire.Result | wire.Error, payload: Payload, now: float) -> Access:
    """A request that ends now with this reply."""
    worker = request.worker.name if request.worker is not None else "".join(request.lost[-1:])
    return Access(
        request=str(request.key),
        model=request.wanted.model,
        version=request.runs or None,
        status=OK if isinstance(reply, wire.Result) else reply.code,
        total=now - request.accepted_at,
        queue=(request.dispatched_at if request.attempt else now) - request.accepted_at,
        compute=reply.compute_us / 1e6 if isinstance(reply, wire.Result) else None,
        worker=worker or None,
        attempts=request.attempt,
        client=request.user or None,
        bytes_in=request.nbytes,
        bytes_out=sum(map(len, payload)) if isinstance(reply, wire.Result) else None,
        trace=request.trace[:16].hex() or None,
    )


def access_of_refused(event: FromClient, message: wire.Request, key: wire.Key, status: str) -> Access:
    """A request that is not accepted."""
    return Access(
        request=str(key),
        model=message.model,
        version=message.version or None,
        status=status,
        total=0.0,
        client=event.user or None,
        bytes_in=sum(map(len, event.payload)),
        trace=message.trace[:16].hex() or None,
    )
