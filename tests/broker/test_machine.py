"""Invariants under random events of clients, workers, connections and time: `validate` holds, every accepted request
gets exactly one terminal reply, and no worker gets more requests than its slots."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.admission import QueueLimits
from broker.core import Core
from broker.events import Disconnected, FromClient, FromWorker, Malformed, Stop, Tick, ToClient, ToWorker, Undelivered
from broker.invariants import validate, validate_statistics
from broker.liveness import LivenessPolicy
from broker.tracing import spans_of
from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body
from zmq_offload.protocol.tensors import TensorSpec, signature_of
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.spans import Span

POLICY = LivenessPolicy(heartbeat=1, patience=3, hang_grace=5, worker_grace=2, max_attempts=2)
LIMITS = QueueLimits(max_queued=6, max_queued_bytes=60, max_queued_per_model=4, max_queued_per_client=3)
CLIENTS = [bytes([65 + n]) * 16 for n in range(4)]
PEERS = [b"W%d" % n for n in range(3)]
MODELS = [("m", 1), ("m", 2), ("m", 3), ("n", 1)]
OTHER = {("m", 3): [{"name": "x", "datatype": "FP32", "shape": [1]}]}
"""The versions with another signature, and their inputs."""
SIGNATURES = [b"", signature_of((), ()), signature_of([TensorSpec("x", "FP32", (1,))], ()), b"?" * 16]


def describe(name: str, version: int) -> dict[str, Any]:
    return {"name": name, "version": version, "inputs": OTHER.get((name, version), []), "outputs": []}


TRACE = context.joined(b"t" * 16, b"c" * 8, context.SAMPLED)
numbers = st.integers(1, 8)
clients = st.sampled_from(CLIENTS)
peers = st.sampled_from(PEERS)


class Broker(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.core = Core(POLICY, 0.0, 25, LIMITS)
        self.core.ledger.tracing.enabled = True
        self.out: list[ToWorker] = []  # dispatches that no worker answered
        self.slots: dict[bytes, int] = {}

    def handle(self, event: Any) -> None:
        promised = dict(self.core.ledger.requests)
        for action in self.core.handle(event, self.now):
            if isinstance(action, ToWorker):
                if isinstance(action.message, wire.Dispatch):
                    self.out.append(action)
                    worker = self.core.ledger.workers.get(action.peer)
                    if worker is not None:  # else it was lost by the same event
                        assert max(map(len, action.payload)) <= worker.max_frame_bytes
                        assert len(worker.held) <= max(worker.slots, worker.most_slots)
                wire.decode(wire.encode(action.message), wire.TO_WORKER)
            else:
                assert isinstance(action, ToClient)
                wire.decode(wire.encode(action.message), wire.TO_CLIENT)
                key = action.message[:2]
                if isinstance(action.message, wire.Result | wire.Error) and key in promised:
                    assert self.core.ledger.requests.get(key) is not promised.pop(key), "answered, and still held"
        assert promised.items() <= self.core.ledger.requests.items(), "a request was dropped"
        for record in self.core.ledger.tracing.take():
            self.check_spans(list(spans_of(record, lambda: b"own-span")), isinstance(record.reply, wire.Error))

    def check_spans(self, spans: list[Span], failed: bool) -> None:
        """Waits and attempts follow each other without a gap, and the last one has the error of the request."""
        names = [span.name for span in spans]
        steps = [span for span in spans if span.name != "compute"]
        assert [span.name for span in steps] == (["queue", "attempt"] * len(steps))[: len(steps)]
        assert all(one.end == next.start for one, next in itertools.pairwise(steps)) and steps[-1].end == self.now
        assert bool(steps[-1].error) is failed and all(span.error for span in steps[1:-1:2])
        assert (names[-1] == "compute") is not failed

    @rule(
        session=clients, number=numbers, model=st.sampled_from(["m", "n", "?"]), version=st.integers(0, 3),
        budget=st.sampled_from([0, 1, 4, 60]), priority=st.integers(-1, 1), size=st.integers(0, 30),
        signature=st.sampled_from(SIGNATURES), takes=st.sampled_from([2, 100]), trace=st.sampled_from([b"", TRACE]),
    )  # fmt: skip
    def request(
        self, session: bytes, number: int, model: str, version: int, budget: int, priority: int, size: int,
        signature: bytes, takes: int, trace: bytes,
    ) -> None:  # fmt: skip
        message = wire.Request(
            session, number, model, version, budget * 1_000_000, priority, signature, takes, trace=trace
        )
        self.handle(FromClient(session[:1], message, [b"x" * size]))

    @rule(session=clients, number=numbers)
    def cancel(self, session: bytes, number: int) -> None:
        self.handle(FromClient(session[:1], wire.Cancel(session, number), []))

    @rule(session=clients, ids=st.lists(numbers, max_size=4))
    def ping(self, session: bytes, ids: list[int]) -> None:
        self.handle(FromClient(session[:1] + b"'", wire.Ping(session, ids), []))

    @rule(session=clients, what=st.sampled_from(["models", "status"]))
    def query(self, session: bytes, what: str) -> None:
        self.handle(FromClient(session[:1], wire.Query(session, 99, what), []))

    @rule(
        peer=peers, slots=st.integers(1, 3), models=st.sets(st.sampled_from(MODELS)), takes=st.sampled_from([15, 100])
    )
    def announce(self, peer: bytes, slots: int, models: set[tuple[str, int]], takes: int) -> None:
        body = [describe(name, version) for name, version in models]
        self.handle(FromWorker(peer, wire.Announce(peer.decode(), slots, takes), [encode_body(body)]))

    @rule(peer=peers, message=st.sampled_from([wire.Heartbeat(), wire.Goodbye(), wire.Announce("?", 1)]))
    def says(self, peer: bytes, message: Any) -> None:
        self.handle(FromWorker(peer, message, [b"\xc1"]))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 50), fails=st.booleans(), again=st.booleans())
    def answer(self, which: int, fails: bool, again: bool) -> None:
        dispatch = self.out[which % len(self.out)]
        if not again:
            self.out.remove(dispatch)
        key = dispatch.message[:3]
        message = wire.Failed(*key, "WEIRD", "?") if fails else wire.Done(*key, 5)
        self.handle(FromWorker(dispatch.peer, message, [b"out"]))

    @rule(peer=peers, full=st.booleans())
    def undelivered(self, peer: bytes, full: bool) -> None:
        self.handle(Undelivered(ToWorker(peer, wire.Probe()), full))

    @rule(peer=clients)
    def client_gone(self, peer: bytes) -> None:
        self.handle(Undelivered(ToClient(peer[:1], wire.Pong(peer, [])), False))

    @rule()
    def disconnected(self) -> None:
        self.handle(Disconnected())

    @rule(frontend=st.booleans())
    def malformed(self, frontend: bool) -> None:
        self.handle(Malformed(b"?", frontend, ProtocolError("nonsense")))

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 7.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.handle(Tick())
            assert self._ticked(), "the loop would spin"
        self.now = end

    @rule()
    def stop(self) -> None:
        self.handle(Stop(3.0))

    @invariant()
    def holds(self) -> None:
        validate(self.core)
        validate_statistics(self.core)

    @invariant()
    def nothing_outlives_its_deadline(self) -> None:
        requests = self.core.ledger.requests.values() if self._ticked() else ()
        assert all(request.deadline >= self.now - 1e-9 for request in requests)

    def _ticked(self) -> bool:
        due = self.core.next_deadline()
        return due is None or due > self.now

    def teardown(self) -> None:
        """At the end every accepted request has its reply, at the latest by its deadline."""
        self.time_passes(120)
        assert not self.core.ledger.requests


TestBroker = Broker.TestCase
TestBroker.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
