"""The Open Inference Protocol over HTTP: what each path answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from zmq_offload.errors import InvalidArgument, NotFound, OffloadError
from zmq_offload.gateway.calls import Cancel, Fabric
from zmq_offload.gateway.catalog import Catalog, Indexed
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.responses import failed, failure
from zmq_offload.gateway.http.router import Endpoint, Names
from zmq_offload.gateway.oip import json_data, metadata
from zmq_offload.gateway.oip.inference import Inference
from zmq_offload.gateway.oip.responses import empty, json
from zmq_offload.gateway.oip.statistics import model_stats
from zmq_offload.gateway.oip.versions import version_of
from zmq_offload.gateway.regions.files import Off, SharedMemory


def routes(fabric: Fabric, memory: SharedMemory) -> Iterator[tuple[str, str, Endpoint]]:
    """Method, path with names in braces, and endpoint, of all paths but those that register system shared memory."""
    rest = _Rest(fabric)
    extensions = ["binary_tensor_data", *([] if isinstance(memory, Off) else ["system_shared_memory"])]
    infer = Inference(fabric, memory)
    yield "GET", "/v2", _always(json(metadata.server_metadata(extensions)))
    yield "GET", "/v2/health/live", _always(json({"live": True}))
    yield "GET", "/v2/health/ready", rest.ready
    yield "GET", "/v2/models/stats", rest.all_stats
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        yield "POST", f"{path}/infer", _versioned(infer)
        yield "GET", path, _versioned(rest.model)
        yield "GET", f"{path}/ready", _versioned(rest.model_ready)
        yield "GET", f"{path}/config", _versioned(rest.config)
        yield "GET", f"{path}/stats", _versioned(rest.stats)
    yield "POST", "/v2/repository/index", rest.index
    yield "POST", "/v2/repository/models/{model}/load", rest.load
    yield "POST", "/v2/repository/models/{model}/unload", rest.unload
    for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
        yield "GET", path, _always(json(metadata.TRACING_OFF))
        yield "POST", path, _always(failed(metadata.NO_TRACING))
    for method in ("GET", "POST"):
        yield method, "/v2/logging", _always(failed(metadata.NO_LOG_SETTINGS))
    for path in ("/v2/cudasharedmemory", "/v2/cudasharedmemory/region/{region}"):
        yield "GET", f"{path}/status", _always(json([]))
        yield "POST", f"{path}/unregister", _always(empty())
        yield "POST", f"{path}/register", _always(failed(metadata.NO_CUDA))


def _always(response: Response) -> Endpoint:
    """Answers every request alike."""

    def endpoint(_request: Request, _names: Names, respond: Respond) -> None:
        respond(Response(response.status, response.body, list(response.headers)))

    return endpoint


def _versioned(endpoint: Endpoint) -> Endpoint:
    """A path whose version is no number leads nowhere, as in Triton."""

    def checked(request: Request, names: Names, respond: Respond) -> Cancel | None:
        version = names.get("version", "0")
        if not (version.isascii() and version.isdecimal()):
            respond(failure(404, f"the path {request.path!r:.200} is not served here; a version is a whole number"))
            return None
        return endpoint(request, names, respond)

    return checked


class _Index(msgspec.Struct):
    ready: bool = False


class _Load(msgspec.Struct):
    parameters: dict[str, Any] = {}


class _UnloadParameters(msgspec.Struct, frozen=True):
    unload_dependents: bool = False


class _Unload(msgspec.Struct):
    parameters: _UnloadParameters = _UnloadParameters()


class _Rest:
    """The endpoints that ask for the list of models."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def ready(self, request: Request, _names: Names, respond: Respond) -> Cancel | None:
        """Whether a broker answers and serves a model that the client may use, and the gateway does not drain."""

        def answer(catalog: Catalog) -> Response:
            if self._fabric.stopping:
                return failure(400, "the gateway is stopping")
            if not any(model.open for model in catalog.models):
                return failure(400, "no model is served")
            return json({"ready": True})

        return self._listed(request, respond, answer)

    def model_ready(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """Whether some worker takes requests for a model."""

        def answer(catalog: Catalog, name: str, version: int | None) -> Response:
            try:
                catalog.find(name, version)
            except NotFound as error:
                return failure(400, error.message)
            return json({"name": name, "ready": True})

        return self._found(request, names, respond, answer)

    def model(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """The metadata of a model."""

        def answer(catalog: Catalog, name: str, version: int | None) -> Response:
            found = catalog.find(name, version)
            versions = [model.version for model in catalog.versions(name)] if version is None else [version]
            return json(metadata.model_metadata(found, versions))

        return self._found(request, names, respond, answer)

    def config(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """The configuration of a model."""

        def answer(catalog: Catalog, name: str, version: int | None) -> Response:
            return json(metadata.model_config(catalog.find(name, version)))

        return self._found(request, names, respond, answer)

    def stats(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """The statistics of a version, or of all versions of a model."""

        def answer(catalog: Catalog, name: str, version: int | None) -> Response:
            try:
                found = catalog.find(name, version)
            except NotFound as error:
                return failure(400, error.message)
            models = catalog.versions(name) if version is None else [found]
            return json(model_stats(models, self._fabric.statistics))

        return self._found(request, names, respond, answer)

    def all_stats(self, request: Request, _names: Names, respond: Respond) -> Cancel | None:
        """The statistics of all models."""

        def answer(catalog: Catalog) -> Response:
            return json(model_stats([model for model in catalog.models if model.open], self._fabric.statistics))

        return self._listed(request, respond, answer)

    def index(self, request: Request, _names: Names, respond: Respond) -> Cancel | None:
        """The models of the repository."""

        try:
            ready = _body(request, _Index).ready
        except OffloadError as error:
            respond(failed(error))
            return None

        def ended(versions: list[Indexed] | OffloadError) -> None:
            if isinstance(versions, OffloadError):
                respond(failed(versions))
            else:
                respond(json(metadata.index(versions, ready)))

        return self._fabric.index(request.grant, ended)

    def load(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """Take requests for a model again."""
        try:
            metadata.check_load(_body(request, _Load).parameters)
        except OffloadError as error:
            respond(failed(error))
            return None
        return self._fabric.load(names["model"], request.grant, _done(respond))

    def unload(self, request: Request, names: Names, respond: Respond) -> Cancel | None:
        """Take no more requests for a model."""
        try:
            _body(request, _Unload)
        except OffloadError as error:
            respond(failed(error))
            return None
        return self._fabric.unload(names["model"], request.grant, _done(respond))

    def _found(
        self, request: Request, names: Names, respond: Respond, answer: Callable[[Catalog, str, int | None], Response]
    ) -> Cancel | None:
        """Answer with what becomes of the list of models and the name and version of the path."""
        name = names["model"]
        try:
            version = version_of(names.get("version"))
        except OffloadError as error:
            respond(failed(error))
            return None
        return self._listed(request, respond, lambda catalog: answer(catalog, name, version), name, version)

    def _listed(
        self,
        request: Request,
        respond: Respond,
        answer: Callable[[Catalog], Response],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        """Answer with what becomes of the list of models."""

        def listed(catalog: Catalog | OffloadError) -> None:
            if isinstance(catalog, OffloadError):
                respond(failed(catalog))
                return
            try:
                response = answer(catalog)
            except OffloadError as error:
                response = failed(error)
            respond(response)

        return self._fabric.models(request.grant, listed, name, version)


def _done(respond: Respond) -> Callable[[OffloadError | None], None]:
    return lambda error: respond(empty() if error is None else failed(error))


_Body = TypeVar("_Body")


def _body(request: Request, form: type[_Body]) -> _Body:
    """The JSON object of a request, or an empty one if there is no body. Raises InvalidArgument."""
    json_data.check_small(request.body)
    try:
        return msgspec.json.decode(request.body or b"{}", type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the body is not the JSON object of such a request: {error}") from None
