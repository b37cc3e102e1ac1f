"""Responses of the Open Inference Protocol over HTTP that are no errors. Pure."""

from __future__ import annotations

import msgspec

from zmq_offload.gateway.http.messages import Response

JSON = ("Content-Type", "application/json")


def json(value: object) -> Response:
    """A response with a JSON body."""
    return Response(200, (msgspec.json.encode(value),), [JSON])


def empty() -> Response:
    """A response that says that all is well, and nothing else."""
    return Response(200)
