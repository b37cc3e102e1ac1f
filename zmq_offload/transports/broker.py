"""A broker of ours as one of several servers. Brokers alone have `zmq_offload.Client`, which does more for them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import ClassVar

from zmq_offload.client.sync import Client
from zmq_offload.errors import Cancelled, NotFound
from zmq_offload.net.endpoints import check_connectable
from zmq_offload.protocol.tensors import Latest, TensorSpec
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url


class BrokerTransport:
    """Calls through a broker."""

    ABILITIES: ClassVar[Abilities] = Abilities(
        cancel=True, priority=True, deadline=True, versions=True, shared=True, labels=True
    )

    def __init__(self, url: Url, options: Options) -> None:
        self._client = Client(check_connectable(url.text), max_frame_bytes=options.max_frame_bytes)
        self._client.belongs_to_another()

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Run a model on a worker."""
        future = self._client.submit(
            request.model,
            request.inputs,
            version=Latest(request.signature) if request.signature else request.version,
            label=request.label or None,
            timeout=attempt.seconds(),
            priority=request.priority,
        )
        with attempt.stopped_by(future.cancel):
            try:
                outputs = future.result()
            except CancelledError:
                raise Cancelled("the call was canceled") from None
        return Reply(outputs, outputs.version)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The versions that workers serve."""
        found = [
            Served(one["version"], _specs(one["inputs"]), _specs(one["outputs"]))
            for one in self._client.models(timeout=attempt.seconds())
            if one["name"] == model
        ]
        if not found:
            raise NotFound(f"model {model!r} is not served")
        return sorted(found, key=lambda one: one.version or 0, reverse=True)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def forget(self) -> None:
        """Nothing: the client does it itself."""


def _specs(described: Iterable[object]) -> list[TensorSpec]:
    return [TensorSpec.from_json(one) for one in described]
