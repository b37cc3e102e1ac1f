"""grpc.health.v1.Health: whether the gateway, one of its services, or a model takes calls. Pure.

The service "" is the gateway. It serves if a broker answers and serves a model, as do all services of the gateway. The
name of a model is a service, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from zmq_offload.errors import InvalidArgument, NotFound, OffloadError, ResourceExhausted, Unauthenticated, Unavailable
from zmq_offload.gateway.access.decisions import HEALTH
from zmq_offload.gateway.calls import Buffer, Buffers, Cancel, Fabric
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.grpc.calls import Context, Reply, Streaming, Unary, Writer
from zmq_offload.protobuf.messages import message_class, parse_small_message

SERVICE = "grpc.health.v1.Health"

WATCHING = 1024
"""Clients that watch at once; they need no credential."""

EVERY = 1.0
"""Seconds between two looks at the list of models, for a client that watches."""

Later: TypeAlias = "Callable[[float, Callable[[], None]], Cancel]"
"""Calls a function after some seconds, unless that is canceled before."""

_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
"""grpc.health.v1.HealthCheckResponse.ServingStatus."""


def methods(fabric: Fabric, services: Collection[str], later: Later) -> dict[str, Unary | Streaming]:
    """The methods by their paths. `services` are the gRPC services of the gateway."""
    health = _Health(fabric, services)
    return {
        f"/{SERVICE}/Check": health.check,
        f"/{SERVICE}/Watch": Streaming(lambda context, writer: _Watch(health, context, writer, later)),
    }


class _Health:
    """What is known of the gateway's services and models."""

    def __init__(self, fabric: Fabric, services: Collection[str]) -> None:
        self.fabric = fabric
        self._services = services
        self.watching = 0

    def check(self, data: Buffer, context: Context, reply: Reply) -> Cancel | None:
        """Answer with the status of a service. Ends with NotFound for an unknown one."""
        try:
            service = self.service_of(data, context)
        except OffloadError as error:
            reply(error)
            return None

        def listed(catalog: Catalog | OffloadError) -> None:
            status = self.status(service, catalog)
            if status == _SERVICE_UNKNOWN:
                reply(NotFound(f"service {service!r:.200} is not known; use a model's name, or none for the gateway"))
            else:
                reply(_response(status))

        return self.fabric.models(context.grant, listed, self.model(service))

    def service_of(self, data: Buffer, context: Context) -> str:
        """The service that a request is about. Raises Internal, and Unauthenticated."""
        service = _service_of(data)
        if context.grant is HEALTH and self.model(service) is not None:
            raise Unauthenticated("a service other than the gateway's own needs a credential; send one, or ask for ''")
        return service

    def model(self, service: str) -> str | None:
        """The model that a service stands for; None for the gateway."""
        return None if not service or service in self._services else service

    def status(self, service: str, catalog: Catalog | OffloadError) -> int:
        """Whether a service takes calls."""
        model = self.model(service)
        if isinstance(catalog, OffloadError):
            return _NOT_SERVING
        found = [each for each in catalog.models if model in (None, each.name)]
        if model is not None and not found:
            return _SERVICE_UNKNOWN
        return _SERVING if any(each.open for each in found) and not self.fabric.stopping else _NOT_SERVING


def _service_of(data: Buffer) -> str:
    """The service that a request is about. Raises OffloadError for bytes that are no such request."""
    return str(parse_small_message("grpc.health.v1.HealthCheckRequest", data).service)


def _response(status: int) -> Buffers:
    return (message_class("grpc.health.v1.HealthCheckResponse")(status=status).SerializeToString(),)


class _Watch:
    """A client that is told the status of a service, and each change of it.

    The call ends when the gateway stops, so that it does not hold up draining.
    """

    def __init__(self, health: _Health, context: Context, writer: Writer, later: Later) -> None:
        self._health = health
        self._context = context
        self._writer = writer
        self._later = later
        self._service: str | None = None
        self._status: int | None = None
        self._over = False
        self._timer: Cancel | None = None

    def message(self, data: Buffer) -> None:
        """The request. A client sends one."""
        if self._service is not None or self._over:
            return
        try:
            service = self._health.service_of(data, self._context)
            if self._health.watching >= WATCHING:
                raise ResourceExhausted(f"{WATCHING} clients watch; use Check, or try again later")
        except OffloadError as error:
            self._close(error)
            return
        self._service = service
        self._health.watching += 1
        self._look()

    def half_closed(self) -> None:
        """There are no more requests."""
        if self._service is None and not self._over:
            self._close(InvalidArgument("the call has no request; send one"))

    def canceled(self) -> None:
        """The client is gone."""
        self._end()
        if self._timer is not None:
            self._timer()

    def _end(self) -> None:
        if self._service is not None and not self._over:
            self._health.watching -= 1
        self._over = True

    def _close(self, error: OffloadError) -> None:
        self._end()
        self._writer.close(error)

    def _look(self) -> None:
        self._timer = None
        self._health.fabric.models(self._context.grant, self._listed, self._health.model(self._service or ""))

    def _listed(self, catalog: Catalog | OffloadError) -> None:
        if self._over:  # the client went away meanwhile
            return
        status = self._health.status(self._service or "", catalog)
        if status != self._status:
            self._status = status
            self._writer.send(_response(status))
        if self._health.fabric.stopping:
            self._close(Unavailable("the gateway is stopping"))
        else:
            self._timer = self._later(EVERY, self._look)
