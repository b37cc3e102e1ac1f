"""Which protocols a gateway speaks at which of its ports."""

from __future__ import annotations

from zmq_offload.gateway.access.decisions import Access, Open
from zmq_offload.gateway.calls import Cancel, Fabric
from zmq_offload.gateway.config import NONE, Config
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Handler, Request, Respond
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.http.server import HttpServer
from zmq_offload.gateway.ports import Door
from zmq_offload.gateway.tfserving import rest as tfserving


def doors(config: Config, fabric: Fabric) -> list[Door]:
    """The ports that are wanted. Call it in the event loop."""
    access = Open()
    found = []
    if config.http != NONE:
        found.append(Door("http", config.http, _http(config, http_handler(fabric), access), None))
    return found


def http_handler(fabric: Fabric) -> Handler:
    """What answers HTTP requests."""
    tensorflow, open_inference = tfserving.handler(fabric), Router()

    def handle(request: Request, respond: Respond) -> Cancel | None:
        return (tensorflow if request.path.startswith("/v1/") else open_inference)(request, respond)

    return handle


def _http(config: Config, handler: Handler, access: Access) -> HttpServer:
    limits = Limits(
        body_bytes=config.max_body_bytes,
        held_bytes=config.max_held_bytes,
        header_bytes=config.max_header_bytes,
        connections=config.max_connections,
        idle=config.idle_timeout,
        receive=config.receive_timeout,
    )
    return HttpServer(handler, access, limits)
