"""http://HOST:PORT[/PREFIX]: the protocol over HTTP/1.1, with tensors in binary where the server takes them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import ClassVar
from urllib.parse import quote

from zmq_offload.errors import NotFound, OffloadError, ProtocolError, ResourceExhausted, Unimplemented
from zmq_offload.protocol.payload import Array, Buffer
from zmq_offload.transports.access import KEYS
from zmq_offload.transports.http import HttpConnections, Response
from zmq_offload.transports.oip import json_messages
from zmq_offload.transports.oip.json_messages import LENGTH
from zmq_offload.transports.oip.metadata import Metadata, meant, served_versions
from zmq_offload.transports.outputs import LARGEST, LARGEST_JSON, bytes_of, place_for
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url
from zmq_offload.transports.versions import FRESH

_READY = "/v2/health/ready"
_NOT_READY = (400, 503)
"""Statuses of servers that are not ready. Others have no such path, or do not tell everybody."""


class OipHttp:
    """Requests of `infer`. One that is canceled closes its connection."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=True, priority=True, deadline=True, versions=True, shared=False)

    def __init__(self, url: Url, options: Options) -> None:
        self._server = f"{url.scheme}://{url.address}"
        self._most = options.max_frame_bytes
        self._connections = HttpConnections(url.only(*KEYS, path=True), max(self._most + LARGEST, LARGEST_JSON))
        self._binary: tuple[bool, float] | None = None

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model."""
        binary = self._takes_binary(attempt)
        text = json_messages.infer_request(request.inputs, request.priority, attempt.seconds(), binary)
        headers = {"Content-Type": "application/json"}
        body: list[Buffer] = [text]
        if binary:
            headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(text))}
            body += map(bytes_of, request.inputs.values())
        path = f"{_path(request.model, request.version)}/infer"
        try:
            with self._connections.request("POST", path, attempt, headers, body) as response:
                response.check()
                return self._reply(response, request)
        except NotFound as error:
            raise self._meant(error, attempt) from None

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions of a model's metadata."""
        try:
            yield from served_versions(lambda version: self._metadata(model, version, attempt))
        except NotFound as error:
            raise self._meant(error, attempt) from None

    def close(self) -> None:
        """Disconnect."""
        self._connections.close()

    def forget(self) -> None:
        """Let go of the parent's connections in a forked child."""
        self._connections.forget()

    def _reply(self, response: Response, request: Request) -> Reply:
        """Read an answer. Binary tensors go from the socket to the memory where they stay."""
        length = response.header(LENGTH)
        if length is None:
            text = response.read(LARGEST_JSON)
        else:
            text = bytearray(self._size(length, response))
            response.read_into(memoryview(text))
        version, outputs = json_messages.infer_response(text, self._most)
        if (nbytes := sum(output.nbytes for output, _ in outputs)) > self._most:
            raise ResourceExhausted(
                f"the outputs of {self._server} have {nbytes} bytes; at most max_frame_bytes={self._most} are taken"
            )
        missing = sum(output.nbytes for output, value in outputs if value is None)
        if response.left is not None and missing != response.left:
            raise ProtocolError(
                f"the answer of {self._server} has {response.left} bytes of tensors; it must have {missing}"
            )
        found: dict[str, Array] = {}
        for output, value in outputs:
            if value is None:
                value = place_for(output, request.outputs)
                response.read_into(bytes_of(value))
            found[output.name] = value
        if response.more():
            raise ProtocolError(f"the answer of {self._server} has more than {missing} bytes of tensors")
        return Reply(found, version)

    def _size(self, length: str, response: Response) -> int:
        """The bytes of the JSON before binary tensors."""
        most = LARGEST if response.left is None else min(LARGEST, response.left)
        if not length.isascii() or not length.isdigit() or len(length) > 10 or int(length) > most:
            raise ProtocolError(f"the answer of {self._server} has {LENGTH} {length[:100]!r}; at most {most} is right")
        return int(length)

    def _takes_binary(self, attempt: Attempt) -> bool:
        """Ask the server, now and then: it may be another one by now, or only not have been there yet for its proxy.
        One that does not say so gets JSON, which all take."""
        known = self._binary
        if known is None or time.monotonic() > known[1] + FRESH:
            try:
                takes = json_messages.takes_binary(self._connections.get("/v2", attempt))
            except (NotFound, Unimplemented):
                takes = False
            known = self._binary = takes, time.monotonic()
        return known[0]

    def _metadata(self, model: str, version: int | None, attempt: Attempt) -> Metadata:
        return json_messages.metadata_response(self._connections.get(_path(model, version), attempt))

    def _meant(self, error: NotFound, attempt: Attempt) -> OffloadError:
        try:
            with self._connections.request("GET", _READY, attempt, {}) as response:
                response.read(LARGEST)
                return meant(error, response.status not in _NOT_READY)
        except OffloadError:
            return error


def _path(model: str, version: int | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version}"
