"""System shared memory over HTTP: what the paths that register regions answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from zmq_offload.errors import InvalidArgument, OffloadError
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.responses import failed
from zmq_offload.gateway.http.router import Endpoint, Names
from zmq_offload.gateway.oip import json_data
from zmq_offload.gateway.oip.responses import empty, json
from zmq_offload.gateway.regions.files import SharedMemory


class _Registration(msgspec.Struct):
    """The body of a registration. The values are checked where they are used, also for gRPC."""

    key: object
    byte_size: object
    offset: object = 0


def region_routes(memory: SharedMemory) -> Iterator[tuple[str, str, Endpoint]]:
    """Method, path with names in braces, and endpoint, as `rest.routes` has them."""

    def status(request: Request, names: Names) -> Response:
        return json([region._asdict() for region in memory.regions(names.get("region"), request.grant)])

    def register(request: Request, names: Names) -> Response:
        json_data.check_small(request.body)
        try:
            body = msgspec.json.decode(request.body, type=_Registration)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(
                f"the body is not a registration: {error}; give the fields key, offset and byte_size"
            ) from None
        memory.register(names["region"], body.key, body.offset, body.byte_size, request.grant)
        return empty()

    def unregister(request: Request, names: Names) -> Response:
        memory.unregister(names.get("region"), request.grant)
        return empty()

    for path in ("/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{region}"):
        yield "GET", f"{path}/status", _answering(status)
        yield "POST", f"{path}/unregister", _answering(unregister)
    yield "POST", "/v2/systemsharedmemory/region/{region}/register", _answering(register)


def _answering(answer: Callable[[Request, Names], Response]) -> Endpoint:
    def endpoint(request: Request, names: Names, respond: Respond) -> None:
        try:
            response = answer(request, names)
        except OffloadError as error:
            response = failed(error)
        respond(response)

    return endpoint
