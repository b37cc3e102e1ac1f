"""What the broker knows: requests that it accepted and workers that announced themselves. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from broker.lifecycle import RequestState, WorkerState
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST, Key

Payload: TypeAlias = Sequence[Any]
"""The frames after an envelope, which the broker forwards and never reads."""


class Wanted(NamedTuple):
    """What a request asks for. `signature` is empty where `version` is a number, and where any signature will do."""

    model: str
    version: int = LATEST
    signature: bytes = b""


class Model(NamedTuple):
    """A version of a model as a worker announced it: its description, its signature, and what requests that ask for it
    may have asked for."""

    description: dict[str, Any]
    signature: bytes
    satisfies: tuple[Wanted, ...]


@dataclass(slots=True, eq=False)
class PendingRequest:
    """An accepted request without a terminal reply. `worker` is set while an attempt is out, None while it queues."""

    key: Key
    client: bytes
    owner: bytes
    """Whom it counts for where clients share: its key where there are keys, else its session."""
    wanted: Wanted
    priority: int
    deadline: float
    accepted_at: float
    payload: Payload
    nbytes: int
    longest: int
    """Bytes of its longest frame."""
    max_frame_bytes: int = limits.MESSAGE_BYTES
    """The longest frame of a result that its client takes."""
    user: str = ""
    """The key that it was asked with."""
    state: RequestState = RequestState.ACCEPTED
    attempt: int = 0
    worker: Worker | None = None
    dispatched_at: float = 0.0
    runs: int = 0
    """The version that the last attempt runs."""
    lost: tuple[str, ...] = ()
    """Names of the workers that were lost while they ran it."""

    @property
    def runs_as(self) -> tuple[str, int]:
        """(model, version) of the last attempt."""
        return self.wanted.model, self.runs


@dataclass(slots=True, eq=False)
class Worker:
    """A worker's connection. `held` are its attempts, in the order of dispatch, which is the order it runs them in;
    an attempt stays there until the worker answers it, wanted or not, because until then it takes a slot."""

    peer: bytes
    name: str
    slots: int
    heard_at: float
    user: str = ""
    """The key that it connected with."""
    address: str = ""
    max_frame_bytes: int = limits.MESSAGE_BYTES
    models: dict[tuple[str, int], Model] = field(default_factory=dict)
    versions: dict[str, dict[int, Model]] = field(default_factory=dict)
    """`models` by name."""
    state: WorkerState = WorkerState.READY
    held: dict[tuple[Key, int], PendingRequest] = field(default_factory=dict)
    nbytes: int = 0
    """Of the payloads of `held`."""
    most_slots: int = 0
    """The most slots that it had since it held nothing: one that has fewer now may hold more for a while."""
    chosen: int = 0
    """When it was last given a request, as a count: ties go to the one that waited longest."""
    served: int = 0
    failed: int = 0

    def __str__(self) -> str:
        """For the log: its name and where it is."""
        return f"{self.name} at {self.address}" if self.address else self.name

    def serve(self, models: dict[tuple[str, int], Model]) -> None:
        """Take what was announced in place of what was before."""
        self.models, self.versions = models, {}
        for (name, version), model in models.items():
            self.versions.setdefault(name, {})[version] = model

    @property
    def free(self) -> int:
        return self.slots - len(self.held) if self.state is WorkerState.READY else 0
