"""What options say of a worker's times and slots. Apart from the session, so that a supervisor needs no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from zmq_offload.common.devices import CPU

MOST_SLOTS = 65536
"""The most slots that an Announce can carry."""


def slots_for(slots: int, max_batch: int, device: str) -> int:
    """The slots to announce, for batches of at most so many rows.

    The next batch gathers while one runs, so there are slots for two. With a GPU, the inputs of another are copied
    meanwhile. A model may allow larger batches than an Announce can carry slots. Those stay smaller.
    """
    return min(MOST_SLOTS, max(slots, (2 if device == CPU else 3) * max_batch))


@dataclass(frozen=True, slots=True)
class WorkerPolicy:
    """Times in seconds."""

    heartbeat: float = 1.0
    """Between two Heartbeats of an idle worker."""
    patience: float = 3.0
    """How long a broker may be silent before the worker connects again. A broker sends a Probe every heartbeat."""
    drain: float = 2.0
    """How long a worker that stops waits for its brokers' Farewells. A broker that runs replies at once. One that was
    stopped at the same time never replies, and honcho, which stops all at once, kills after five seconds."""
