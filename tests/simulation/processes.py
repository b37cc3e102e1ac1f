"""Clients, brokers and workers of a simulation: the real cores, called as the real loops call them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from broker.admission import QueueLimits
from broker.core import Core
from broker.events import Disconnected, FromClient, FromWorker, Stop, Tick, ToClient, Undelivered
from broker.invariants import validate
from broker.liveness import LivenessPolicy
from tests.simulation.network import Connection, World
from workers.policy import WorkerPolicy
from workers.session import Reconnect as WorkerReconnect
from workers.session import WorkerSession
from zmq_offload.artifacts.repository import Batching
from zmq_offload.client.session import ClientSession, Complete, Fail, Reconnect, RetryPolicy, Send
from zmq_offload.errors import NotFound, Status
from zmq_offload.protocol import messages as wire

BROKER = LivenessPolicy(heartbeat=1, patience=3, hang_grace=2, worker_grace=2, max_attempts=3)
BROKER_LIMITS = QueueLimits(max_queued=12, max_queued_bytes=4000, max_queued_per_model=8, max_queued_per_client=5)
CLIENT = RetryPolicy(heartbeat=0.5, patience=1.5)
WORKER = WorkerPolicy(heartbeat=1, patience=3, drain=3)
STINT = 1.0
"""Seconds for which a worker goes on to begin runs ahead."""


class Fault(AssertionError):
    """An invariant that does not hold."""


class Broker:
    """A broker process. It may die and come back without memory."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive = False
        self.start()

    def start(self) -> None:
        if self.alive:
            return
        self.alive = True
        self.stopped_until = 0.0
        self.core = Core(BROKER, self.world.now, queue_limits=BROKER_LIMITS)
        self._peers: dict[bytes, Connection] = {}
        self._count = 0
        self._wake_at: float | None = None

    def crash(self) -> None:
        self.alive = False
        for connection in list(self._peers.values()):
            connection.break_()

    def stop(self) -> None:
        """SIGTERM."""
        if self.alive:
            self._handle(Stop(2.0))

    def pause(self, seconds: float) -> None:
        """It is not scheduled for a while: messages wait, and timers are late."""
        self.stopped_until = self.world.now + seconds

    # --- as the loop does -----------------------------------------------------------------------------------

    def meet(self, connection: Connection) -> bytes:
        self._count += 1
        peer = b"%d" % self._count
        self._peers[peer] = connection
        return peer

    def lose(self, connection: Connection) -> None:
        del self._peers[connection.peer]
        if self.alive and isinstance(connection.owner, Worker):
            self._handle(Disconnected())

    def receive(self, connection: Connection, message: Any, payload: Any) -> None:
        if self.world.now < self.stopped_until:
            self.world.at(self.stopped_until, self._receive, self.core, connection, connection.peer, message, payload)
        else:
            self._receive(self.core, connection, connection.peer, message, payload)

    def _receive(self, core: Core, connection: Connection, peer: bytes, message: Any, payload: Any) -> None:
        if core is not self.core or not self.alive:
            return  # it died in the meantime
        event = FromWorker if isinstance(connection.owner, Worker) else FromClient
        self._handle(event(peer, message, payload))

    def _wake(self, at: float) -> None:
        if at == self._wake_at and self.world.now < self.stopped_until:
            self.world.at(self.stopped_until, self._wake, at)
        elif at == self._wake_at:
            self._wake_at = None
            if self.alive:
                due = self.core.next_deadline()
                if due is not None and due <= self.world.now:
                    self._handle(Tick())
                else:
                    self._set_alarm()

    def _handle(self, event: Any) -> None:
        events = deque([event])
        while events:
            for action in self._decide(events.popleft()):
                connection = self._peers.get(action.peer)
                if connection is None:
                    events.append(Undelivered(action, False))
                else:
                    connection.send_back(action.message, action.payload)
        if self.core.finished:
            self.world.note(self.name, "stopped")
            self.crash()
            self.world.at(self.world.now + 0.3, self.start)
        else:
            self._set_alarm()

    def _decide(self, event: Any) -> list[Any]:
        core, now = self.core, self.world.now
        promised = dict(core.ledger.requests)
        actions = core.handle(event, now)
        for action in actions:
            message = action.message
            kind = type(message)
            if kind is wire.Dispatch:
                key = wire.Key(message.session, message.id)
                request = core.ledger.requests.get(key) or promised.get(key)
                if request is not None and request.deadline <= now:
                    raise Fault(f"{self.name} dispatches {request.key} after its deadline")
            elif type(action) is ToClient and kind in (wire.Result, wire.Error):
                request = promised.pop(message[:2], None)
                if request is not None and core.ledger.requests.get(request.key) is request:
                    raise Fault(f"{self.name} answered {request.key} and still holds it")
        for key, request in promised.items():
            if core.ledger.requests.get(key) is not request:
                raise Fault(f"{self.name} dropped {key} without a reply")
        validate(core)
        return actions

    def _set_alarm(self) -> None:
        due = self.core.next_deadline()
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self.world.at(due, self._wake, due)


