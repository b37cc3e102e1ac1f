"""From requests' frames to results': decode, check against the signature, execute together, encode."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zmq_offload.artifacts.repository import Batching, ModelVersion
from zmq_offload.errors import Internal, InvalidArgument, OffloadError
from zmq_offload.protocol.payload import Array, decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import check_tensors, datatype_of

log = logging.getLogger("workers")


class Executor(Protocol):
    """Runs one version of a model."""

    @property
    def model(self) -> ModelVersion: ...

    def run(self, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """The outputs of each request, in the order of `model.outputs`, for its inputs, in that of `model.inputs`.

        The inputs fit the signature and, where there are several requests, differ in dimension 0 only: they run
        together. They may be unaligned and read-only and are valid only during the call; the outputs must stay as they
        are for as long as they are referred to.
        """


class Echo:
    """The model `echo`: returns its inputs, whatever they are. For load tests: what it costs is the fabric's cost."""

    model = ModelVersion("echo", 1, (), (), None, "", "")


@dataclass(slots=True)
class Job:
    """A request that is fit to run. `group` and `rows` are for batching: see `workers.session.Attempt`."""

    executor: Executor | Echo
    tensors: dict[str, Array]
    group: Hashable | None = None
    rows: int = 1


def describe(executor: Executor | Echo) -> dict[str, Any]:
    """A model's entry in the Announce."""
    model = executor.model
    return {
        "name": model.name,
        "version": model.version,
        "inputs": [tensor.to_json() for tensor in model.inputs],
        "outputs": [tensor.to_json() for tensor in model.outputs],
    }


def batching_of(model: ModelVersion, override: Batching | None) -> Batching | None:
    """How requests for a model are put together: as this worker was told, else as its description says, and not at all
    where its tensors have no rows."""
    wanted = override or model.batching
    try:
        if wanted is not None and model.inputs:
            wanted.check((*model.inputs, *model.outputs))
            return wanted
    except InvalidArgument as error:
        log.info("model %s version %d: %s", model.name, model.version, error)
    return None


def prepare(executor: Executor | Echo, frames: Sequence[Any], batching: Batching | None) -> Job:
    """A request's frames as something to execute.

    Raises InvalidArgument for frames that are no tensors, do not fit the signature (naming the tensor) or have more
    rows than the model takes.
    """
    tensors = decode_tensors(frames)
    if isinstance(executor, Echo):
        return Job(executor, tensors)
    model = executor.model
    what = f"model {model.name!r} version {model.version}"
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in tensors.items()}
    check_tensors(model.inputs, given, what=what)
    if batching is None:
        return Job(executor, tensors)
    ordered = [tensors[spec.name] for spec in model.inputs]
    rows = ordered[0].shape[0]
    if rows > batching.max_batch:
        raise InvalidArgument(f"{what}: a batch of {rows} rows, it takes at most {batching.max_batch}")
    return Job(executor, tensors, (model.name, model.version, *(array.shape[1:] for array in ordered)), rows)


def execute(jobs: Sequence[Job]) -> list[list[Any] | OffloadError]:
    """`[header, frame, ...]` of the outputs of each job, or how it failed. Several jobs are of one group."""
    executor = jobs[0].executor
    try:
        if isinstance(executor, Echo):
            return [encode_tensors(job.tensors) for job in jobs]
        results = executor.run([[job.tensors[spec.name] for spec in executor.model.inputs] for job in jobs])
        names = [spec.name for spec in executor.model.outputs]
        return [encode_tensors(list(zip(names, outputs, strict=True))) for outputs in results]
    except Exception as error:
        if len(jobs) > 1:
            # One of them may be at fault; alone, the others succeed.
            return [outcome for job in jobs for outcome in execute([job])]
        if isinstance(error, OffloadError):
            return [error]
        log.exception("model %s version %d failed", executor.model.name, executor.model.version)
        return [Internal(f"{type(error).__name__}: {error}")]


def bounded(outcome: list[Any] | OffloadError, own: int, brokers: int) -> list[Any] | OffloadError:
    """An outcome, or the error that it has a frame of more bytes than this worker or the broker takes. A broker would
    close the connection for it, and take the request for one that takes workers down."""
    if isinstance(outcome, OffloadError) or (longest := max(map(len, outcome))) <= min(own, brokers):
        return outcome
    return InvalidArgument(
        f"the outputs have a frame of {longest} bytes; this worker's --max-frame-bytes is {own}, the broker's {brokers}"
    )
