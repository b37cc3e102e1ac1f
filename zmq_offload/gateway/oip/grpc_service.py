"""inference.GRPCInferenceService: what each method answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from google.protobuf.json_format import ParseDict

from zmq_offload.errors import InvalidArgument, NotFound, OffloadError
from zmq_offload.gateway.calls import Buffer, Cancel, Fabric
from zmq_offload.gateway.catalog import Catalog, Indexed
from zmq_offload.gateway.grpc.calls import Context, Reply, Streaming, Unary, Writer
from zmq_offload.gateway.oip import metadata
from zmq_offload.gateway.oip.grpc_inference import Inference
from zmq_offload.gateway.oip.grpc_stream import InferStream
from zmq_offload.gateway.oip.statistics import model_stats
from zmq_offload.gateway.oip.versions import version_of
from zmq_offload.gateway.protobuf.infer_request import divide
from zmq_offload.gateway.regions.files import Off, SharedMemory
from zmq_offload.protobuf.messages import message_class, parse_small_message

SERVICE = "inference.GRPCInferenceService"

Done: TypeAlias = "Callable[[Mapping[str, object] | OffloadError], None]"
"""Takes the fields of a response, as JSON has them, or what went wrong."""

Endpoint: TypeAlias = "Callable[[Any, Context, Done], Cancel | None]"
"""Answers a request, which is a protobuf message. Raises OffloadError."""


def methods(fabric: Fabric, memory: SharedMemory) -> dict[str, Unary | Streaming]:
    """All methods of the service, by their paths."""
    service = _Service(fabric, memory)
    endpoints: dict[str, Endpoint] = {
        "ServerLive": _always({"live": True}),
        "ServerReady": service.ready,
        "ServerMetadata": _always(
            metadata.server_metadata([] if isinstance(memory, Off) else ["system_shared_memory"])
        ),
        "ModelReady": service.model_ready,
        "ModelMetadata": service.model,
        "ModelConfig": service.config,
        "ModelStatistics": service.stats,
        "RepositoryIndex": service.index,
        "RepositoryModelLoad": service.load,
        "RepositoryModelUnload": service.unload,
        "SystemSharedMemoryStatus": service.regions,
        "SystemSharedMemoryRegister": service.register,
        "SystemSharedMemoryUnregister": service.unregister,
        "CudaSharedMemoryStatus": _always({}),
        "CudaSharedMemoryRegister": _never(metadata.NO_CUDA),
        "CudaSharedMemoryUnregister": _always({}),
        "TraceSetting": _trace_setting,
        "LogSettings": _never(metadata.NO_LOG_SETTINGS),
    }
    found: dict[str, Unary | Streaming] = {
        f"/{SERVICE}/{name}": _unary(name, endpoint) for name, endpoint in endpoints.items()
    }
    found[f"/{SERVICE}/ModelInfer"] = service.infer
    found[f"/{SERVICE}/ModelStreamInfer"] = Streaming(service.stream)
    return found


def _unary(name: str, endpoint: Endpoint) -> Unary:
    """A method whose request and response are protobuf messages named after it."""
    request, response = f"inference.{name}Request", message_class(f"inference.{name}Response")

    def method(data: Buffer, context: Context, reply: Reply) -> Cancel | None:
        def done(fields: Mapping[str, object] | OffloadError) -> None:
            if isinstance(fields, OffloadError):
                reply(fields)
            else:
                reply((ParseDict(fields, response()).SerializeToString(),))

        try:
            return endpoint(parse_small_message(request, data), context, done)
        except OffloadError as error:
            reply(error)
            return None

    return method


def _always(fields: Mapping[str, object]) -> Endpoint:
    def endpoint(_request: Any, _context: Context, done: Done) -> None:
        done(fields)

    return endpoint


def _never(error: OffloadError) -> Endpoint:
    def endpoint(_request: Any, _context: Context, done: Done) -> None:
        done(error)

    return endpoint


def _trace_setting(request: Any, _context: Context, done: Done) -> None:
    if request.settings:
        raise metadata.NO_TRACING
    settings = {
        name: {"value": [value] if isinstance(value, str) else value} for name, value in metadata.TRACING_OFF.items()
    }
    done({"settings": settings})


class _Service:
    """The methods that ask the fabric or shared memory."""

    def __init__(self, fabric: Fabric, memory: SharedMemory) -> None:
        self._fabric = fabric
        self._memory = memory
        self._inference = Inference(fabric, memory)
        self._stream_inference = Inference(fabric, memory, final=True)

    # --- inference ------------------------------------------------------------------------------------------

    def infer(self, data: Buffer, context: Context, reply: Reply) -> Cancel | None:
        """Run a model."""
        try:
            return self._inference.start(divide(data), context, reply)
        except OffloadError as error:
            reply(error)
            return None

    def stream(self, context: Context, writer: Writer) -> InferStream:
        """Run models, many requests in one call."""
        return InferStream(self._stream_inference, context, writer)

    # --- server and models ----------------------------------------------------------------------------------

    def ready(self, _request: Any, context: Context, done: Done) -> Cancel:
        """Whether a broker answers and serves a model that the client may use, and the gateway does not drain."""

        def listed(catalog: Catalog | OffloadError) -> None:
            ready = isinstance(catalog, Catalog) and any(model.open for model in catalog.models)
            done({"ready": ready and not self._fabric.stopping})

        return self._fabric.models(context.grant, listed)

    def model_ready(self, request: Any, context: Context, done: Done) -> Cancel:
        """Whether some worker takes requests for a model."""

        def answer(catalog: Catalog, version: int | None) -> Mapping[str, object]:
            try:
                catalog.find(request.name, version)
            except NotFound:
                return {"ready": False}
            return {"ready": True}

        return self._found(request, context, done, answer)

    def model(self, request: Any, context: Context, done: Done) -> Cancel:
        """The metadata of a model."""

        def answer(catalog: Catalog, version: int | None) -> Mapping[str, object]:
            found = catalog.find(request.name, version)
            versions = [model.version for model in catalog.versions(request.name)] if version is None else [version]
            return metadata.model_metadata(found, versions)

        return self._found(request, context, done, answer)

    def config(self, request: Any, context: Context, done: Done) -> Cancel:
        """The configuration of a model."""

        def answer(catalog: Catalog, version: int | None) -> Mapping[str, object]:
            return {"config": metadata.model_config(catalog.find(request.name, version))}

        return self._found(request, context, done, answer)

    def stats(self, request: Any, context: Context, done: Done) -> Cancel:
        """The statistics of a version, of all versions of a model, or of all models."""

        def answer(catalog: Catalog, version: int | None) -> Mapping[str, object]:
            if not request.name:
                return model_stats([model for model in catalog.models if model.open], self._fabric.statistics)
            try:
                found = catalog.find(request.name, version)
            except NotFound as error:  # Triton's code for this method
                raise InvalidArgument(error.message) from None
            models = catalog.versions(request.name) if version is None else [found]
            return model_stats(models, self._fabric.statistics)

        return self._found(request, context, done, answer)

    def _found(
        self,
        request: Any,
        context: Context,
        done: Done,
        answer: Callable[[Catalog, int | None], Mapping[str, object]],
    ) -> Cancel:
        """Answer with what becomes of the list of models and the version of the request."""
        version = version_of(request.version)
        return self._listed(context, done, lambda catalog: answer(catalog, version), request.name or None, version)

    def _listed(
        self,
        context: Context,
        done: Done,
        answer: Callable[[Catalog], Mapping[str, object]],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        """Answer with what becomes of the list of models."""

        def listed(catalog: Catalog | OffloadError) -> None:
            fields: Mapping[str, object] | OffloadError
            try:
                fields = answer(catalog) if isinstance(catalog, Catalog) else catalog
            except OffloadError as error:
                fields = error
            done(fields)

        return self._fabric.models(context.grant, listed, name, version)

    # --- the model repository -------------------------------------------------------------------------------

    def index(self, request: Any, context: Context, done: Done) -> Cancel:
        """The models of the repository."""

        def ended(versions: list[Indexed] | OffloadError) -> None:
            done(
                versions if isinstance(versions, OffloadError) else {"models": metadata.index(versions, request.ready)}
            )

        return self._fabric.index(context.grant, ended)

    def load(self, request: Any, context: Context, done: Done) -> Cancel:
        """Take requests for a model again."""
        metadata.check_load(request.parameters)
        return self._fabric.load(request.model_name, context.grant, _ended(done))

    def unload(self, request: Any, context: Context, done: Done) -> Cancel:
        """Take no more requests for a model."""
        return self._fabric.unload(request.model_name, context.grant, _ended(done))

    # --- shared memory --------------------------------------------------------------------------------------

    def regions(self, request: Any, context: Context, done: Done) -> None:
        """The regions of system shared memory that the client has registered."""
        regions = self._memory.regions(request.name or None, context.grant)
        done({"regions": {region.name: region._asdict() for region in regions}})

    def register(self, request: Any, context: Context, done: Done) -> None:
        """Register a region of system shared memory."""
        self._memory.register(request.name, request.key, request.offset, request.byte_size, context.grant)
        done({})

    def unregister(self, request: Any, context: Context, done: Done) -> None:
        """Forget a region of system shared memory, or all."""
        self._memory.unregister(request.name or None, context.grant)
        done({})


def _ended(done: Done) -> Callable[[OffloadError | None], None]:
    return lambda error: done({} if error is None else error)
