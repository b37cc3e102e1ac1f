"""From the frames of requests to the frames of results: decode, check against the signature, execute, encode."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from msgspec import Struct

from zmq_offload.artifacts.config import NO_CONFIG, ModelConfig
from zmq_offload.artifacts.repository import Batching, ModelVersion
from zmq_offload.errors import Internal, InvalidArgument, OffloadError, ResourceExhausted
from zmq_offload.protocol.packed import Layout, Packed, described, unpack
from zmq_offload.protocol.payload import (
    KEPT_HEADER_BYTES,
    KEPT_HEADERS,
    LENGTH_BYTES,
    Array,
    decode_tensors,
    encode_tensors,
)
from zmq_offload.protocol.tensors import check_tensors, datatype_of

if TYPE_CHECKING:
    from zmq_offload.net.pyzmq_internals import Sendable
    from zmq_offload.net.transport import Frames

log = logging.getLogger("workers")

Outcome: TypeAlias = "Sequence[Sendable] | OffloadError"
"""The frames of a result, or the error."""


class DeviceLost(Exception):
    """This process cannot use its GPU any more. It ends without an answer to what it ran, which others run again."""


class Executor(Protocol):
    """Runs one version of a model."""

    @property
    def model(self) -> ModelVersion: ...

    def run(self, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """The outputs of each request, in the order of `model.outputs`. Inputs are in the order of `model.inputs`.

        The inputs fit the signature. Those of several requests differ in dimension 0 only, so that they can run
        together. They may be unaligned and read-only, and are valid only during the call. The outputs must not change
        while they are referenced.
        """


@runtime_checkable
class Overlapping(Executor, Protocol):
    """An executor that can begin a run before the last one ended."""

    def begin(self, requests: Sequence[Sequence[Array]]) -> Callable[[], list[list[Array]]]:
        """Begin what `run` does, for at most two runs at a time. What this returns waits for the end; the inputs are
        not needed any more by then. It is called once, in the order of the runs, and by the same thread."""


class Echo:
    """The model `echo`: returns its inputs, which may be any tensors. It computes nothing, so load tests measure the
    fabric."""

    model = ModelVersion("echo", 1, (), (), None, "", "")


class Job(Struct, eq=False):
    """A request that can run. `group` and `rows` are for batching: see `workers.session.Attempt`."""

    executor: Executor | Echo
    tensors: Mapping[str, Array]
    group: Hashable | None = None
    rows: int = 1


def describe(
    executor: Executor | Echo, batching: Batching | None, config: ModelConfig = NO_CONFIG, returned: str = ""
) -> dict[str, object]:
    """A model's entry in the Announce. `returned`: why its canary was returned."""
    model = executor.model
    entry: dict[str, object] = {
        "name": model.name,
        "version": model.version,
        "inputs": [tensor.to_json() for tensor in model.inputs],
        "outputs": [tensor.to_json() for tensor in model.outputs],
    }
    if batching is not None:
        entry["max_batch"] = batching.max_batch
    if said := config.announced(model.version, model.checksum):
        entry["config"] = {**said, "returned": returned} if returned else said
    return entry


def batching_of(model: ModelVersion, override: Batching | None) -> Batching | None:
    """How requests for a model may run together: by this worker's option, else by `model.json`. None if the tensors
    have no symbolic batch."""
    wanted = override or model.batching
    try:
        if wanted is not None and model.inputs:
            wanted.check((*model.inputs, *model.outputs))
            return wanted
    except InvalidArgument as error:
        log.info("model %s version %d: %s", model.name, model.version, error)
    return None


def prepare(executor: Executor | Echo, frames: Frames, batching: Batching | None) -> Job:
    """The job of a request's frames.

    Raises InvalidArgument if the frames are not tensors, if a tensor, which is named, does not fit the signature, or if
    there are more rows than a batch may have.
    """
    if isinstance(executor, Echo):
        return Job(executor, unpack(frames))
    tensors = decode_tensors(frames)
    model = executor.model
    what = f"model {model.name!r} version {model.version}"
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in tensors.items()}
    check_tensors(model.inputs, given, what=what)
    if batching is None:
        return Job(executor, tensors)
    ordered = [tensors[spec.name] for spec in model.inputs]
    rows = ordered[0].shape[0]
    if rows > batching.max_batch:
        raise InvalidArgument(f"{what}: the batch has {rows} rows; it takes at most {batching.max_batch}")
    return Job(executor, tensors, (model.name, model.version, *(array.shape[1:] for array in ordered)), rows)