class Client:
    """A client process. Every call ends once, in time, and with its own result."""

    def __init__(self, world: World, number: int, brokers: Sequence[Broker]) -> None:
        self.world, self.name, self.brokers = world, f"client{number}", brokers
        self.alive = True
        self.session = ClientSession(b"%016d" % number, [b.name for b in brokers], CLIENT)
        self.calls: set[int] = set()
        self.deadlines: dict[int, float] = {}
        self.outcomes: dict[int, str] = {}
        self._connection = Connection(world, self, 0, brokers[0])
        self._wake_at: float | None = None

    def call(
        self, timeout: float, model: str, version: int, priority: int, what: dict[str, Any], label: str = ""
    ) -> int:
        payload, now = [what, b"x" * what.get("bytes", 1)], self.world.now
        number, actions = self.session.request(model, payload, timeout, version, priority, label=label, now=now)
        self.world.note(self.name, "calls", number, model, label or version, timeout, what)
        self.calls.add(number)
        self.deadlines[number] = self.world.now + timeout
        self.world.at(self.world.now + timeout + 1e-6, self._check, number)
        self._perform(actions)
        return number

    def cancel(self, number: int) -> None:
        if self.alive:
            self._perform(self.session.cancel(number))

    def crash(self) -> None:
        self.alive = False
        self._connection.close()

    def _check(self, number: int) -> None:
        if self.alive and number in self.calls:
            raise Fault(f"{self.name}'s call {number} did not end by its deadline")

    def deliver(self, connection: Connection, message: Any, payload: Any) -> None:
        if self.alive and connection is self._connection:
            self._perform(self.session.received(message, payload, self.world.now))

    def _wake(self, at: float) -> None:
        if at == self._wake_at:
            self._wake_at = None
            if self.alive:
                self._perform(self.session.tick(self.world.now))

    def _perform(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._connection.send(action.message, action.payload)
            elif isinstance(action, Reconnect):
                self._connection.close()
                self._connection = Connection(self.world, self, 0, self.brokers[action.endpoint])
            else:
                self._end(action)
        due = self.session.next_deadline()
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self.world.at(due, self._wake, due)

    def _end(self, action: Complete | Fail) -> None:
        if action.id not in self.calls:
            raise Fault(f"{self.name}'s call {action.id} ended twice")
        self.calls.remove(action.id)
        if isinstance(action, Fail):
            outcome = action.error.code.value
        else:
            outcome = "served"
            if action.payload != [self.name, str(action.id)]:
                raise Fault(f"{self.name}'s call {action.id} got the answer {action.payload}")
        self.outcomes[action.id] = outcome
        self.world.note(self.name, "ended", action.id, outcome)

    @property
    def connections(self) -> list[Connection]:
        return [self._connection]


class Worker:
    """A worker process. It has one thread, so that messages wait while it computes. Its supervisor starts it again.

    With `ahead`, it begins the next run before the last one ended, as with a GPU.
    """

    def __init__(
        self,
        world: World,
        number: int,
        brokers: Sequence[Broker],
        slots: int,
        models: Any,
        batch: int,
        *,
        ahead: bool = False,
        speed: float = 1.0,
    ) -> None:
        self._overlaps, self._speed = ahead, speed
        self.begun_ahead = 0
        self.world, self.name, self.brokers = world, f"worker{number}", brokers
        self._slots, self._models, self._batch = slots, models, batch
        self._configs: dict[tuple[str, int], dict[str, Any]] = {}
        self.alive = False
        self.lives = 0
        self.deadlines: dict[bytes, dict[int, float]] = {}
        """The callers' deadlines, for histories in which messages are never late."""
        self.start()

    def start(self) -> None:
        if self.alive:
            return
        world = self.world
        self.alive, self.busy = True, False
        self._running: list[Any] = []
        self._ahead: list[Any] = []
        self._until = 0.0
        self.stopped_until = 0.0
        self.lives += 1
        self._inbox: deque[tuple[Connection, Any, Any]] = deque()
        self._wake_at: float | None = None
        self.session = WorkerSession.open(
            f"{self.name}.{self.lives}", self._slots, len(self.brokers), WORKER, world.now
        )
        self.connections = [Connection(world, self, link, broker) for link, broker in enumerate(self.brokers)]
        self._announce()
        self._set_alarm()

    def _announce(self) -> None:
        models: list[dict[str, Any]] = [
            {"name": n, "version": v, "inputs": [], "outputs": [], "config": self._configs.get((n, v))}
            for n, v in self._models
        ]
        batching = {model: Batching(self._batch, 2000) for model in self._models} if self._batch > 1 else {}
        self._perform(self.session.announce(models, batching))

    def deploy(self, models: Any) -> None:
        """Change the models of its repository."""
        self.world.note(self.name, "serves", models)
        self._models = models
        self._announce_again()

    def configure(self, configs: dict[tuple[str, int], dict[str, Any]]) -> None:
        """Change the configurations of its models."""
        self.world.note(self.name, "reads", configs)
        self._configs = configs
        self._announce_again()

    def _announce_again(self) -> None:
        if self.alive and self.session.draining_since is None:
            self._announce()

    def crash(self, back_in: float = 0.2) -> None:
        if self.alive:
            self.world.note(self.name, "dies")
            self.alive = False
            for connection in self.connections:
                connection.close()
            self.world.at(self.world.now + back_in, self.start)

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.world.note(self.name, "is stopped for", seconds)
        self.stopped_until = self.world.now + seconds
        for connection in self.connections:
            connection.block(seconds)
        self.world.at(self.stopped_until, self._loop, self.lives)

    def drain(self) -> None:
        """SIGTERM."""
        if self.alive:
            self._perform(self.session.drain(self.world.now))
            self._set_alarm()

    # --- as the loop does -----------------------------------------------------------------------------------

    def deliver(self, connection: Connection, message: Any, payload: Any) -> None:
        if self.alive and connection is self.connections[connection.link]:
            self._inbox.append((connection, message, payload))
            if not self.busy:
                self._loop(self.lives)
            elif self._running and self.world.now >= self.stopped_until:
                self._begin_ahead()

    def _wake(self, at: float, life: int) -> None:
        if at == self._wake_at:
            self._wake_at = None
            self._loop(life)

    def _loop(self, life: int) -> None:
        if not self.alive or self.busy or life != self.lives or self.world.now < self.stopped_until:
            return
        session, now = self.session, self.world.now
        self._read()
        self._perform(session.tick(now))
        attempts, actions = session.next(now)
        self._perform(actions)
        if attempts:
            self._until = now + STINT
            self._may_begin(attempts)
            self._run(attempts)
        elif session.finished:
            self.world.note(self.name, "went")
            self.crash()
        else:
            self._set_alarm()

    def _read(self) -> None:
        session, now = self.session, self.world.now
        while self._inbox:
            connection, message, payload = self._inbox.popleft()
            if connection is not self.connections[connection.link]:
                continue
            if type(message) is wire.Dispatch and (message.model, message.version) not in self._models:
                gone = NotFound(f"{message.model} version {message.version} is no longer served here")
                self._perform([session.refused(connection.link, message, gone, now)])
            elif type(message) is wire.Dispatch:
                group = message.model if self._batch > 1 else None
                session.given(connection.link, message, payload[0], now, group=group)
            else:
                self._perform(session.received(connection.link, message, now))

    def _may_begin(self, attempts: list[Any]) -> None:
        now = self.world.now
        if any(attempt.deadline <= now for attempt in attempts):
            raise Fault(f"{self.name} runs an attempt after its deadline")
        for attempt in attempts:
            deadlines = self.deadlines.get(attempt.message.session)
            if deadlines is not None and now > deadlines[attempt.message.id] + 4 * self.world.latency:
                raise Fault(f"{self.name} runs call {attempt.message.id} after its deadline")

    def _run(self, attempts: list[Any]) -> None:
        now = self.world.now
        self.busy = True
        self._running = attempts if self._overlaps else []
        self._begin_ahead()
        if any("kill" in attempt.job for attempt in attempts):
            self.world.at(now + 0.01, self._killed, self.lives)
        elif any("hang" in attempt.job for attempt in attempts):
            # The watchdog's time.
            self.world.at(max(a.deadline for a in attempts) + 2.0, self._killed, self.lives)
        else:
            took = max(attempt.job.get("sleep", 0.001) for attempt in attempts) / self._speed
            self.world.at(now + took, self._ran, self.lives, attempts, took)

    def _begin_ahead(self) -> None:
        """Begin what a worker may while another run goes on. It may do so at any moment, which is more than ours do."""
        if self._ahead or not self._running or self._running[0].message.attempt > 1 or self.world.now >= self._until:
            return
        self._read()
        self._ahead, actions = self.session.next(self.world.now, ahead=True)
        self._perform(actions)
        self._may_begin(self._ahead)
        if any(attempt.message.attempt > 1 for attempt in self._ahead):
            raise Fault(f"{self.name} begins an attempt after the first while another runs")
        self.begun_ahead += bool(self._ahead)
        if any("kill" in attempt.job for attempt in self._ahead):
            self.world.at(self.world.now + 0.01, self._killed, self.lives)

    def _killed(self, life: int) -> None:
        if life == self.lives:
            self.crash()

    def _ran(self, life: int, attempts: list[Any], took: float) -> None:
        if not self.alive or life != self.lives:
            return
        if self.world.now < self.stopped_until:
            self.world.at(self.stopped_until, self._ran, life, attempts, took)
            return
        self.busy, self._running = False, []
        for attempt in attempts:
            job = attempt.job
            if "fail" in job:
                self._perform([self.session.failed(attempt, Status.INTERNAL, "it broke")])
            else:
                name, number = f"client{int(attempt.message.session)}", attempt.message.id
                self._perform([self.session.done(attempt, [name, str(number)], took)])
        following, self._ahead = self._ahead, []
        if following:
            self._run(following)
        else:
            self._loop(life)

    def _perform(self, actions: Sequence[Any]) -> None:
        for action in actions:
            if isinstance(action, WorkerReconnect):
                self.connections[action.broker].close()
                self.connections[action.broker] = Connection(
                    self.world, self, action.broker, self.brokers[action.broker]
                )
            else:
                self.connections[action.broker].send(action.message, action.payload)

    def _set_alarm(self) -> None:
        times = [t for t in (self.session.next_deadline(), self.session.ready_at()) if t is not None]
        at = max(self.world.now, min(times)) if times else None
        if at is not None and (self._wake_at is None or at < self._wake_at):
            self._wake_at = at
            self.world.at(at, self._wake, at, self.lives)
