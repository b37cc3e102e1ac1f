"""A worker process: sockets to its brokers, and the executor, in one thread. Only this module touches zmq or a clock.

One thread on purpose: a request that went to another thread and back would cost more than the rest of the fabric.
While the VM runs, libzmq's I/O thread answers the brokers' heartbeats (see broker.liveness).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from workers.config import Config
from workers.deployment import Deployment
from workers.follower import Follower
from workers.loading import Model
from workers.serving import Echo, Executor, batching_of, bounded, describe, execute, prepare
from workers.session import Action, Attempt, Reconnect, Send, WorkerSession
from zmq_offload.artifacts.repository import Repository
from zmq_offload.common.extras import needs
from zmq_offload.errors import NotFound, OffloadError, ProtocolError, ResourceExhausted, printable
from zmq_offload.net import transport
from zmq_offload.net.handshake import HandshakeMonitor, Security
from zmq_offload.protocol import messages as wire

log = logging.getLogger("workers")

_BATCH = 64
"""Messages taken from one broker before the next has its turn, and before an attempt runs."""

_TURN = 0.0002
"""Seconds of work after which what came in is taken in: to look for it costs as much as a short run does."""

_SETTLE = 0.002
"""Seconds before an attempt that lost a worker before, for libzmq's thread to send what was answered. Should it take
this process down as well, an answer that is here still would be lost with it, and another request be blamed."""

_STINT = 0.05
"""Seconds of work between two looks at what else is to do: a stop, another version that is ready."""

_CONNECTED = "connected to broker %s"

HUNG = 70
"""Exit code of a worker that ended itself because a subgraph hung."""


class Worker:
    """Connects on construction; `run` serves until `stop`, or until `parent` (a file descriptor) is closed."""

    def __init__(
        self,
        config: Config,
        parent: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        cores: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._clock = clock
        self._wake, self._news = transport.Wake(), transport.Wake()
        self._executors: dict[Model, Executor | Echo] = {}
        self._deployment: Deployment | None = None
        self.follower: Follower | None = None
        if config.executor == "echo":
            self._executors = {(Echo.model.name, Echo.model.version): Echo()}
        else:
            with needs("tvm"):  # which an echo worker does without
                from workers.executor import GraphExecutor, bind_threads
                from zmq_offload.runtime.machine import release_memory

            if cores:
                bind_threads(cores)

            def load_beside(repository: Repository, name: str, version: int) -> Executor:
                executor = GraphExecutor(repository, name, version)
                executor.warm_up(cores)
                return executor

            repository = Repository(config.repository)
            self._deployment = Deployment(repository, GraphExecutor, self._news.set, release_memory)
            # Here, at once and without a turn: nothing is served yet that it could disturb.
            self._deployment.refresh()
            self._executors = dict(self._deployment.executors)
            self.follower = Follower(self._deployment, repository.root, config.refresh, load_beside)
            self.follower.start()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stops = [self._wake.fileno()] + ([parent] if parent is not None else [])
        self._security = Security(config.key, config.broker_key)
        self._watches: dict[int, HandshakeMonitor] = {}
        self._inboxes = [self._connect(broker) for broker in range(len(config.brokers))]
        self._find_sources()
        self.session = WorkerSession.open(
            config.name, config.slots, len(self._inboxes), config.policy, clock(), config.max_frame_bytes
        )
        self._running: list[Attempt] = []
        self._complain_at = 0.0
        self._said: dict[int, str] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Drain and return from `run`. May be called from any thread and from a signal handler."""
        self._wake.set()

    def run(self) -> None:
        """Serve until stopped; closes everything."""
        session = self.session
        self._announce()
        while not session.finished:
            self._poll()
            if session.held:
                self._work()
        if self.follower is not None:
            self.follower.end()
        for broker, inbox in enumerate(self._inboxes):
            self._watches[broker].close()
            inbox.socket.close(linger=2000 if session.answers(broker) else 0)  # the last results still go out
        self._context.term()
        self._wake.close()
        self._news.close()

    def _poll(self) -> None:
        """Wait until something comes in or is due, then take in all that is there."""
        session, clock = self.session, self._clock
        due = session.next_deadline()
        deadline = math.inf if due is None else due
        if session.held and (ready_at := session.ready_at()) is not None:
            deadline = min(deadline, ready_at)
        wait = -1 if deadline == math.inf else max(0, math.ceil((deadline - clock()) * 1000))
        for source, _ in zmq.zmq_poll(self._sources, wait):
            broker = self._brokers_by_socket.get(source)
            if broker is not None:
                self._receive(broker)
            elif source == self._news.fileno():
                self._take_news()
            elif source in self._stops:
                self._stops = []
                self._find_sources()
                log.info("draining")
                self._perform(session.drain(clock()))
        if due is not None and clock() >= due:
            self._perform(session.tick(clock()))

    def _receive(self, broker: int) -> None:
        for frames in self._inboxes[broker].take(_BATCH):
            try:
                message = wire.decode(frames[0], wire.TO_WORKER)
            except ProtocolError as error:
                self._complain(broker, f"sent no message: {error}")
                continue
            if type(message) is wire.Dispatch:
                self._take(broker, message, frames[1:])
                continue
            if type(message) is wire.Error:
                self._complain(broker, f"says {message.code}: {message.text}")
            elif type(message) is not wire.Identify:  # which asks a worker that it does not know
                self._say(broker, logging.INFO, _CONNECTED)
            self._perform(self.session.received(broker, message, self._clock()))

    def _say(self, broker: int, level: int, what: str) -> None:
        """How it stands with a broker; once, until that changes."""
        if self._said.get(broker) != what:
            self._said[broker] = what
            log.log(level, what, self._config.brokers[broker])

    def _complain(self, broker: int, what: str) -> None:
        """Not of each: whoever sends a million of them must not fill the disk."""
        if self._clock() >= self._complain_at:
            self._complain_at = self._clock() + 1
            log.warning("broker %s %s", self._config.brokers[broker], printable(what))

    def _take(self, broker: int, message: wire.Dispatch, payload: list[Any]) -> None:
        """Hold an attempt. What is wrong with one is found here, so that it never waits nor spoils a batch."""
        model = (message.model, message.version)
        executor = self._executors.get(model)
        try:
            if len(self.session.held) >= self.session.most_held:
                raise ResourceExhausted(f"this worker holds {self.session.most_held} requests already")
            if executor is None:
                raise NotFound(f"model {message.model!r} version {message.version} is not served here any more")
            job = prepare(executor, payload, self.session.batching.get(model))
        except OffloadError as error:
            self._perform([self.session.refused(broker, message, error, self._clock())])
        else:
            self.session.given(broker, message, job, self._clock(), group=job.group, rows=job.rows)

    def _work(self) -> float:
        """Run what is ready, for a moment: under load there is always more, and a stop must not wait for the end of it.
        Between runs, take in what came meanwhile: something may be revoked by now, or more may run together. The time
        at which it ended."""
        session, clock = self.session, self._clock
        now = clock()
        end, turn = now + _STINT, now + _TURN
        while True:
            attempts, actions = session.next(now)
            if actions:
                self._perform(actions)
            if not attempts:
                return now
            if attempts[0].message.attempt > 1:
                time.sleep(_SETTLE)
            self._running = attempts
            start = clock()
            outcomes = execute([attempt.job for attempt in attempts])
            self._running = []
            now = clock()
            # At once: the next one may take long, or this process down, and then what is unanswered counts as lost with
            # it.
            for attempt, outcome in zip(attempts, outcomes, strict=True):
                outcome = bounded(outcome, session.max_frame_bytes, session.connections[attempt.broker].takes)
                if isinstance(outcome, OffloadError):
                    self._send(session.failed_with(attempt, outcome))
                else:
                    self._send(session.done(attempt, outcome, now - start))
            if not session.held or now >= end:
                return now
            del attempts, outcomes, attempt, outcome  # their memory is free for what comes next
            if now >= turn:
                for broker, inbox in enumerate(self._inboxes):
                    if inbox.waiting():
                        self._receive(broker)
                now = clock()
                turn = now + _TURN

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reconnect):
                why = (self._watches[action.broker].refusal() or "is silent").replace("%", "%%")
                self._say(action.broker, logging.WARNING, f"broker %s {why}; connecting again until it answers")
                self._watches[action.broker].close()
                self._inboxes[action.broker].socket.close(linger=0)
                self._inboxes[action.broker] = self._connect(action.broker)
                self._find_sources()
            else:
                self._send(action)

    def _send(self, action: Send) -> None:
        try:
            transport.send(self._inboxes[action.broker].socket, [wire.encode(action.message), *action.payload])
        except zmq.Again:
            return  # a connection whose key was refused; it is made anew when the broker was silent for long

    def _connect(self, broker: int) -> transport.Inbox:
        socket = transport.make_socket(
            self._context,
            zmq.DEALER,
            max_frame_bytes=self._config.max_frame_bytes,
            heartbeat=self._config.policy.heartbeat,
        )
        # A broker sends no more than there are slots, and Probes; what one that lies sends stays in its own memory.
        socket.setsockopt(zmq.RCVHWM, 1000 + 4 * self._config.slots)
        self._security.protect(socket)
        self._watches[broker] = HandshakeMonitor(socket)
        transport.connect(socket, self._config.brokers[broker])
        return transport.Inbox(socket)

    def _find_sources(self) -> None:
        """What to poll: the brokers' sockets, and what tells that this worker shall stop."""
        self._brokers_by_socket: dict[Any, int] = {inbox.socket: broker for broker, inbox in enumerate(self._inboxes)}
        self._sources: list[tuple[Any, int]] = [
            (s, transport.POLLIN) for s in (*self._stops, self._news.fileno(), *self._brokers_by_socket)
        ]

    def _announce(self) -> None:
        """Tell the brokers what is served, and the session what can run together."""
        batching = {}
        for model, executor in self._executors.items():
            found = batching_of(executor.model, self._config.batching)
            if found is not None:
                batching[model] = found
        self._perform(self.session.announce([describe(e) for e in self._executors.values()], batching))

    def _take_news(self) -> None:
        """Serve what the repository holds now."""
        self._news.clear()
        if self._deployment is not None:
            self._executors = dict(self._deployment.executors)
            self._announce()

    def _watch(self) -> None:
        """End the process when a subgraph is still running long after its request's deadline: nothing else can stop
        it. The supervisor starts another."""
        while True:
            time.sleep(min(1.0, self._config.hang_grace / 4))
            running = self._running
            if running and self._clock() >= max(a.deadline for a in running) + self._config.hang_grace:
                log.critical("a subgraph hangs; ending this worker")
                logging.shutdown()
                os._exit(HUNG)


def serve(config: Config, parent: int | None, cores: Sequence[int] = ()) -> int:
    """Run a worker in this process, which has `cores` to itself, until its supervisor, SIGTERM, SIGINT or SIGHUP ends
    it."""
    worker = Worker(config, parent, cores=cores)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, lambda *_: worker.stop())
    log.info("%s: connecting to %s", config.name, ", ".join(config.brokers))
    worker.run()
    log.info("%s: stopped", config.name)
    sys.stdout.flush()
    if worker.follower is not None and worker.follower.busy:
        # A load can neither be stopped nor go on while the interpreter is taken down.
        logging.shutdown()
        os._exit(0)
    return 0
