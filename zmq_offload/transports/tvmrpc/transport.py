"""Calls at TVM's RPC server, by our function if the server has it, else by libraries that are uploaded."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import ClassVar

from zmq_offload.artifacts.repository import Repository
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.tvmrpc import parcel
from zmq_offload.transports.tvmrpc.connecting import Target, begun, tracked
from zmq_offload.transports.tvmrpc.packed import Packed
from zmq_offload.transports.tvmrpc.session import Session
from zmq_offload.transports.tvmrpc.uploaded import Uploaded
from zmq_offload.transports.tvmrpc.ways import Way, holding
from zmq_offload.transports.url import Url


class TvmRpcTransport:
    """Calls at one server: `tvmrpc://HOST:PORT[?key=KEY]`, or one that a tracker gives: `?tracker=KEY`. A server
    without our function gets the libraries of `repository=DIR`."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=False, priority=False, deadline=False, versions=True, shared=True)

    def __init__(self, url: Url, options: Options) -> None:
        url.only("key", "tracker", "repository")
        if {"key", "tracker"} <= url.query.keys():
            raise InvalidArgument(f"server {url.shown!r} has key and tracker; give one of them")
        self._by_tracker = "tracker" in url.query
        self._place = Target(url.host, url.port, url.query.get("tracker", url.query.get("key", "")))
        if self._by_tracker and not self._place.key:
            raise InvalidArgument(f"server {url.shown!r} has an empty key for the tracker; use ?tracker=KEY")
        folder = url.query.get("repository")
        self._repository = None if folder is None else Repository(folder)
        self._most = options.max_frame_bytes
        self._open: tuple[Session, Way] | None = None
        self._closed = False
        self._connecting = threading.Lock()

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model on the server."""
        return self._way(attempt).infer(request, attempt)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions in the repository, the latest first."""
        return self._way(attempt).served(model, attempt)

    def close(self) -> None:
        """End the session."""
        self._closed = True
        found, self._open = self._open, None
        if found is not None:
            found[0].close()

    def forget(self) -> None:
        """Nothing: the connection is the parent's, and its end is not told the server."""

    def _way(self, attempt: Attempt) -> Way:
        """How to make requests in the session, which the first of them begins."""
        with holding(self._connecting, attempt.seconds_to_connect):
            if self._open is not None and not self._open[0].usable:
                self._open[0].close()
                self._open = None
            if self._open is None:
                session, way = self._begun(attempt)
                if self._closed:
                    session.close()
                    raise Cancelled("the client is closed")
                self._open = session, way
            return self._open[1]

    def _begun(self, attempt: Attempt) -> tuple[Session, Way]:
        target = tracked(self._place, attempt) if self._by_tracker else self._place
        connection, function = begun(target, attempt, parcel.FUNCTION)
        session = Session(connection, target.address, self._most, prompt=not function)
        if function:
            return session, Packed(session, function, self._most)
        if self._repository is not None:
            return session, Uploaded(session, self._repository, target.address, self._most)
        session.close()
        raise FailedPrecondition(
            f"the TVM RPC server at {target.address} has no function {parcel.FUNCTION!r}; start it by "
            "python -m zmq_offload.transports.tvmrpc.server --repository DIR, or give ?repository=DIR here, from where "
            "libraries are uploaded"
        )
