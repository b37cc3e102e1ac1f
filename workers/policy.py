"""What options say of a worker's times and slots. Apart from the session, so that a supervisor needs no tensors."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SLOTS = 65536
"""The most slots that an Announce can carry."""


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
