"""The endpoint that runs a model. Pure."""

from __future__ import annotations

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Fabric, Outputs, check_allowed, with_headers
from zmq_offload.gateway.catalog import Catalog, Model
from zmq_offload.gateway.http.messages import Request, Respond
from zmq_offload.gateway.http.responses import failed
from zmq_offload.gateway.http.router import Names
from zmq_offload.gateway.oip.infer import HEAD_LENGTH, Answer, decode, decode_raw, encode, is_raw
from zmq_offload.gateway.oip.metadata import batched
from zmq_offload.gateway.oip.versions import version_of
from zmq_offload.gateway.regions.files import SharedMemory


class Inference:
    """Answers requests to run a model."""

    def __init__(self, fabric: Fabric, memory: SharedMemory) -> None:
        self._fabric = fabric
        self._memory = memory

    def __call__(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """Run a model and respond."""
        model, body = names["model"], request.body
        length = request.headers.get(HEAD_LENGTH)
        try:
            version = version_of(names.get("version"))
            if is_raw(length, body):
                return _Informed(self._fabric, request, model, version, None, respond).cancel
            call, answer = decode(model, version, length, body, self._memory, request.grant)
        except OffloadError as error:
            respond(failed(error))
            return None
        if answer.classified:
            return _Informed(self._fabric, request, model, version, (call, answer), respond).cancel

        def ended(outputs: Outputs | OffloadError) -> None:
            _respond(outputs, answer, False, respond)

        return self._fabric.infer(with_headers(call, request.headers), request.grant, ended)


def _respond(outputs: Outputs | OffloadError, answer: Answer, batches: bool, respond: Respond) -> None:
    if isinstance(outputs, OffloadError):
        respond(failed(outputs))
        return
    try:
        response = encode(outputs, answer, batches)
    except OffloadError as error:
        response = failed(error)
    respond(response)


def _nothing() -> None:
    """Takes nothing back."""


class _Informed:
    """A request that needs to know the model: it waits for the catalog first, and then for the outputs."""

    __slots__ = ("_cancel", "_decoded", "_fabric", "_name", "_request", "_respond", "_version")

    def __init__(
        self,
        fabric: Fabric,
        request: Request,
        name: str,
        version: int | None,
        decoded: tuple[Call, Answer] | None,
        respond: Respond,
    ) -> None:
        self._fabric, self._request, self._respond = fabric, request, respond
        self._name, self._version, self._decoded = name, version, decoded
        self._cancel: Cancel = _nothing
        asking = fabric.models(request.grant, self._listed, name, version)
        if self._cancel is _nothing:  # else the catalog was there at once, and the model is running
            self._cancel = asking

    def cancel(self) -> None:
        """Take the request back."""
        self._cancel()

    def _listed(self, catalog: Catalog | OffloadError) -> None:
        if isinstance(catalog, OffloadError):
            self._respond(failed(catalog))
            return
        try:
            check_allowed(self._name, self._request.grant)
            model = catalog.awaited(self._name, self._version)
            self._cancel = self._run(model, *(self._decoded or decode_raw(model, self._version, self._request.body)))
        except OffloadError as error:
            self._respond(failed(error))

    def _run(self, model: Model, call: Call, answer: Answer) -> Cancel:
        def ended(outputs: Outputs | OffloadError) -> None:
            _respond(outputs, answer, batched(model), self._respond)

        return self._fabric.infer(with_headers(call, self._request.headers), self._request.grant, ended)
