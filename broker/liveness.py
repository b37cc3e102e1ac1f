"""When a worker counts as lost. Pure.

A worker runs subgraphs in the thread that talks to the broker, so a busy one is silent for as long as the subgraph
takes. That is no sign of death. What is:

- its connection is gone: libzmq's I/O thread exchanges ZMTP heartbeats whatever Python or TVM do, closes a connection
  that does not answer them, and the broker's next Probe then comes back undelivered. This finds a killed, a stopped
  (SIGSTOP) or an unreachable worker, busy or idle;
- it holds nothing and yet said nothing for `patience` seconds, although an idle worker sends a Heartbeat every
  `heartbeat` seconds. It may be busy for another broker, or load a model; it is given nothing until it is heard again,
  and requests wait for it. After `hang_grace` more its process is there but does not work;
- it still holds an attempt `hang_grace` seconds after that request's deadline: it hangs.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.state import Worker


@dataclass(frozen=True, slots=True)
class LivenessPolicy:
    """What the broker may be told (seconds, bytes, counts). `broker.config` says where the values come from."""

    heartbeat: float = 1.0
    """Between two Probes of a worker."""
    patience: float = 3.0
    """How long an idle worker may be silent and still be given requests."""
    hang_grace: float = 30.0
    """How long after a request's deadline its worker may still be busy with it, and how long a quiet one may be so."""
    worker_grace: float = 2.0
    """How long a request waits for a worker to appear that holds its model."""
    restart_grace: float = 5.0
    """How long after a worker was lost requests wait for one that holds its models to come back: a supervisor starts
    another at once. What was at a lost worker waits until its own deadline."""
    max_attempts: int = 3
    """Workers that a request may lose before it is given up."""


def lost(worker: Worker, policy: LivenessPolicy, now: float) -> str | None:
    """Why this worker counts as lost, or None if it does not."""
    if not worker.held:
        silent = now - worker.heard_at
        return f"it was idle and silent for {silent:.1f} s" if silent >= policy.patience + policy.hang_grace else None
    overdue = now - min(request.deadline for request in worker.held.values())
    return f"it hangs: a request is {overdue:.1f} s past its deadline" if overdue >= policy.hang_grace else None


def quiet(worker: Worker, policy: LivenessPolicy, now: float) -> str | None:
    """Why this worker is to be given nothing for now, or None if it may be."""
    silent = now - worker.heard_at
    return f"{silent:.1f} s" if not worker.held and silent >= policy.patience else None
