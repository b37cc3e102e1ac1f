"""The dashboard over HTTP: its files, and the events of a `Watch`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from zmq_offload.client.aiocalls import Calls
from zmq_offload.client.link import answer_of
from zmq_offload.client.session import Complete, Fail
from zmq_offload.dashboard.files import EVENTS, HEADERS, PAGE, File, files
from zmq_offload.dashboard.viewers import MOST
from zmq_offload.dashboard.watch import TIMEOUT, Ask, Watch
from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Cancel
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.responses import failure
from zmq_offload.gateway.http.router import Endpoint, Names

_STREAM = ("Content-Type", "text/event-stream")


def asking(calls: Calls) -> Ask:
    """What asks a gateway's broker for its status."""

    async def ask() -> Mapping[str, Any]:
        answer: asyncio.Future[Complete | Fail] = asyncio.get_running_loop().create_future()
        number = calls.query(answer.set_result, "status", TIMEOUT)
        try:
            done = await answer
        except asyncio.CancelledError:
            calls.cancel(number)
            raise
        if isinstance(done, Fail):
            raise done.error
        status = answer_of(done)
        if isinstance(status, OffloadError):
            raise status
        return cast("Mapping[str, Any]", status)

    return ask


def page_routes(watch: Watch) -> Iterator[tuple[str, str, Endpoint]]:
    """Method, path and endpoint of all that the page needs."""
    for path, file in files().items():
        yield "GET", path, partial(_file, file)
    yield "GET", f"{PAGE}/", _redirect
    yield "GET", EVENTS, partial(_events, watch)


def front_routes(watch: Watch) -> Iterator[tuple[str, str, Endpoint]]:
    """Those of a server that has nothing else: the page is at /, too."""
    for method, path, endpoint in page_routes(watch):
        yield method, path, endpoint
        if path == PAGE:
            yield method, "/", endpoint


def _file(file: File, request: Request, names: Names, respond: Respond) -> Cancel | None:
    respond(Response(200, [file.body], [("Content-Type", file.type), *HEADERS]))
    return None


def _redirect(request: Request, names: Names, respond: Respond) -> Cancel | None:
    """The path with a slash at its end, below which the page would look for its files.

    The way back is relative, as a proxy may have put something before the path.
    """
    respond(Response(308, (), [("Location", f"..{PAGE}"), *HEADERS]))
    return None


def _events(watch: Watch, request: Request, names: Names, respond: Respond) -> Cancel | None:
    if request.grant.models is not None:
        text = "the dashboard shows all models; use a token or certificate that is for all of them"
        respond(failure(403, text, *HEADERS))
    elif watch.viewers.full:
        respond(failure(503, f"{MOST} viewers look at the dashboard; try again later", ("Retry-After", "5"), *HEADERS))
    else:
        respond(Response(200, (), [_STREAM, *HEADERS], stream=watch.add))
    return None
