"""Web pages of other origins, which a browser lets call only if the answers say so. Pure.

A browser adds the header Origin, and asks before most requests whether it may send them: a preflight, which has no
credential (https://fetch.spec.whatwg.org/#http-cors-protocol). Cookies and the like are not allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Cancel
from zmq_offload.gateway.http.messages import Handler, Request, Respond, Response

ANY = "*"

_ORIGIN = re.compile(r"https?://[^/\s,]+")

_PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET, POST"),
    (
        "Access-Control-Allow-Headers",
        "Authorization, Content-Encoding, Content-Type, Inference-Header-Content-Length",
    ),
    ("Access-Control-Max-Age", "7200"),
)
_EXPOSED = ("Access-Control-Expose-Headers", "Inference-Header-Content-Length, Retry-After, WWW-Authenticate")


def origins_of(text: str) -> tuple[str, ...]:
    """Origins, separated by commas. Raises InvalidArgument."""
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins or (text,):
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise InvalidArgument(f"{origin!r} is not an origin; use https://HOST or https://HOST:PORT, or * for all")
    return origins


def crossing(handler: Handler, origins: Sequence[str]) -> Handler:
    """A handler that lets pages of these origins call another one; that one itself, if there are none."""
    if not origins:
        return handler

    def handle(request: Request, respond: Respond) -> Cancel | None:
        origin = request.headers.get("origin")
        if origin is None or not (ANY in origins or origin in origins):
            return handler(request, respond)
        allowed = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            respond(Response(204, (), [*allowed, *_PREFLIGHT]))
            return None

        def answer(response: Response) -> None:
            response.headers = [*response.headers, *allowed, _EXPOSED]
            respond(response)

        return handler(request, answer)

    return handle
