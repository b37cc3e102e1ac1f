"""One request to run a model over gRPC, from its message to its answer. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Buffer, Call, Cancel, Fabric, Outputs, check_allowed, with_headers
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.grpc.calls import Context
from zmq_offload.gateway.oip.grpc_infer import Answer, decode, encode
from zmq_offload.gateway.oip.metadata import batched
from zmq_offload.gateway.protobuf.known_requests import Divided
from zmq_offload.gateway.regions.files import SharedMemory
from zmq_offload.net.grants import Grant

Answered: TypeAlias = "Callable[[list[Buffer] | OffloadError], None]"
"""Takes the parts of an inference.ModelInferResponse, or what went wrong."""


class Inference:
    """Runs models. `final` is the parameter `triton_final_response` of its answers."""

    def __init__(self, fabric: Fabric, memory: SharedMemory, final: bool | None = None) -> None:
        self._fabric = fabric
        self._memory = memory
        self._final = final

    def start(self, divided: Divided, context: Context, answered: Answered) -> Cancel:
        """Run a model. Raises OffloadError for a message that is bad."""
        grant, timeout = context.grant, context.timeout
        call, answer = decode(divided, self._memory, grant)
        call = with_headers(call, context.metadata)
        if timeout is not None and (call.timeout is None or timeout < call.timeout):
            call = call._replace(timeout=timeout)
        if answer.classified:
            return _Informed(self._fabric, call, answer, grant, self._final, answered).cancel
        final = self._final

        def ended(outputs: Outputs | OffloadError) -> None:
            _answer(outputs, answer, False, final, answered)

        return self._fabric.infer(call, grant, ended)


def _answer(
    outputs: Outputs | OffloadError, answer: Answer, batches: bool, final: bool | None, answered: Answered
) -> None:
    if isinstance(outputs, OffloadError):
        answered(outputs)
        return
    message: list[Buffer] | OffloadError
    try:
        message = encode(outputs, answer, batches, final)
    except OffloadError as error:
        message = error
    answered(message)


class _Informed:
    """A request for classes. It waits for the catalog, which says whether the model has a batch, and then runs."""

    __slots__ = ("_answer", "_answered", "_asking", "_call", "_fabric", "_final", "_grant", "_running")

    def __init__(
        self, fabric: Fabric, call: Call, answer: Answer, grant: Grant, final: bool | None, answered: Answered
    ) -> None:
        self._fabric, self._call, self._answer, self._grant = fabric, call, answer, grant
        self._final, self._answered = final, answered
        self._running: Cancel | None = None
        self._asking = fabric.models(grant, self._listed, call.model, call.version)

    def cancel(self) -> None:
        """Take the request back."""
        (self._running or self._asking)()

    def _listed(self, catalog: Catalog | OffloadError) -> None:
        try:
            if isinstance(catalog, OffloadError):
                raise catalog
            check_allowed(self._call.model, self._grant)
            batches = batched(catalog.awaited(self._call.model, self._call.version))
        except OffloadError as error:
            self._answered(error)
            return

        def ended(outputs: Outputs | OffloadError) -> None:
            _answer(outputs, self._answer, batches, self._final, self._answered)

        self._running = self._fabric.infer(self._call, self._grant, ended)
