"""From method and path to the function that answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias
from urllib.parse import unquote

from zmq_offload.errors import printable
from zmq_offload.gateway.calls import Cancel
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.responses import failure

Names: TypeAlias = Mapping[str, str]

Endpoint: TypeAlias = "Callable[[Request, Names, Respond], Cancel | None]"
"""Answers a request, as a Handler does. It also gets the decoded names of the path, such as {"model": "echo"}."""

_REMEMBERED = 1024
_REMEMBERED_LENGTH = 256


class Router:
    """A Handler that passes each request to the endpoint of its method and path.

    A template is a path with names in braces, such as "/v1/models/{model}/versions/{version}:predict". A name stands
    for at least one character, without "/". If several templates fit, the one with the most text outside of braces is
    taken. HEAD is answered as GET; the connection leaves the body out.
    """

    def __init__(self, hint: str = "paths begin with /v2 or /v1/models") -> None:
        self._hint = hint  # for a path that is not served
        self._routes: list[tuple[int, re.Pattern[str], dict[str, Endpoint]]] = []
        self._templates: dict[str, dict[str, Endpoint]] = {}
        self._known: dict[str, tuple[dict[str, Endpoint], Names]] = {}

    def add(self, method: str, template: str, endpoint: Endpoint) -> None:
        """Register an endpoint."""
        methods = self._templates.get(template)
        if methods is None:
            methods = self._templates[template] = {}
            text = len(re.sub(r"\{\w+\}", "", template))
            self._routes.append((text, re.compile(_pattern(template)), methods))
            self._routes.sort(key=lambda route: -route[0])
        methods[method] = endpoint

    def __call__(self, request: Request, respond: Respond) -> Cancel | None:
        """Answer a request."""
        found = self._known.get(request.path)
        if found is None:
            try:
                found = self._find(request.path)
            except UnicodeDecodeError:
                respond(failure(400, f"the path {printable(request.path)!r} is not UTF-8; percent-encode it as such"))
                return None
        if found is None:
            what = f"the path {printable(request.path)!r} is not served here"
            respond(failure(404, f"{what}; {self._hint}"))
            return None
        methods, names = found
        method = request.method
        endpoint = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if endpoint is not None:
            return endpoint(request, names, respond)
        allowed = ", ".join([*methods, *["HEAD"] * ("GET" in methods), "OPTIONS"])
        if method == "OPTIONS":
            respond(Response(200, (), [("Allow", allowed)]))
        else:
            respond(failure(405, f"the method {method} is not for this path; use one of {allowed}", ("Allow", allowed)))
        return None

    def _find(self, path: str) -> tuple[dict[str, Endpoint], Names] | None:
        """The endpoints of a path, and the names in it. Paths that clients use again and again are remembered."""
        for _, pattern, methods in self._routes:
            if match := pattern.fullmatch(path):
                names = {name: unquote(value, errors="strict") for name, value in match.groupdict().items()}
                if len(path) <= _REMEMBERED_LENGTH:
                    if len(self._known) >= _REMEMBERED:
                        self._known.clear()
                    self._known[path] = methods, names
                return methods, names
        return None


def _pattern(template: str) -> str:
    """The regular expression of a template."""
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join([f"(?P<{piece}>[^/]+)" if at % 2 else re.escape(piece) for at, piece in enumerate(pieces)])
