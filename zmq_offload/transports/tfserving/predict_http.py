"""tfs+http://HOST:PORT[/PREFIX]: TensorFlow Serving's REST API."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar
from urllib.parse import quote

from zmq_offload.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
)
from zmq_offload.protocol.tensors import check_tensors, datatype_of
from zmq_offload.transports.access import KEYS
from zmq_offload.transports.http import HttpConnections
from zmq_offload.transports.outputs import LARGEST_JSON
from zmq_offload.transports.tfserving.json_messages import (
    metadata_response,
    predict_request,
    predict_response,
    status_response,
)
from zmq_offload.transports.tfserving.metadata import Status, available, label_of, meant
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url
from zmq_offload.transports.versions import FRESH


class TfServingHttp:
    """Requests of `predict`. JSON has no datatypes, so the model's metadata says those of an answer."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=True, priority=False, deadline=False, versions=True, shared=False)

    def __init__(self, url: Url, options: Options) -> None:
        self._server = f"{url.scheme}://{url.address}"
        self._most = options.max_frame_bytes
        self._label = label_of(url)
        self._connections = HttpConnections(url.only(*KEYS, "label", path=True), LARGEST_JSON)
        self._known: dict[tuple[str, int | None], tuple[float, Served]] = {}

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model."""
        model, version = request.model, request.version
        try:
            served = self._taking(request, attempt)
            body = [predict_request(request.inputs)]
            headers = {"Content-Type": "application/json"}
            with self._connections.request(
                "POST", self._path(model, version, ":predict"), attempt, headers, body
            ) as found:
                found.check()
                answer = found.read(LARGEST_JSON)
        except NotFound as error:
            raise self._meant(error, request, attempt) from None
        try:
            return Reply(predict_response(answer, served.outputs, self._most, request.outputs), version)
        except (ProtocolError, FailedPrecondition):
            self._known.pop((model, version), None)  # the model may be another one by now
            raise

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions that are available, or the one that the label stands for."""
        if self._label:
            yield self._asked(model, None, attempt)
            return
        for version in available(model, self._statuses(model, attempt)):
            yield self._asked(model, version, attempt)

    def close(self) -> None:
        """Disconnect."""
        self._connections.close()

    def forget(self) -> None:
        """Let go of the parent's connections in a forked child."""
        self._connections.forget()

    def _taking(self, request: Request, attempt: Attempt) -> Served:
        """What the server says of the version, which takes these inputs. Raises InvalidArgument.

        The version that was described may be another one by now, so nothing is refused before the server is asked.
        """
        at, known = self._known.get((request.model, request.version), (0.0, None))
        if known is not None and time.monotonic() <= at + FRESH:
            with suppress(InvalidArgument):
                _check_inputs(request, known)
                return known
        found = self._asked(request.model, request.version, attempt)
        _check_inputs(request, found)
        return found

    def _asked(self, model: str, version: int | None, attempt: Attempt) -> Served:
        found = metadata_response(self._connections.get(self._path(model, version, "/metadata"), attempt))
        self._known[model, version] = time.monotonic(), found
        return found

    def _statuses(self, model: str, attempt: Attempt) -> list[Status]:
        return status_response(self._connections.get(f"/v1/models/{quote(model, safe='')}", attempt))

    def _meant(self, error: NotFound, request: Request, attempt: Attempt) -> OffloadError:
        try:
            return meant(error, request.version, self._statuses(request.model, attempt))
        except OffloadError:
            return error

    def _path(self, model: str, version: int | None, what: str) -> str:
        which = f"/versions/{version}" if version is not None else ""
        if self._label and version is None:
            which = f"/labels/{quote(self._label, safe='')}"
        return f"/v1/models/{quote(model, safe='')}{which}{what}"


def _check_inputs(request: Request, served: Served) -> None:
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in request.inputs.items()}
    check_tensors(served.inputs, given, what=f"model {request.model!r} version {served.version}")
