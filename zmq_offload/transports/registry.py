"""Which transport a URL has: the table of our own, and those that other packages register by an entry point.

An entry point of the group `zmq_offload.transports` has a scheme as its name, and a class as `transport.Transport`
describes it as its value.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple, cast

from zmq_offload.common.extras import needs
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import FailedPrecondition, InvalidArgument, one_line
from zmq_offload.transports.transport import Options, Transport
from zmq_offload.transports.url import Url, parse, scheme_of

GROUP = "zmq_offload.transports"


class Place(NamedTuple):
    """Where a transport is, and the extra of this distribution that it needs (None: nothing beside the core)."""

    module: str
    name: str
    extra: str | None


BUILT_IN = {
    "tcp": Place("zmq_offload.transports.broker", "BrokerTransport", None),
    "ipc": Place("zmq_offload.transports.broker", "BrokerTransport", None),
    "grpc": Place("zmq_offload.transports.oip.infer_grpc", "OipGrpc", "grpc"),
    "grpcs": Place("zmq_offload.transports.oip.infer_grpc", "OipGrpc", "grpc"),
    "http": Place("zmq_offload.transports.oip.infer_http", "OipHttp", None),
    "https": Place("zmq_offload.transports.oip.infer_http", "OipHttp", None),
    "tfs+grpc": Place("zmq_offload.transports.tfserving.predict_grpc", "TfServingGrpc", "grpc"),
    "tfs+grpcs": Place("zmq_offload.transports.tfserving.predict_grpc", "TfServingGrpc", "grpc"),
    "tfs+http": Place("zmq_offload.transports.tfserving.predict_http", "TfServingHttp", None),
    "tfs+https": Place("zmq_offload.transports.tfserving.predict_http", "TfServingHttp", None),
    "tvmrpc": Place("zmq_offload.transports.tvmrpc.transport", "TvmRpcTransport", None),
}
"""Our own transports. Their schemes cannot be registered by others."""

BROKERS = ("tcp", "ipc")
"""Schemes of endpoints of brokers, for which `zmq_offload.Client` is the client."""


def known_schemes() -> list[str]:
    """All schemes, our own first."""
    others = sorted({entry.name for entry in _registered()} - BUILT_IN.keys())
    return [*BUILT_IN, *others]


def transport_class(scheme: str) -> type[Transport]:
    """Import the transport of a scheme. Raises InvalidArgument for an unknown one, and FailedPrecondition if a package
    that it needs is missing."""
    place = BUILT_IN.get(scheme)
    if place is not None:
        if place.extra is None:
            return _imported(place)
        with needs(place.extra):
            return _imported(place)
    for entry in _registered():
        if entry.name.lower() == scheme:
            return _loaded(entry)
    known = known_schemes()
    raise InvalidArgument(
        f"no transport is known for {scheme}://{did_you_mean(scheme, known)}; known are "
        f"{', '.join(f'{name}://' for name in known)}"
    )


def check_servers(server: str | Sequence[str]) -> list[str]:
    """The URLs of one server or several. Raises InvalidArgument for what is neither."""
    if isinstance(server, str):
        return [server]
    if not isinstance(server, Sequence) or isinstance(server, (bytes, bytearray)):
        raise InvalidArgument(f"server {server!r} is not a URL; use one such as grpc://HOST:PORT, or a list of URLs")
    if not server:
        raise InvalidArgument("the list of servers is empty; give at least one URL")
    return list(server)


def opened(server: str, options: Options) -> Transport:
    """The transport to a server, which is not connected yet. Raises InvalidArgument and FailedPrecondition."""
    scheme = scheme_of(server)
    make = cast("Callable[[Url, Options], Transport]", transport_class(scheme))
    # An ipc:// endpoint is a path, and a broker's endpoint is checked by its client.
    url = Url(server, scheme, "", 0, "", {}) if scheme in BROKERS else parse(server)
    return make(url, options)


def _imported(place: Place) -> type[Transport]:
    found: type[Transport] = getattr(importlib.import_module(place.module), place.name)
    return found


def _registered() -> Sequence[EntryPoint]:
    return list(entry_points(group=GROUP))


def _loaded(entry: EntryPoint) -> type[Transport]:
    try:
        found: object = entry.load()
    except Exception as error:
        raise FailedPrecondition(
            f"the transport {entry.name}:// of {entry.value} cannot be imported: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    if not isinstance(found, type):
        raise FailedPrecondition(f"the transport {entry.name}:// is {entry.value}, which is not a class")
    return found
