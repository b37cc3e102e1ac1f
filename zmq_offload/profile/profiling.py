"""Take a profile: open the model, measure this machine's peak, run the model with and without the profiler."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.client.sync import Client
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.console.progress import Progress
from zmq_offload.errors import NotFound
from zmq_offload.profile import measure
from zmq_offload.profile.result import Profile
from zmq_offload.profile.subject import Subject, open_subject
from zmq_offload.protocol.payload import Array

if TYPE_CHECKING:
    from zmq_offload.compile.onnx.shapes import Dim


@dataclass(frozen=True)
class Order:
    """What to profile: a model file, a version or a device bundle, whose calls go to `broker` if there is one. `split`
    is one of an adaptive bundle."""

    model: Path
    inputs: Mapping[str, Sequence[Dim]]
    target: str | None
    threads: int
    repeat: int
    broker: Sequence[str] | None = None
    timeout: float = 10.0
    split: str | None = None


def take_profile(order: Order, progress: Progress) -> Profile:
    """Measure where the time of a model goes. Raises NotFound if no worker serves what a device bundle calls."""
    notes: list[str] = []
    with ExitStack() as stack:
        client = stack.enter_context(Client(order.broker, timeout=order.timeout)) if order.broker else None
        if client is not None and order.broker is not None:
            check_served(client, Manifest.read(order.model), order.broker)
        with progress.step(f"{'compile' if order.model.is_file() else 'load'} {order.model}"):
            subject = open_subject(order.model, order.inputs, order.target, client, order.split)
        if subject.offloaded and client is None:
            names = ", ".join(dict.fromkeys(subject.offloaded.values()))
            notes.append(f"no --broker: {names} did not run; their outputs are zeros")
        arrays = subject.arrays(order.inputs)
        with progress.step("measure this machine's peak"):
            ceiling = _peak(subject, order.threads, notes)
        reference = _reference(subject, arrays, order.threads, notes)
        with progress.step(f"run it {order.repeat} times with and without the profiler") as say:
            measured = measure.measure(subject, arrays, order.repeat, reference, say)
    if not subject.flops:
        notes.append("the library has no counts of operations; compile it again for GFLOP/s")
    shapes = (f"{s.name} {'x'.join(map(str, a.shape))}" for s, a in zip(subject.inputs, arrays, strict=True))
    return Profile(
        subject.title,
        subject.kind,
        "; ".join(shapes),
        subject.target,
        order.threads,
        order.repeat,
        measured,
        ceiling,
        tuple(notes),
    )


def check_served(client: Client, bundle: Manifest, broker: Sequence[str]) -> None:
    """Check that workers serve each model that a bundle calls.

    Raises NotFound otherwise, and what `Client.models` raises if no broker answers.
    """
    served = {(model["name"], model["version"]) for model in client.models()}
    names = sorted({name for name, _ in served})
    for part in bundle.offloaded:
        if part.pinned is None and part.model not in names:
            raise NotFound(
                f"no worker at {', '.join(broker)} serves {part.model!r}, which the bundle calls; served are "
                f"{', '.join(names) or 'none'}{did_you_mean(part.model, names)}"
            )
        if part.pinned is not None and (part.model, part.pinned) not in served:
            raise NotFound(f"no worker at {', '.join(broker)} serves version {part.version} of {part.model!r}")


def _peak(subject: Subject, threads: int, notes: list[str]) -> float | None:
    """This machine's peak; None, with a note, on a device, which has no compiler to spare."""
    if importlib.util.find_spec("onnx") is None:
        notes.append("the peak is not measured, since that needs the extra compile")
        return None
    from zmq_offload.compile.target import resolve_target
    from zmq_offload.profile import peak

    return peak.measured_peak(resolve_target(subject.target), threads)


def _reference(
    subject: Subject, arrays: Sequence[Array], threads: int, notes: list[str]
) -> Callable[[], Callable[[], object]] | None:
    """ONNX Runtime for an ONNX file, as `measure` takes it; a note if it is not installed."""
    if subject.onnx is None:
        return None
    feed = {spec.name: array for spec, array in zip(subject.inputs, arrays, strict=True)}
    try:
        return measure.onnxruntime_caller(subject.onnx, feed, threads)
    except ImportError:
        notes.append("ONNX Runtime is not installed, so nothing is compared with it")
        return None
