"""The rules by which a worker counts as lost. Pure.

A worker runs subgraphs in the thread that talks to the broker, so that a busy worker is silent. Silence alone is not a
sign that it is lost. These are:

- Its connection ended. Both ends exchange ZMTP heartbeats, a worker also while it runs a subgraph, and the broker
  closes a connection that does not answer them. This finds a killed, stopped (SIGSTOP) or unreachable worker, busy or
  idle. libzmq does not tell which connection ended; the broker's next Probe then comes back undelivered.
- It holds nothing and was silent for `patience` seconds, although an idle worker sends a Heartbeat every `heartbeat`
  seconds. It may be busy for another broker, or be loading a model. It is quiet: it gets no requests until it is heard
  again, and requests wait for it. After `hang_grace` more seconds it is lost.
- It still holds an attempt `hang_grace` seconds after that request's deadline. It hangs.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.state import Worker


@dataclass(frozen=True, slots=True)
class LivenessPolicy:
    """How long the broker waits for workers, in seconds, and how often it retries. `broker.config` reads the values."""

    heartbeat: float = 1.0
    """The time between two Probes of a worker."""
    patience: float = 3.0
    """How long an idle worker may be silent and still be given requests."""
    hang_grace: float = 30.0
    """How long a worker may work on a request after its deadline, and how long it may be quiet."""
    worker_grace: float = 2.0
    """How long a request waits for a worker that has its model."""
    restart_grace: float = 5.0
    """How long requests wait after a worker with their model was lost: its supervisor starts another at once. Requests
    that were at the lost worker wait until their deadlines."""
    max_attempts: int = 3
    """Workers that a request may lose before it fails."""


def lost(worker: Worker, policy: LivenessPolicy, now: float) -> str | None:
    """Why a worker counts as lost; None if it does not."""
    if not worker.held:
        silent = now - worker.heard_at
        return f"it was idle and silent for {silent:.1f} s" if silent >= policy.patience + policy.hang_grace else None
    overdue = now - min(request.deadline for request in worker.held.values())
    return f"it hangs: a request is {overdue:.1f} s past its deadline" if overdue >= policy.hang_grace else None


def quiet(worker: Worker, policy: LivenessPolicy, now: float) -> str | None:
    """How long a worker has been silent, if that is too long; None if it may get requests."""
    silent = now - worker.heard_at
    return f"{silent:.1f} s" if not worker.held and silent >= policy.patience else None
