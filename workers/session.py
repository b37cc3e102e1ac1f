"""The worker's decisions: what it holds, what runs next, what it tells which broker. No socket, no clock, no TVM.

A worker serves one or more brokers, each over a connection of its own. It announces itself, receives attempts, runs
them in the order of their arrival, alone or, where a model allows it, in batches, and answers each exactly once. If a
broker is silent for too long, the worker connects again and drops the attempts of that broker that have not run: the
broker gives them to other workers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from msgspec import Struct

from workers.policy import WorkerPolicy, slots_for
from zmq_offload.artifacts.batching import Batching
from zmq_offload.errors import OffloadError, Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body

if TYPE_CHECKING:
    from workers.serving import Job
    from zmq_offload.net.pyzmq_internals import Sendable


_new = tuple.__new__
"""Half the cost of a NamedTuple's own constructor."""

_ALONE = Batching(1)
"""For attempts that were grouped when their model still allowed batches."""


_MOST_GROUPS = 1000
"""The most groups to remember. Clients choose the shapes that make a group."""


class Send(NamedTuple):
    """Send a message to a broker, given by its index."""

    broker: int
    message: wire.FromWorker
    payload: Sequence[Sendable] = ()


class Reconnect(NamedTuple):
    """Close the connection to a broker and make a new one. Messages queued in the old one are lost."""

    broker: int


Action: TypeAlias = Send | Reconnect


@dataclass(slots=True)
class BrokerConnection:
    """The state of the connection to one broker."""

    heard_at: float
    heartbeat_at: float
    connected_at: float = -math.inf
    """When the worker last connected again because of silence. `heard_at` is set to the same time."""
    takes: int = limits.MESSAGE_BYTES
    """The largest frame that the broker accepts, in bytes. The broker says so before its first Dispatch."""
    gone: bool = False
    """Its Farewell came, or the wait for it ended."""
    unconfirmed: bool = False
    """It was sent an answer after the Goodbye, and nothing that came from it since proves that it has the answer."""
    asked_at: float | None = None
    """When the second Goodbye was sent. Its Farewell is that proof."""
    told: int = 0
    """How many requests of others this worker holds, as the broker knows."""


class Attempt(Struct, eq=False):
    """An attempt that this worker holds."""

    broker: int
    message: wire.Dispatch
    received_at: float
    deadline: float
    job: Job
    """The decoded request. The session does not look into it."""
    group: Hashable | None = None
    """Attempts of one group can run together. None: runs alone."""
    rows: int = 1
    """How many rows of a batch it fills."""
    revoked: bool = False


