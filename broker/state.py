"""Data of the broker: accepted requests and announced workers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias, TypedDict

from msgspec import Meta, Struct

from broker.lifecycle import RequestState, WorkerState
from broker.pace import Pace
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST, Key
from zmq_offload.protocol.names import NAME_PATTERN

if TYPE_CHECKING:
    import zmq

Payload: TypeAlias = "Sequence[bytes | memoryview | zmq.Frame]"
"""The frames after an envelope. The broker forwards them and looks only at their lengths."""


def sizes(payload: Payload) -> tuple[int, int]:
    """The bytes of a payload, and of its longest frame."""
    if len(payload) == 2:  # a header and one tensor, as usual
        header, tensor = len(payload[0]), len(payload[1])
        return header + tensor, tensor if tensor > header else header
    return sum(map(len, payload)), max(map(len, payload), default=0)


UNKNOWN = -1
"""The version of requests by a label that no worker has announced yet: they wait for one that does."""


class Wanted(NamedTuple):
    """What a request asks for. `signature` is empty if `version` is a number, or if any signature will do."""

    model: str
    version: int = LATEST
    signature: bytes = b""


class _Batches(TypedDict, total=False):
    max_batch: int
    config: dict[str, object]


class CanarySettings(Struct, frozen=True):
    """A version that is tried out (see `zmq_offload.artifacts.config.Canary`)."""

    version: Annotated[int, Meta(ge=1, le=limits.VERSION)]
    share: Annotated[float, Meta(ge=0, le=1)]
    min_requests: Annotated[int, Meta(ge=1, le=10**6)] = 100
    error_margin: Annotated[float, Meta(ge=0, le=1)] = 0.02
    latency_ratio: Annotated[float, Meta(ge=1, le=1000)] = 1.5
    window: Annotated[float, Meta(ge=1, le=3600)] = 60.0


class CacheSettings(Struct, frozen=True):
    """That gateways keep answers of a version, and for how long. `build` names the files that it is made of."""

    seconds: Annotated[float, Meta(gt=0, le=limits.BUDGET_US / 1e6)]
    build: Annotated[str, Meta(max_length=200)] = ""


Label: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=limits.MODEL_NAME_BYTES, pattern=f"^{NAME_PATTERN.pattern}$")
]


class Settings(Struct, frozen=True, omit_defaults=True):
    """What a worker announced of the configuration of a version."""

    labels: Annotated[tuple[Label, ...], Meta(max_length=64)] = ()
    timeout_us: Annotated[int, Meta(ge=1, le=limits.BUDGET_US)] | None = None
    """The most time of a request."""
    priority: Annotated[int, Meta(ge=-limits.PRIORITY, le=limits.PRIORITY)] = 0
    """Added to that of a request."""
    max_queued: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Requests for the model that may wait."""
    cache: CacheSettings | None = None
    canary: CanarySettings | None = None
    returned: Annotated[str, Meta(max_length=limits.MESSAGE_CHARS)] = ""
    """Why a broker returned that canary, if one did."""

    def of_model(self) -> Settings:
        """What is the same for all versions of the model."""
        return Settings(
            timeout_us=self.timeout_us, priority=self.priority, max_queued=self.max_queued, canary=self.canary
        )


NO_SETTINGS = Settings()


class Description(_Batches):
    """A version of a model, as the reply to a Query describes it. `max_batch`: the rows that it takes at most;
    `config`: what is announced of its configuration."""

    name: str
    version: int
    inputs: list[dict[str, object]]
    outputs: list[dict[str, object]]


class Model(NamedTuple):
    """A version of a model, as a worker announced it."""

    description: Description
    signature: bytes
    satisfies: tuple[Wanted, ...]
    """What requests for it may ask for."""
    settings: Settings = NO_SETTINGS


