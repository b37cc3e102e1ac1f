"""A worker process: what arrives from its brokers, and the executor, in one thread.

One thread on purpose: handing a request to another thread and back would cost more than the rest of the fabric. While
the virtual machine runs for long, another thread keeps the connections alive (see `workers.links`).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from workers.config import Config
from workers.connecting import connections
from workers.cores import NOWHERE, Placement
from workers.deployment import Deployment
from workers.follower import Follower
from workers.gauge import Gauge, gauge_of
from workers.loading import Model
from workers.returned import ReturnedCanaries
from workers.runner import Runner
from workers.serving import DeviceLost, Echo, Executor, Served, batching_of, describe
from workers.session import Action, Attempt, Reconnect, WorkerSession
from workers.shortpath import ShortPath, read
from zmq_offload.artifacts.config import NO_CONFIG, ModelConfig
from zmq_offload.artifacts.repository import Repository
from zmq_offload.common import memory
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.devices import number_of
from zmq_offload.common.extras import needs
from zmq_offload.errors import NotFound, OffloadError, ProtocolError, ResourceExhausted, printable
from zmq_offload.net import transport
from zmq_offload.net.line import Change, Event
from zmq_offload.net.sharedmemory.sharing import sharing_of
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body

log = logging.getLogger("workers")

_RECEIVE_EVERY = 0.0002
"""Seconds of work between two looks for messages. A look costs as much as a short run."""

_STINT = 0.05
"""Seconds of work between two looks for a stop or for a new version."""

_LOADS = 4
"""The most versions that load at a time while a worker starts. For each, memory has its weights twice for a moment."""

HUNG = 70
"""Exit code of a worker that ends itself because a subgraph hangs."""

DEVICE_LOST = 71
"""Exit code of a worker that ends itself because it cannot use its GPU any more."""


class Worker:
    """Connects when it is made. `run` serves until `stop` is called or `parent`, a file descriptor, is closed."""

    def __init__(
        self,
        config: Config,
        parent: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        where: Placement = NOWHERE,
        seat: int = 0,
        restarts: int = 0,
    ) -> None:
        cores, device = where.cores or (), where.device
        self._config = config
        self._clock = clock
        self._wake, self._news = transport.Wake(), transport.Wake()
        self._executors: Mapping[Model, Executor | Echo] = {}
        self._configs: Mapping[str, ModelConfig] = {}
        self._returned = ReturnedCanaries()
        self._deployment: Deployment | None = None
        self._gauge: Gauge | None = None
        self.follower: Follower | None = None
        if config.executor == "echo":
            self._executors = {(Echo.model.name, Echo.model.version): Echo()}
        else:
            with needs("tvm"):  # an echo worker runs without
                from workers.executor import bind_threads, executor_of
                from zmq_offload.runtime.gpu import open_gpu
                from zmq_offload.runtime.machine import release_memory

            if cores:
                bind_threads(cores)

            gpu = None if number_of(device) is None else open_gpu(device)
            if gpu is not None:
                log.info("device %s: %s, compute capability %s", gpu.name, gpu.title, gpu.capability)
                self._gauge = gauge_of(device, config.policy.heartbeat)
                if self._gauge is not None:
                    self._gauge.start()

            def load(repository: Repository, name: str, version: int) -> Executor:
                return executor_of(repository, name, version, gpu)

            def load_warm(repository: Repository, name: str, version: int) -> Executor:
                executor = executor_of(repository, name, version, gpu)
                executor.warm_up(cores, deployment.config_of(name).warmup)
                return executor

            def load_first(repository: Repository, name: str, version: int) -> Executor:
                wanted = deployment.config_of(name).warmup
                return load(repository, name, version) if wanted is None else load_warm(repository, name, version)

            repository = Repository(config.repository)
            deployment = Deployment(repository, load_first, self._news.set, release_memory, seat)
            self._deployment = deployment
            at_once = min(_LOADS, len(cores) or usable_cores())
            self.follower = Follower(self._deployment, repository.root, config.refresh, load_warm, at_once)
            self.follower.start()
            self.follower.wait()
            self._executors, self._configs = self._deployment.serving
        self._parent = parent
        self._sharing = None if config.key else sharing_of(config.arena_bytes, log)
        self._links = connections(config, self._sharing)
        self.session = WorkerSession.open(
            config.name,
            config.slots,
            len(config.brokers),
            config.policy,
            clock(),
            config.max_frame_bytes,
            device,
            restarts,
        )
        self._served: dict[Model, Served] = {}
        self._short = ShortPath(self.session, self._links, self._sharing, clock)
        self._runner = Runner(self.session, self._links, self._short, clock)
        self._serves_several = len(config.brokers) > 1
        self._due = -math.inf  # not later than when the session has something to do
        self._warn_at = 0.0
        self._logged: dict[int, str] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Have `run` drain and return. May be called from any thread and from a signal handler."""
        self._wake.set()

    def stop_on(self, number: int) -> None:
        """Let a signal have `run` drain and return. Only the main thread may call this."""
        self._wake.set_on(number)

    def run(self) -> None:
        """Serve until stopped, then close everything."""
        session, links = self.session, self._links
        stops = [self._wake.fileno()] + ([self._parent] if self._parent is not None else [])
        for descriptor in stops:
            links.watch(descriptor, lambda: self._drain(stops))
        links.watch(self._news.fileno(), self._take_news)
        self._announce()
        try:
            while not session.finished:
                self._poll()
                if session.held:
                    self._work()
        except DeviceLost as error:
            self._give_up(error)
        if self.follower is not None:
            self.follower.end()
        # Time to send the last results.
        links.close([session.answers(broker) for broker in range(len(session.connections))])
        self._wake.close()
        self._news.close()

    def _give_up(self, error: DeviceLost) -> None:
        """End the process without an answer to what it holds: brokers then give that to other workers. What CUDA has in
        this process cannot be taken down in order."""
        self._links.settle()
        log.critical("%s; ending this worker", error)
        logging.shutdown()
        os._exit(DEVICE_LOST)

    def _drain(self, stops: list[int]) -> None:
        for descriptor in stops:
            self._links.unwatch(descriptor)
        log.info("draining")
        self._due = -math.inf
        self._perform(self.session.drain(self._clock()))

    def _poll(self) -> None:
        """Wait until something happens or is due, and do what there is to do apart from running."""
        session, links = self.session, self._links
        links.flush()
        if self._due == -math.inf:
            self._due = self._next_deadline()
        due = self._due
        if session.held and (ready_at := session.ready_at()) is not None:
            due = min(due, ready_at)
        for event in links.wait(due, many=bool(session.batching)):
            self._happened(event)
        if (now := self._clock()) >= self._due:
            self._due = -math.inf
            if now >= self._next_deadline():
                session.memory_bytes = memory.resident()
                session.gauge = () if self._gauge is None else self._gauge.body
                self._perform(session.tick(now))

    def _next_deadline(self) -> float:
        due = self.session.next_deadline()
        return math.inf if due is None else due

    def _happened(self, event: Event) -> None:
        broker, what = event
        if what == []:
            self.session.heard(broker, self._clock())
            return
        if isinstance(what, list):
            count = self._short.serve(broker, what, self._served)
            if count == len(what):
                return  # deadlines are where they were, or later
            self._receive(broker, what[count:])
        elif what is Change.CONNECTED:
            self._perform(self.session.connected(broker))
        else:
            self.session.lost(broker)
        self._due = -math.inf

    def _receive(self, broker: int, arrived: list[transport.Frames]) -> None:
        for frames in arrived:
            try:
                message = wire.decode(frames[0], wire.TO_WORKER)
            except ProtocolError as error:
                self._warn(broker, f"sent a malformed message: {error}")
                continue
            if type(message) is wire.Dispatch:
                self._take(broker, message, frames[1:])
                continue
            if type(message) is wire.Returned:
                self._note_returned(broker, message.model, frames[1:])
            elif type(message) is wire.Error:
                self._warn(broker, f"says {message.code}: {message.text}")
            elif type(message) is not wire.Identify:  # a broker that does not know this worker sends that
                how = ", sharing memory" if self._links.shares(broker) else ""
                self._log_state(broker, logging.INFO, f"connected to broker {self._config.brokers[broker]}{how}")
            self._perform(self.session.received(broker, message, self._clock()))

    def _note_returned(self, broker: int, model: str, frames: transport.Frames) -> None:
        """Tell all brokers that a canary was returned by one of them."""
        try:
            news = self._returned.told(model, decode_body(frames, "a Returned"), self._configs)
        except ProtocolError as error:
            self._warn(broker, f"sent a malformed message: {error}")
            return
        if news:
            self._announce()

    def _log_state(self, broker: int, level: int, state: str) -> None:
        """Log the state of a connection when it changes."""
        if self._logged.get(broker) != state:
            self._logged[broker] = state
            log.log(level, "%s", state)

    def _warn(self, broker: int, what: str) -> None:
        """Log what is wrong with a broker, at most once a second: a million faults must not fill the disk."""
        if self._clock() >= self._warn_at:
            self._warn_at = self._clock() + 1
            log.warning("broker %s %s", self._config.brokers[broker], printable(what))

    def _take(self, broker: int, message: wire.Dispatch, payload: transport.Frames) -> None:
        """Hold an attempt, or refuse a faulty one at once, so that it neither waits nor spoils a batch."""
        model = (message.model, message.version)
        served = self._served.get(model)
        try:
            if len(self.session.held) >= self.session.most_held:
                raise ResourceExhausted(f"this worker holds {self.session.most_held} requests; send it fewer")
            if served is None:
                raise NotFound(f"model {message.model!r} version {message.version} is no longer served here")
            if self._sharing is not None:
                payload = read(self._sharing, payload)
            job = served.job(payload)
        except OffloadError as error:
            self._perform([self.session.refused(broker, message, error, self._clock())])
        else:
            self.session.given(broker, message, job, self._clock(), group=job.group, rows=job.rows)

    def _work(self) -> float:
        """Run attempts for a moment. Under load there are always more, and a stop must not wait for the last. Returns
        the time at the end."""
        clock, runner = self._clock, self._runner
        self._due = -math.inf
        now = clock()
        end, receive_at = now + _STINT, now + _RECEIVE_EVERY
        while attempts := self._next(now):
            if runner.overlapping and runner.overlaps(attempts):
                now = runner.run_overlapped(attempts, self._following, end)
            else:
                now = runner.run(attempts)
            if not self.session.held or now >= end:
                if self._serves_several and not self.session.held:
                    self._perform(self.session.tell())
                break
            del attempts  # frees their memory for the next ones
            if now >= receive_at:
                self._look()
                now = clock()
                receive_at = now + _RECEIVE_EVERY
        return now

    def _look(self) -> None:
        """Take what arrived: an attempt may be revoked by now, or more may run together."""
        self._links.flush()
        for event in self._links.look():
            self._happened(event)

    def _following(self) -> list[Attempt]:
        """The attempts to copy to a GPU while others compute there."""
        self._look()
        attempts, actions = self.session.next(self._clock(), ahead=True)
        self._perform(actions)
        return attempts

    def _next(self, now: float) -> list[Attempt]:
        """The attempts that run together now. Answers those that need not run."""
        attempts, actions = self.session.next(now)
        if actions:
            self._perform(actions)
        return attempts

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Reconnect):
                why = self._links.refusal(action.broker) or "is silent"
                state = f"broker {self._config.brokers[action.broker]} {why}; connecting again until it answers"
                self._log_state(action.broker, logging.WARNING, state)
                self._links.reconnect(action.broker)
            else:
                self._links.send(*action)

    def _announce(self) -> None:
        """Tell the brokers which models are served, and the session which requests can run together."""
        batching, models, served = {}, [], {}
        for model, executor in self._executors.items():
            config = self._configs.get(model[0], NO_CONFIG)
            found = batching_of(executor.model, self._config.batching or config.batching)
            if found is not None:
                batching[model] = found
            models.append(describe(executor, found, config, self._returned.of(model[0])))
            served[model] = Served(executor, found)
        self._served = served
        self._runner.serve(served)
        self._perform(self.session.announce(models, batching))

    def _take_news(self) -> None:
        """Serve the versions that are loaded now."""
        self._news.clear()
        if self._deployment is not None:
            self._executors, self._configs = self._deployment.serving
            self._returned.keep(self._configs)
            self._links.forget()
            self._announce()

    def _watch(self) -> None:
        """End the process if a subgraph still runs long after its requests' deadlines. Nothing else can stop it. The
        supervisor starts another worker."""
        while True:
            time.sleep(min(1.0, self._config.hang_grace / 4))
            if self._clock() >= self._short.deadline + self._config.hang_grace:
                log.critical("a subgraph hangs; ending this worker")
                logging.shutdown()
                os._exit(HUNG)


def serve(config: Config, parent: int | None, where: Placement = NOWHERE, seat: int = 0, restarts: int = 0) -> int:
    """Run a worker in this process, placed as `where` says, until its supervisor ends or SIGTERM, SIGINT or SIGHUP
    arrives.

    `seat` is its number among the processes of its supervisor, from 0; `restarts`, how many had the seat before.
    """
    worker = Worker(config, parent, where=where, seat=seat, restarts=restarts)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            worker.stop_on(number)
    log.info("connecting to %s", ", ".join(config.brokers))
    worker.run()
    log.info("stopped")
    sys.stdout.flush()
    if worker.follower is not None and worker.follower.busy:
        # A load cannot be stopped, and it cannot go on while the interpreter shuts down.
        logging.shutdown()
        os._exit(0)
    return 0