@dataclass(slots=True)
class WorkerSession:
    """`models` is the body of the Announce: a map for each model version (see docs/protocol.md)."""

    name: str
    slots: int
    connections: list[BrokerConnection]
    policy: WorkerPolicy
    max_frame_bytes: int = limits.MESSAGE_BYTES
    device: str = "cpu"
    restarts: int = 0
    memory_bytes: int = 0
    """Resident memory, as the loop last measured it; 0: unknown."""
    gauge: Sequence[bytes] = ()
    """What Heartbeats tell of its GPU, as the loop last read it; empty: nothing."""
    models: list[dict[str, object]] = field(default_factory=list)
    batching: dict[tuple[str, int], Batching] = field(default_factory=dict)
    """(model, version) -> how its requests may run together."""
    held: deque[Attempt] = field(default_factory=deque)
    most_held: int = 0
    """The most attempts to hold. A broker stays within the slots, except that it replaces attempts that expired here.
    The limit keeps a faulty broker from filling the memory."""
    draining_since: float | None = None
    _stale_at: float = math.inf
    """The earliest time at which some attempt that is held need not run any more."""
    _crowded: set[Hashable] = field(default_factory=set)
    """Groups whose last batch held more than one request. Only for these is it worth waiting for more."""

    @classmethod
    def open(
        cls,
        name: str,
        slots: int,
        brokers: int,
        policy: WorkerPolicy,
        now: float,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        device: str = "cpu",
        restarts: int = 0,
    ) -> WorkerSession:
        """A session that serves no model yet."""
        connections = [BrokerConnection(now, now) for _ in range(brokers)]
        return cls(name, slots, connections, policy, max_frame_bytes, device, restarts)

    # --- events ---------------------------------------------------------------------------------------------

    def announce(
        self, models: list[dict[str, object]], batching: dict[tuple[str, int], Batching] | None = None
    ) -> list[Action]:
        """Tell all brokers which models are served from now on."""
        self.models, self.batching = models, batching or {}
        self.most_held = max(self.most_held, 64 + 4 * len(self.connections) * self._announced_slots)
        return [self._announcement(at) for at, connection in enumerate(self.connections) if not connection.gone]

    def connected(self, broker: int) -> list[Action]:
        """There is a new connection to a broker, which does not know this worker yet."""
        return [] if self.connections[broker].gone else self._introduce(broker, None)

    def lost(self, broker: int) -> None:
        """The connection to a broker ended. If the broker is there, it gives its attempts to other workers."""
        self.held = deque(attempt for attempt in self.held if attempt.broker != broker)

    def heard(self, broker: int, now: float) -> None:
        """A part of a message came. A long one may take longer than a broker may be silent."""
        self.connections[broker].heard_at = now

    def received(self, broker: int, message: wire.ToWorker, now: float) -> list[Action]:
        """A broker sent a message other than a Dispatch."""
        self.connections[broker].heard_at = now
        act = _ON.get(type(message))
        return act(self, broker, message) if act else []

    def given(
        self, broker: int, message: wire.Dispatch, job: Job, now: float, *, group: Hashable | None = None, rows: int = 1
    ) -> None:
        """A broker sent an attempt.

        An attempt after the first runs alone: its request lost a worker before. If it takes this worker down, too, it
        must not take others with it, and they must not be blamed.
        """
        self.connections[broker].heard_at = now
        group = group if message.attempt == 1 else None
        deadline = now + message.budget_us / 1e6
        self.held.append(Attempt(broker, message, now, deadline, job, group, rows))
        if deadline < self._stale_at:
            self._stale_at = deadline

    def drain(self, now: float) -> list[Action]:
        """Accept no more attempts, finish those that are held."""
        if self.draining_since is not None:
            return []
        self.draining_since = now
        return [Send(at, wire.Goodbye()) for at, connection in enumerate(self.connections) if not connection.gone]

    def tick(self, now: float) -> list[Action]:
        """Time passed. Call it when nothing runs and every message that arrived was `received`. A worker that is busy
        for one broker still sends Heartbeats to the others."""
        actions: list[Action] = []
        for at, connection in enumerate(self.connections):
            if connection.gone:
                actions += self._confirm(at, connection, now)
            elif self.draining_since is not None and now >= self.draining_since + self.policy.drain:
                connection.gone, connection.unconfirmed = True, False
            elif now >= connection.heard_at + self.policy.patience:
                connection.heard_at = connection.connected_at = now
                connection.heartbeat_at = now + self.policy.heartbeat
                self.lost(at)
                actions.append(Reconnect(at))
                actions += self._introduce(at, None)
            elif now >= connection.heartbeat_at:
                connection.heartbeat_at = now + self.policy.heartbeat
                connection.told = len(self.held) - sum(attempt.broker == at for attempt in self.held)
                actions.append(Send(at, wire.Heartbeat(self.memory_bytes, connection.told), self.gauge))
        return actions

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        earliest, since = math.inf, self.draining_since
        patience, drain = self.policy.patience, self.policy.drain
        ends_at = math.inf if since is None else since + drain
        for connection in self.connections:
            if not connection.gone:
                earliest = min(earliest, connection.heartbeat_at, connection.heard_at + patience, ends_at)
            elif connection.unconfirmed and not self.held and since is not None:
                earliest = min(earliest, since if connection.asked_at is None else connection.asked_at + drain)
        return None if earliest == math.inf else earliest

    def tell(self, running: Sequence[Attempt] = ()) -> list[Send]:
        """Tell each broker how many requests of others this worker holds, if that changed: it chooses among workers by
        what they hold. Call it before a run that takes long, and when nothing is held."""
        counts = [0] * len(self.connections)
        for attempt in (*self.held, *running):
            counts[attempt.broker] += 1
        actions: list[Send] = []
        for at, connection in enumerate(self.connections):
            others = sum(counts) - counts[at]
            if others != connection.told and not connection.gone:
                connection.told = others
                actions.append(Send(at, wire.Heartbeat(self.memory_bytes, others)))
        return actions

    def _confirm(self, at: int, connection: BrokerConnection, now: float) -> list[Action]:
        """Before this worker ends: ask a broker whether it has all answers.

        If the connection is closed while a message of the broker's, a Probe for instance, is unread, TCP resets it, and
        answers in flight are lost.
        """
        if not connection.unconfirmed or self.held:
            return []
        if connection.asked_at is None:
            connection.asked_at = now
            return [Send(at, wire.Goodbye())]
        connection.unconfirmed = now < connection.asked_at + self.policy.drain
        return []

    # --- attempts -------------------------------------------------------------------------------------------

    def next(self, now: float, *, ahead: bool = False) -> tuple[list[Attempt], list[Action]]:
        """Take the attempts that run together now, if any, and the answers to those that need not run.

        With `ahead`, others still run. Then those are taken that gain nothing by waiting for the end: no batch to which
        more may come until then, and no attempt after the first, which could take others down with it.
        """
        actions = self._drop_stale(now) if now >= self._stale_at else []
        if ahead and self.held and self.held[0].message.attempt > 1:
            return [], actions
        if self.held and self.held[0].group is None:
            return [self.held.popleft()], actions
        for batch, ready_at, full in self._batches():
            if now >= ready_at and (not ahead or (full and batch[0].message.attempt == 1)):
                self._note_size(batch)
                for attempt in batch:
                    self.held.remove(attempt)
                return batch, actions
        return [], actions

    def _drop_stale(self, now: float) -> list[Action]:
        """Drop the attempts that were revoked or whose deadline has passed. Returns the answers to them."""
        actions: list[Action] = []
        for attempt in [a for a in self.held if a.revoked or now >= a.deadline]:
            self.held.remove(attempt)
            if attempt.revoked:
                actions.append(self.failed(attempt, Status.CANCELLED, "canceled before it could run"))
            else:
                actions.append(self.failed(attempt, Status.DEADLINE_EXCEEDED, "deadline exceeded before it could run"))
        self._stale_at = min((a.deadline for a in self.held), default=math.inf)
        return actions

    def _note_size(self, batch: list[Attempt]) -> None:
        group = batch[0].group
        self._crowded.discard(group)
        if len(batch) > 1 and len(self._crowded) < _MOST_GROUPS:
            self._crowded.add(group)

    def ready_at(self) -> float | None:
        """When `next` has something to run, or None if nothing is held."""
        return min((at for _, at, _ in self._batches()), default=None)

    def _batches(self) -> Iterator[tuple[list[Attempt], float, bool]]:
        """The attempts that would run together, in the order of the first of each, when they should, and whether no
        other can join them."""
        seen: set[Hashable] = set()
        for first in self.held:
            if first.group is None:
                yield [first], first.received_at, True
            elif first.group not in seen:
                seen.add(first.group)
                limits_of = self.batching.get((first.message.model, first.message.version), _ALONE)
                batch, rows, full = [], 0, False
                for attempt in self.held:
                    if attempt.group == first.group:
                        full = rows + attempt.rows > limits_of.max_batch
                        if full:
                            break
                        batch.append(attempt)
                        rows += attempt.rows
                alone = len(batch) == 1 and first.group not in self._crowded
                full = full or rows == limits_of.max_batch
                at_once = full or alone or self.draining_since is not None
                yield batch, first.received_at + (0 if at_once else limits_of.delay_us / 1e6), full

    def done(self, attempt: Attempt, payload: Sequence[Sendable], compute: float, batch: int = 1) -> Send:
        """`attempt` succeeded after `compute` seconds. `batch`: the rows that ran, for the first attempt of a batch; 0
        for the others."""
        self._note_answer(attempt.broker)
        answer = _new(wire.Done, (*attempt.message[:3], int(compute * 1e6), attempt.rows, batch))
        return _new(Send, (attempt.broker, answer, payload))

    def failed(self, attempt: Attempt, status: Status, text: str) -> Send:
        """`attempt` failed."""
        self._note_answer(attempt.broker)
        return _answer(attempt.broker, attempt.message, status, text)

    def failed_with(self, attempt: Attempt, error: OffloadError) -> Send:
        return self.failed(attempt, error.code, error.message)

    def refused(self, broker: int, message: wire.Dispatch, error: OffloadError, now: float) -> Send:
        """A broker sent an attempt that cannot run at all."""
        self.connections[broker].heard_at = now
        self._note_answer(broker)
        return _answer(broker, message, error.code, error.message)

    def _note_answer(self, broker: int) -> None:
        if self.draining_since is not None:
            self.connections[broker].unconfirmed = True

    @property
    def finished(self) -> bool:
        """Whether a drain is complete."""
        if self.draining_since is None or self.held:
            return False
        return all(connection.gone and not connection.unconfirmed for connection in self.connections)

    def answers(self, broker: int) -> bool:
        """After a drain: whether a broker was heard during it, and so receives what was sent last."""
        connection = self.connections[broker]
        return self.draining_since is not None and connection.connected_at < connection.heard_at >= self.draining_since

    # --- details --------------------------------------------------------------------------------------------

    def _introduce(self, broker: int, message: wire.Identify | None) -> list[Action]:
        """Announce this worker to a broker. A worker that drains says Goodbye instead."""
        self.connections[broker].told = 0
        return [self._announcement(broker) if self.draining_since is None else Send(broker, wire.Goodbye())]

    def _revoke(self, broker: int, message: wire.Revoke) -> list[Action]:
        for attempt in self.held:
            if attempt.broker == broker and attempt.message[:3] == tuple(message):
                attempt.revoked = True
                self._stale_at = -math.inf
        return []

    def _probe(self, broker: int, message: wire.Probe) -> list[Action]:
        self.connections[broker].takes = message.max_frame_bytes
        return []

    def _farewell(self, broker: int, message: wire.Farewell) -> list[Action]:
        # A Farewell without a Goodbye is the broker's fault. It is ignored: else the worker would leave forever.
        connection = self.connections[broker]
        if connection.gone:
            connection.unconfirmed &= connection.asked_at is None
        connection.gone = self.draining_since is not None
        return []

    @property
    def _announced_slots(self) -> int:
        return slots_for(self.slots, max((b.max_batch for b in self.batching.values()), default=0), self.device)

    def _announcement(self, broker: int) -> Send:
        message = wire.Announce(self.name, self._announced_slots, self.max_frame_bytes, self.device, self.restarts)
        return Send(broker, message, (encode_body(self.models),))


_ON: dict[type, Callable[[WorkerSession, int, Any], list[Action]]] = {
    wire.Revoke: WorkerSession._revoke,
    wire.Identify: WorkerSession._introduce,
    wire.Farewell: WorkerSession._farewell,
    wire.Probe: WorkerSession._probe,
}
"""What a message of a broker does. An Error only proves that the broker is there; the loop logs it."""


def _answer(broker: int, message: wire.Dispatch, status: Status, text: str) -> Send:
    # "replace": an exception's text may contain a path that is not UTF-8.
    text = text[: limits.MESSAGE_CHARS].encode(errors="replace").decode()
    return Send(broker, wire.Failed(message.session, message.id, message.attempt, status.value, text))
