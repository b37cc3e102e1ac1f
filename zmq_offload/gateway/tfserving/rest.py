"""TensorFlow Serving's REST API over the fabric. Pure."""

from __future__ import annotations

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Fabric, Outputs, check_allowed, with_headers
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.http.messages import Compression, Handler, Request, Respond, Response
from zmq_offload.gateway.http.responses import failed
from zmq_offload.gateway.tfserving import predict
from zmq_offload.gateway.tfserving.paths import Target, target
from zmq_offload.gateway.tfserving.signatures import metadata, statuses
from zmq_offload.gateway.tfserving.values import text
from zmq_offload.protocol.packed import pack

_HEADERS = ("Content-Type", "application/json")


def handler(fabric: Fabric) -> Handler:
    """Answers all requests whose path begins with /v1/."""

    def handle(request: Request, respond: Respond) -> Cancel | None:
        try:
            wanted = target(request.method, request.path)
        except OffloadError as error:
            respond(failed(error))
            return None
        return _Exchange(fabric, request, wanted, respond).cancel

    return handle


def _nothing() -> None:
    """Takes nothing back."""


class _Exchange:
    """One request: it waits for the catalog, and if it is a predict, for the model."""

    __slots__ = ("_cancel", "_fabric", "_form", "_request", "_respond", "_wanted")

    def __init__(self, fabric: Fabric, request: Request, wanted: Target, respond: Respond) -> None:
        self._fabric, self._request, self._wanted, self._respond = fabric, request, wanted, respond
        self._form = predict.Form.COLUMNS
        self._cancel: Cancel = _nothing
        listing = fabric.models(request.grant, self._listed, wanted.model, wanted.version)
        if self._cancel is _nothing:  # else the catalog was there at once, and the model is running
            self._cancel = listing

    def cancel(self) -> None:
        self._cancel()

    def _listed(self, catalog: Catalog | OffloadError) -> None:
        if isinstance(catalog, OffloadError):
            self._respond(failed(catalog))
            return
        name, version, label, action = self._wanted
        try:
            if action == "status":
                found = catalog.find(name, version, label)
                everything = version is None and not label
                self._answer(text(statuses(catalog.versions(name) if everything else [found])))
            elif action == "metadata":
                self._answer(text(metadata(catalog.find(name, version, label))))
            else:
                check_allowed(name, self._request.grant)
                inputs, self._form = predict.request(self._request.body, catalog.awaited(name, version, label))
                call = with_headers(Call(name, version, pack(inputs), label=label), self._request.headers)
                self._cancel = self._fabric.infer(call, self._request.grant, self._ended)
        except OffloadError as error:
            self._respond(failed(error))

    def _ended(self, outputs: Outputs | OffloadError) -> None:
        if isinstance(outputs, OffloadError):
            self._respond(failed(outputs))
            return
        try:
            self._answer(predict.response(outputs.tensors, self._form))
        except OffloadError as error:
            self._respond(failed(error))

    def _answer(self, body: bytes) -> None:
        self._respond(Response(200, [body], [_HEADERS], compression=Compression.ACCEPTING))
