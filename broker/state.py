"""What the broker knows: requests that it accepted and workers that announced themselves. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from broker.lifecycle import Duty, Life
from zmq_offload.protocol.messages import Key

Payload: TypeAlias = Sequence[Any]
"""The frames after an envelope, which the broker forwards and never reads."""


@dataclass(slots=True, eq=False)
class Request:
    """An accepted request without a terminal reply. `worker` is set while an attempt is out, None while it queues."""

    key: Key
    client: bytes
    owner: bytes
    """Whom it counts for where clients share: its key where there are keys, else its session."""
    model: str
    version: int
    priority: int
    deadline: float
    accepted_at: float
    payload: Payload
    nbytes: int
    user: str = ""
    """The key that it was asked with."""
    life: Life = Life.ACCEPTED
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
        return self.model, self.runs


@dataclass(slots=True, eq=False)
class Worker:
    """A worker's connection. `held` are its attempts, in the order of dispatch, which is the order it runs them in;
    an attempt stays there until the worker answers it, wanted or not, because until then it takes a slot."""

    peer: bytes
    name: str
    slots: int
    models: dict[tuple[str, int], dict[str, Any]]
    announced_at: float
    heard_at: float
    user: str = ""
    """The key that it connected with."""
    duty: Duty = Duty.READY
    held: dict[tuple[Key, int], Request] = field(default_factory=dict)
    nbytes: int = 0
    """Of the payloads of `held`."""
    most: int = 0
    """The most slots that it had since it held nothing: one that has fewer now may hold more for a while."""
    chosen: int = 0
    """When it was last given a request, as a count: ties go to the one that waited longest."""
    served: int = 0
    failed: int = 0

    @property
    def free(self) -> int:
        return self.slots - len(self.held) if self.duty is Duty.READY else 0
