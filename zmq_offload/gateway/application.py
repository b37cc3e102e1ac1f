"""Which protocols a gateway speaks at which of its ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zmq_offload.console.settings import NONE
from zmq_offload.dashboard.watch import Watch
from zmq_offload.gateway.access.decisions import Access
from zmq_offload.gateway.access.guard import Guard
from zmq_offload.gateway.calls import Cancel, Fabric, Memory, own_memory
from zmq_offload.gateway.config import Config
from zmq_offload.gateway.grpc import health, reflection
from zmq_offload.gateway.grpc.calls import Methods
from zmq_offload.gateway.grpc.limits import Limits as GrpcLimits
from zmq_offload.gateway.grpc.server import GrpcServer
from zmq_offload.gateway.http.cors import crossing
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Handler, Request, Respond
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.http.server import HttpServer
from zmq_offload.gateway.metered import MeteredFabric
from zmq_offload.gateway.meters import Meters
from zmq_offload.gateway.oip.grpc_service import methods as oip_methods
from zmq_offload.gateway.oip.regions import region_routes
from zmq_offload.gateway.oip.rest import routes
from zmq_offload.gateway.page import page_routes
from zmq_offload.gateway.ports import Door
from zmq_offload.gateway.regions.files import Off, SharedMemory, System
from zmq_offload.gateway.tfserving import rest as tfserving
from zmq_offload.gateway.tfserving.grpc import methods as tfserving_methods


def doors(
    config: Config,
    fabric: Fabric,
    guard: Guard,
    receive: Memory = own_memory,
    meters: Meters | None = None,
    watch: Watch | None = None,
) -> list[Door]:
    """The ports that are wanted. Call it in the event loop. `receive` gives memory for long bodies and messages;
    `meters` count the requests; the dashboard shows what `watch` saw."""

    def metered(protocol: str) -> Fabric:
        return fabric if meters is None else MeteredFabric(fabric, meters, protocol)

    memory = System(config.max_body_bytes, config.max_held_bytes) if config.system_shared_memory else Off()
    found = []
    if config.http != NONE:
        handler = crossing(http_handler(metered("http"), memory, watch), config.cors_origins or ())
        service = _http(config, handler, guard.access, receive)
        found.append(Door("http", config.http, service, guard.contexts.http if guard.contexts else None))
    if config.grpc != NONE:
        calls = _grpc(config, grpc_methods(metered("grpc"), memory), guard.access, receive)
        found.append(Door("grpc", config.grpc, calls, guard.contexts.grpc if guard.contexts else None))
    return found


def http_handler(fabric: Fabric, memory: SharedMemory, watch: Watch | None = None) -> Handler:
    """What answers HTTP requests."""
    tensorflow, open_inference = tfserving.handler(fabric), Router()
    page = () if watch is None else page_routes(watch)
    for route in (*routes(fabric, memory), *region_routes(memory), *page):
        open_inference.add(*route)

    def handle(request: Request, respond: Respond) -> Cancel | None:
        return (tensorflow if request.path.startswith("/v1/") else open_inference)(request, respond)

    return handle


def grpc_methods(fabric: Fabric, memory: SharedMemory) -> Methods:
    """What answers gRPC calls. Call it in the event loop."""
    served = {**oip_methods(fabric, memory), **tfserving_methods(fabric)}
    services = {path.split("/")[1] for path in served} | {health.SERVICE}

    def later(seconds: float, call: Callable[[], None]) -> Cancel:
        return asyncio.get_running_loop().call_later(seconds, call).cancel

    return {**served, **health.methods(fabric, services, later), **reflection.methods(services)}


def _http(config: Config, handler: Handler, access: Access, memory: Memory) -> HttpServer:
    limits = Limits(
        body_bytes=config.max_body_bytes,
        held_bytes=config.max_held_bytes,
        header_bytes=config.max_header_bytes,
        connections=config.max_connections,
        idle=config.idle_timeout,
        receive=config.receive_timeout,
    )
    return HttpServer(handler, access, limits, memory)


def _grpc(config: Config, methods: Methods, access: Access, memory: Memory) -> GrpcServer:
    limits = GrpcLimits(
        message_bytes=config.max_body_bytes,
        held_bytes=config.max_held_bytes,
        header_bytes=config.max_header_bytes,
        connections=config.max_connections,
        streams=config.max_streams,
        idle=config.idle_timeout,
        receive=config.receive_timeout,
    )
    return GrpcServer(methods, access, limits, memory)