class _Alike(NamedTuple):
    """What requests with the same header have in common."""

    layout: Layout
    group: Hashable | None
    rows: int


class Served:
    """A version of a model as it is served here. The header of a request that is like an earlier one is neither decoded
    nor checked again."""

    __slots__ = ("_batching", "_executor", "_known", "lasted", "overlaps")

    def __init__(self, executor: Executor | Echo, batching: Batching | None) -> None:
        self._executor, self._batching = executor, batching
        self._known: dict[bytes, _Alike] = {}
        self.overlaps = isinstance(executor, Overlapping)
        """Whether a run can begin before the last one ended."""
        self.lasted = math.inf
        """Seconds that the last run took, if each request runs alone."""

    def ran(self, seconds: float) -> None:
        """A run took so long."""
        if self._batching is None:
            self.lasted = seconds

    def job(self, frames: Frames) -> Job:
        """`prepare` for this version."""
        head = frames[0] if frames else b""
        header = head[: LENGTH_BYTES + int.from_bytes(head[:LENGTH_BYTES], "big")]
        alike = self._known.get(header)
        if alike is None or alike.layout.sizes != tuple([len(frame) for frame in frames]):
            job = prepare(self._executor, frames, self._batching)
            if len(header) <= KEPT_HEADER_BYTES:
                if len(self._known) >= KEPT_HEADERS:
                    self._known.clear()
                self._known[header] = _Alike(described(header), job.group, job.rows)
            return job
        layout, group, rows = alike
        if type(self._executor) is Echo:
            return Job(self._executor, Packed(layout, frames))
        tensors = {
            name: np.ndarray(shape, dtype, frames[at], start) for name, dtype, shape, at, start, _ in layout.places
        }
        return Job(self._executor, tensors, group, rows)


def execute(jobs: Sequence[Job]) -> list[Outcome]:
    """For each job, `[header, frame, ...]` of the outputs, or the error. Several jobs have the same group. Raises
    DeviceLost."""
    executor = jobs[0].executor
    try:
        if isinstance(executor, Echo):
            return [job.tensors.frames for job in jobs]  # type: ignore[attr-defined]
        return _encoded(executor, executor.run(_inputs(executor, jobs)))
    except DeviceLost:
        raise
    except Exception as error:
        return _failed(jobs, error)


def begin(jobs: Sequence[Job]) -> Callable[[], list[Outcome]]:
    """`execute`, in two steps: what this returns waits for the end. An executor that cannot begin without that runs
    then. Both steps raise DeviceLost."""
    executor = jobs[0].executor
    if isinstance(executor, Overlapping):
        try:
            end = executor.begin(_inputs(executor, jobs))
        except DeviceLost:
            raise
        except ResourceExhausted:
            return partial(execute, jobs)  # the run before this one gives its memory back when it ends
        except Exception as error:
            failure = error
            return lambda: _failed(jobs, failure)
        return partial(_end, executor, jobs, end)
    return partial(execute, jobs)


def _end(executor: Executor, jobs: Sequence[Job], end: Callable[[], list[list[Array]]]) -> list[Outcome]:
    try:
        return _encoded(executor, end())
    except DeviceLost:
        raise
    except Exception as error:
        return _failed(jobs, error)


def _inputs(executor: Executor, jobs: Sequence[Job]) -> list[list[Array]]:
    return [[job.tensors[spec.name] for spec in executor.model.inputs] for job in jobs]


def _encoded(executor: Executor, results: Sequence[Sequence[Array]]) -> list[Outcome]:
    names = [spec.name for spec in executor.model.outputs]
    return [encode_tensors(list(zip(names, outputs, strict=True))) for outputs in results]


def _failed(jobs: Sequence[Job], error: Exception) -> list[Outcome]:
    if len(jobs) > 1:
        # One job may be at fault. Alone, the others succeed.
        return [outcome for job in jobs for outcome in execute([job])]
    if isinstance(error, OffloadError):
        return [error]
    model = jobs[0].executor.model
    log.error("model %s version %d failed", model.name, model.version, exc_info=error)
    return [Internal(f"{type(error).__name__}: {error}")]


def bounded(outcome: Outcome, own: int, brokers: int) -> Outcome:
    """An outcome, or an error if one of its frames exceeds the limit of this worker or of the broker. For such a frame
    a broker closes the connection, and blames the request for the loss of the worker."""
    if isinstance(outcome, OffloadError) or (longest := max(map(len, outcome))) <= min(own, brokers):
        return outcome
    return InvalidArgument(
        f"the outputs have a frame of {longest} bytes; this worker's --max-frame-bytes is {own}, the broker's {brokers}"
    )
