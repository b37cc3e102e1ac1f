"""A client whose calls belong to traces: what `zmq_offload.load(..., trace=True)` puts in front of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from zmq_offload.device.remote import Reply
from zmq_offload.protocol.payload import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions, SubmitOptions


class TracingClient(Protocol):
    """An `InferenceClient` that takes `trace`, as `zmq_offload.Client` does."""

    def infer(
        self, model: str, inputs: Mapping[str, Array], *, trace: bool, **options: Unpack[InferOptions]
    ) -> Reply: ...


class Traced:
    """An `InferenceClient` whose calls are under OpenTelemetry's current span."""

    def __init__(self, client: TracingClient) -> None:
        self._client = client

    @property
    def leave(self) -> Callable[[], None]:
        """As the client's, if it has one."""
        leave: Callable[[], None] = self._client.leave  # type: ignore[attr-defined]
        return leave

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Reply:
        """As the client's."""
        return self._client.infer(model, inputs, trace=True, **options)

    @property
    def submit(self) -> Callable[..., Future[Reply]]:
        """As the client's, if it has one."""
        submit: Callable[..., Future[Reply]] = self._client.submit  # type: ignore[attr-defined]

        def traced(model: str, inputs: Mapping[str, Array], **options: Unpack[SubmitOptions]) -> Future[Reply]:
            return submit(model, inputs, trace=True, **options)

        return traced
