"""tfs+grpc://HOST:PORT: TensorFlow Serving's PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.transports.access import KEYS
from zmq_offload.transports.channel import Channel
from zmq_offload.transports.outputs import LARGEST
from zmq_offload.transports.tfserving.messages import (
    metadata_request,
    metadata_response,
    predict_request,
    predict_response,
    status_request,
    status_response,
)
from zmq_offload.transports.tfserving.metadata import Status, available, label_of, meant
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url

_PREDICTION, _MODEL = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"


class TfServingGrpc:
    """Calls of Predict. The deadline of gRPC is the server's, too."""

    ABILITIES: ClassVar[Abilities] = Abilities(cancel=True, priority=False, deadline=True, versions=True, shared=True)

    def __init__(self, url: Url, options: Options) -> None:
        self._most = options.max_frame_bytes
        self._label = label_of(url)
        self._channel = Channel(url.only(*KEYS, "label"), self._most + LARGEST)

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model."""
        message = predict_request(request.model, request.version, self._label, request.inputs)
        try:
            answer = self._channel.call(f"{_PREDICTION}Predict", message, attempt)
        except NotFound as error:
            raise self._meant(error, request, attempt) from None
        version, outputs = predict_response(answer, self._most, request.outputs)
        return Reply(outputs, version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions that are available, or the one that the label stands for."""
        if self._label:
            yield self._described(model, None, attempt)
            return
        for version in available(model, self._statuses(model, attempt)):
            yield self._described(model, version, attempt)

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def forget(self) -> None:
        """The channel is the parent's. It stays as it is: the client keeps it from being collected."""

    def _described(self, model: str, version: int | None, attempt: Attempt) -> Served:
        request = metadata_request(model, version, self._label)
        return metadata_response(self._channel.small(f"{_PREDICTION}GetModelMetadata", request, attempt))

    def _statuses(self, model: str, attempt: Attempt) -> list[Status]:
        return status_response(self._channel.small(f"{_MODEL}GetModelStatus", status_request(model), attempt))

    def _meant(self, error: NotFound, request: Request, attempt: Attempt) -> OffloadError:
        try:
            return meant(error, request.version, self._statuses(request.model, attempt))
        except OffloadError:
            return error