class PendingRequest(Struct, eq=False):
    """An accepted request without a terminal reply. `worker` is None while the request is queued.

    A Struct is made in a fifth of the time of a dataclass.
    """

    key: Key
    client: bytes
    owner: bytes
    """The client in shares of queues: its key, or its session on a broker without keys."""
    wanted: Wanted
    priority: int
    deadline: float
    accepted_at: float
    payload: Payload
    nbytes: int
    longest: int
    """Bytes of its longest frame."""
    max_frame_bytes: int = limits.MESSAGE_BYTES
    """The largest frame of a result that its client takes."""
    user: str = ""
    """The client's key."""
    state: RequestState = RequestState.ACCEPTED
    attempt: int = 0
    worker: Worker | None = None
    dispatched_at: float = 0.0
    runs: int = 0
    """The version that the last attempt runs."""
    label: str = ""
    """The name of the version that the client asks for, if it asks by a label."""
    asked: Wanted | None = None
    """What the client asked for, if `wanted` was found by a label or is a canary."""
    caller: bytes = b""
    """Whom it is for: the client, or one of those whose requests the client passes on."""
    trace: bytes = b""
    """The trace that it belongs to; empty if it is not traced."""
    lost: tuple[str, ...] = ()
    """Names of the workers that were lost while they may have run it."""
    is_plain: bool = True
    """Whether nothing happened to it but that it was accepted, waited and was dispatched, once each at most. Its
    story is not written then, since these fields tell it."""
    has_waited: bool = False
    """Whether it was queued while it was plain."""
    is_timed: bool = False
    """Whether it has, or had, a timer."""

    @property
    def runs_as(self) -> tuple[str, int]:
        """(model, version) of the last attempt."""
        return self.wanted.model, self.runs


class GpuUse(Struct, frozen=True, omit_defaults=True):
    """How much of a GPU is used, by all processes there. What is not known is None."""

    used_bytes: Annotated[int, Meta(ge=0)] | None = None
    total_bytes: Annotated[int, Meta(ge=0)] | None = None
    busy_percent: Annotated[int, Meta(ge=0, le=100)] | None = None
    """The share of the last moment in which something ran there."""


@dataclass(slots=True, eq=False)
class Worker:
    """A worker's connection.

    `held` are its attempts, in the order in which it runs them. An attempt stays there, and takes a slot, until the
    worker answers it, even if the request ended earlier.
    """

    peer: bytes
    name: str
    slots: int
    heard_at: float
    user: str = ""
    """The worker's key."""
    address: str = ""
    max_frame_bytes: int = limits.MESSAGE_BYTES
    device: str = "cpu"
    restarts: int = 0
    """How often its supervisor started a process in its place."""
    memory_bytes: int = 0
    """Its resident memory at its last Heartbeat."""
    gpu: GpuUse | None = None
    """What its GPU said at its last Heartbeat; None: nothing yet, or it has none."""
    models: dict[tuple[str, int], Model] = field(default_factory=dict)
    versions: dict[str, dict[int, Model]] = field(default_factory=dict)
    """`models` by name."""
    state: WorkerState = WorkerState.READY
    held: dict[tuple[bytes, int, int], PendingRequest] = field(default_factory=dict)
    """By session, id and attempt."""
    nbytes: int = 0
    """Bytes of the payloads of `held`."""
    most_slots: int = 0
    """The most slots that it had since it held nothing: if it has fewer now, it may hold more for a while."""
    chosen: int = 0
    """A count of when it was last given a request: ties go to the worker that waited longest."""
    elsewhere: int = 0
    """Requests of other brokers that it held when it last told."""
    paces: dict[tuple[str, int], Pace] = field(default_factory=dict)
    """(model, version) -> what it takes for it, as measured (`broker.expected`)."""
    answered_at: float = 0.0
    """When it last answered the first request of a run."""
    unmeasured: int = 1
    """How many runs from now the next one is measured."""
    served: int = 0
    failed: int = 0
    busy_us: int = 0
    """Microseconds in which it ran requests."""

    def __str__(self) -> str:
        """Its name and address, for the log."""
        return f"{self.name} at {self.address}" if self.address else self.name

    def serve(self, models: dict[tuple[str, int], Model]) -> None:
        """Replace the models by those that were announced."""
        self.models, self.versions = models, {}
        for (name, version), model in models.items():
            self.versions.setdefault(name, {})[version] = model

    @property
    def free(self) -> int:
        return self.slots - len(self.held) if self.state is WorkerState.READY else 0
