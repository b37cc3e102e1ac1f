"""Prepare a load test: the inputs to send, and one request that shows that they work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.client.sync import Client
from zmq_offload.errors import InvalidArgument
from zmq_offload.loadgen.inputs import check_expected, make_inputs, served_signature
from zmq_offload.loadgen.sender import SendPlan
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec


@dataclass(frozen=True)
class Order:
    """What to send: a served model, or with `bundle` a model that this device bundle calls.

    `files` and `shapes` replace random inputs and open shapes, by input name. With `verify`, results must be equal to
    `expected`, or to the first result.
    """

    model: str | None
    bundle: Path | None
    files: Mapping[str, Array]
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    verify: bool
    expected: Mapping[str, Array]


def prepare(order: Order, settings: SendPlan) -> SendPlan:
    """Complete `settings` with the model, its inputs and the expected outputs.

    Sends one request, so that anything wrong is found before the load starts. Raises InvalidArgument for inputs that do
    not fit the model, and what the request raises.
    """
    expected = dict(order.expected)
    version = settings.version
    with Client(settings.brokers, timeout=settings.timeout, max_frame_bytes=settings.max_frame_bytes) as client:
        if order.bundle is not None:
            model, signature, bundled = _of_bundle(order.bundle, order.model)
            version = version or bundled
        elif order.model is None:
            raise InvalidArgument("no model to send to; give --model or --bundle")
        else:
            model, signature = order.model, served_signature(client.models(), order.model, version)
        name = f"model {model!r}"
        inputs = make_inputs(signature, order.files, order.shapes, name, settings.seed, settings.max_frame_bytes)
        first = client.infer(model, inputs, version=version, priority=settings.priority)
    check_expected(expected, first)
    if order.verify and not expected:
        expected = {name: array.copy() for name, array in first.items()}
    return replace(settings, model=model, version=version, inputs=inputs, expected=expected if order.verify else None)


def _of_bundle(bundle: Path, model: str | None) -> tuple[str, Sequence[TensorSpec], int | None]:
    """The name, inputs and version of the model that a device bundle calls: of `model`, or of the first."""
    offloaded = Manifest.read(bundle).offloaded
    found = next((part for part in offloaded if model in (None, part.model)), None)
    if found is None:
        names = ", ".join(part.model for part in offloaded) or "no model"
        raise InvalidArgument(f"{bundle} does not call model {model!r}; it calls {names}")
    return found.model, found.inputs, found.pinned
