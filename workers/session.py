"""The worker's decisions: what it holds, what it runs next, what it tells which broker. No socket, no clock, no TVM.

A worker serves one or more brokers, each over a link. It announces itself, is given attempts, runs them one after the
other in the order they came, and answers each exactly once. A broker that was silent for too long is connected to
anew; what it had given and was not run yet is dropped, because it gives that to others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from zmq_offload.errors import OffloadError, Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds."""

    heartbeat: float = 1.0
    """Between two Heartbeats of an idle worker."""
    patience: float = 3.0
    """How long a broker may be silent before it is connected to anew; it sends a Probe every heartbeat."""
    drain: float = 10.0
    """How long a worker that goes waits for its brokers' Farewells."""


class Send(NamedTuple):
    """Send this to the broker of a link."""

    link: int
    message: wire.FromWorker
    payload: Sequence[Any] = ()


class Reconnect(NamedTuple):
    """Give up a link's connection and make a new one; what is queued in the old one is lost."""

    link: int


Action: TypeAlias = Send | Reconnect


@dataclass(slots=True)
class Link:
    """One broker."""

    heard_at: float
    heartbeat_at: float
    gone: bool = False
    """Its Farewell came, or was waited for in vain."""


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt that this worker holds."""

    link: int
    message: wire.Dispatch
    payload: Sequence[Any]
    deadline: float
    revoked: bool = False


@dataclass(slots=True)
class Session:
    """`models` is the body of the Announce: a map for each model version (see docs/protocol.md)."""

    name: str
    slots: int
    models: list[dict[str, Any]]
    links: list[Link]
    policy: Policy
    held: deque[Attempt] = field(default_factory=deque)
    draining_since: float | None = None

    @classmethod
    def open(
        cls, name: str, slots: int, models: list[dict[str, Any]], links: int, policy: Policy, now: float
    ) -> Session:
        return cls(name, slots, models, [Link(now, now) for _ in range(links)], policy)

    # --- events ---------------------------------------------------------------------------------------------

    def announce(self, models: list[dict[str, Any]]) -> list[Action]:
        """Tell all brokers what is served here from now on."""
        self.models = models
        return [self._announcement(at) for at, link in enumerate(self.links) if not link.gone]

    def received(self, link: int, message: Any, payload: Sequence[Any], now: float) -> list[Action]:
        """A message of the broker at `link` came in."""
        self.links[link].heard_at = now
        act = _ON.get(type(message))
        return act(self, link, message, payload, now) if act else []

    def drain(self, now: float) -> list[Action]:
        """Take no more, finish what is held."""
        if self.draining_since is not None:
            return []
        self.draining_since = now
        return [Send(at, wire.Goodbye()) for at, link in enumerate(self.links) if not link.gone]

    def tick(self, now: float) -> list[Action]:
        """Time passed; to be called when nothing runs and all that came in was `received`."""
        actions: list[Action] = []
        for at, link in enumerate(self.links):
            if link.gone:
                continue
            if self.draining_since is not None and now >= self.draining_since + self.policy.drain:
                link.gone = True
            elif now >= link.heard_at + self.policy.patience:
                link.heard_at, link.heartbeat_at = now, now + self.policy.heartbeat
                self.held = deque(attempt for attempt in self.held if attempt.link != at)
                actions.append(Reconnect(at))
                actions += self._introduce(at, None, (), now)
            elif now >= link.heartbeat_at:
                link.heartbeat_at = now + self.policy.heartbeat
                actions.append(Send(at, wire.Heartbeat()))
        return actions

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        times = [min(link.heartbeat_at, link.heard_at + self.policy.patience) for link in self.links if not link.gone]
        if times and self.draining_since is not None:
            times.append(self.draining_since + self.policy.drain)
        return min(times, default=None)

    # --- attempts -------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Attempt | None, list[Action]]:
        """Take the attempt to run now, if there is one, and the answers to those that need not run any more."""
        actions: list[Action] = []
        while self.held:
            attempt = self.held.popleft()
            if attempt.revoked:
                actions.append(self.failed(attempt, Status.CANCELLED, "not wanted any more"))
            elif now >= attempt.deadline:
                actions.append(self.failed(attempt, Status.DEADLINE_EXCEEDED, "its time was up before it could run"))
            else:
                return attempt, actions
        return None, actions

    def done(self, attempt: Attempt, payload: Sequence[Any], compute: float) -> Action:
        """`attempt` succeeded after `compute` seconds."""
        message = attempt.message
        answer = wire.Done(message.session, message.id, message.attempt, int(compute * 1e6))
        return Send(attempt.link, answer, payload)

    def failed(self, attempt: Attempt, status: Status, text: str) -> Action:
        """`attempt` failed."""
        message = attempt.message
        # "replace": a path that is no UTF-8 may stand in an exception, and could not be sent.
        text = text[: limits.MESSAGE_CHARS].encode(errors="replace").decode()
        return Send(attempt.link, wire.Failed(message.session, message.id, message.attempt, status.value, text))

    def failed_with(self, attempt: Attempt, error: OffloadError) -> Action:
        return self.failed(attempt, error.code, error.message)

    @property
    def finished(self) -> bool:
        """Whether a drain is complete."""
        return self.draining_since is not None and not self.held and all(link.gone for link in self.links)

    # --- details --------------------------------------------------------------------------------------------

    def _announcement(self, link: int) -> Send:
        return Send(link, wire.Announce(self.name, self.slots), (encode_body(self.models),))

    def _introduce(self, link: int, message: Any, payload: Sequence[Any], now: float) -> list[Action]:
        """Tell a broker who is here, or, to one that does not know a worker that is going, that it goes."""
        return [self._announcement(link) if self.draining_since is None else Send(link, wire.Goodbye())]

    def _hold(self, link: int, message: wire.Dispatch, payload: Sequence[Any], now: float) -> list[Action]:
        self.held.append(Attempt(link, message, payload, now + message.budget_us / 1e6))
        return []

    def _revoke(self, link: int, message: wire.Revoke, payload: Sequence[Any], now: float) -> list[Action]:
        for attempt in self.held:
            if attempt.link == link and attempt.message[:3] == tuple(message):
                attempt.revoked = True
        return []

    def _farewell(self, link: int, message: wire.Farewell, payload: Sequence[Any], now: float) -> list[Action]:
        # One that was not asked for is a fault of the broker's; to believe it would leave the broker for ever.
        self.links[link].gone = self.draining_since is not None
        return []


_ON: dict[type, Callable[[Session, int, Any, Sequence[Any], float], list[Action]]] = {
    wire.Dispatch: Session._hold,
    wire.Revoke: Session._revoke,
    wire.Identify: Session._introduce,
    wire.Farewell: Session._farewell,
}
"""What a broker's message does. A Probe only tells that the broker is there; so does an Error, which the loop logs."""
