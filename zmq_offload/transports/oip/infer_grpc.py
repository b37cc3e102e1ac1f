"""grpc://HOST:PORT: inference.GRPCInferenceService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.transports.access import KEYS
from zmq_offload.transports.channel import Channel
from zmq_offload.transports.oip.messages import (
    infer_request,
    infer_response,
    is_ready,
    metadata_response,
    model_request,
)
from zmq_offload.transports.oip.metadata import Metadata, meant, served_versions
from zmq_offload.transports.outputs import LARGEST
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url

_SERVICE = "/inference.GRPCInferenceService/"


class OipGrpc:
    """Calls of ModelInfer. The deadline of gRPC is the server's, too."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=True, priority=True, deadline=True, versions=True, shared=True)

    def __init__(self, url: Url, options: Options) -> None:
        self._most = options.max_frame_bytes
        self._channel = Channel(url.only(*KEYS), self._most + LARGEST)

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model."""
        message = infer_request(request.model, request.version, request.inputs, request.priority)
        try:
            answer = self._channel.call(f"{_SERVICE}ModelInfer", message, attempt)
        except NotFound as error:
            raise self._meant(error, attempt) from None
        version, outputs = infer_response(answer, self._most, request.outputs)
        return Reply(outputs, version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions of a model's metadata."""
        try:
            yield from served_versions(lambda version: self._metadata(model, version, attempt))
        except NotFound as error:
            raise self._meant(error, attempt) from None

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def forget(self) -> None:
        """The channel is the parent's. It stays as it is: the client keeps it from being collected."""

    def _metadata(self, model: str, version: int | None, attempt: Attempt) -> Metadata:
        request = model_request(model, version)
        return metadata_response(self._channel.small(f"{_SERVICE}ModelMetadata", request, attempt))

    def _meant(self, error: NotFound, attempt: Attempt) -> OffloadError:
        try:
            return meant(error, is_ready(self._channel.small(f"{_SERVICE}ServerReady", b"", attempt)))
        except OffloadError:
            return error
