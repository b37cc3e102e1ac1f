"""What a worker decides, read as a specification. No sockets, no subgraph; time is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from workers.policy import WorkerPolicy
from workers.session import Action, Attempt, Reconnect, Send, WorkerSession
from zmq_offload.artifacts.repository import Batching
from zmq_offload.errors import NotFound, Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body

POLICY = WorkerPolicy(heartbeat=1, patience=3, drain=10)
MODELS = [{"name": "m", "version": 1, "inputs": [], "outputs": []}]
CLIENT = b"c" * 16


class Bench:
    """A session with two brokers and its clock. Every attempt must be answered once, to the broker that gave it."""

    def __init__(self, brokers: int = 2) -> None:
        self.now = 100.0
        self.session = WorkerSession.open("w", 2, brokers, POLICY, self.now)
        self.session.announce(MODELS)
        self.given: dict[tuple[int, int, int], int] = {}
        self.answers: list[tuple[int, int, int]] = []

    def got(self, broker: int, message: Any) -> list[Action]:
        return self.note(self.session.received(broker, message, self.now))

    def note(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, wire.Done | wire.Failed):
                self.answers.append((action.broker, action.message.id, action.message.attempt))
        return actions

    def dispatch(
        self, number: int, broker: int = 0, attempt: int = 1, budget: float = 60, group: str | None = None
    ) -> None:
        message = wire.Dispatch(CLIENT, number, attempt, "m", 1, int(budget * 1e6))
        self.session.given(broker, message, f"job {number}", self.now, group=group)

    def next(self) -> tuple[Attempt | None, list[Action]]:
        attempts, actions = self.session.next(self.now)
        assert len(attempts) <= 1
        return (attempts[0] if attempts else None), self.note(actions)

    def tick(self, seconds: float = 0) -> list[Action]:
        self.now += seconds
        return self.note(self.session.tick(self.now))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert len(bench.answers) == len(set(bench.answers)), "an attempt was answered twice"


# --- announcing --------------------------------------------------------------------------------------------


def test_an_attempt_that_cannot_run_is_answered_at_once_and_its_broker_counts_as_heard(bench: Bench) -> None:
    bench.now += POLICY.patience - 0.1
    message = wire.Dispatch(CLIENT, 7, 1, "other", 1, 60_000_000)
    sent = bench.session.refused(0, message, NotFound("no model 'other'"), bench.now)
    assert sent == Send(0, wire.Failed(CLIENT, 7, 1, "NOT_FOUND", "no model 'other'"))
    bench.got(1, wire.Probe())
    assert not [action for action in bench.tick(0.2) if isinstance(action, Reconnect)]


def test_it_tells_where_it_runs_and_how_much_memory_it_has(bench: Bench) -> None:
    session = WorkerSession.open("w", 2, 1, POLICY, 100.0, 77, "cuda:0", 3)
    (announced,) = session.announce(MODELS)
    assert isinstance(announced, Send) and announced.message == wire.Announce("w", 2, 77, "cuda:0", 3)
    session.memory_bytes, session.gauge = 12345, (b"of the GPU",)
    (beat,) = session.tick(101.0)
    assert isinstance(beat, Send) and (beat.message, beat.payload) == (wire.Heartbeat(12345, 0), (b"of the GPU",))


def test_it_tells_every_broker_what_it_serves(bench: Bench) -> None:
    first, second = bench.session.announce(MODELS)
    assert isinstance(first, Send) and isinstance(second, Send)
    assert (first.broker, second.broker) == (0, 1)
    assert first.message == wire.Announce("w", 2)
    assert decode_body(first.payload, "") == MODELS


def test_a_broker_that_does_not_know_it_is_told(bench: Bench) -> None:
    (action,) = bench.got(1, wire.Identify())
    assert isinstance(action, Send)
    assert (action.broker, action.message) == (1, wire.Announce("w", 2))


def test_it_tells_its_limit_of_frames_and_learns_each_brokers(bench: Bench) -> None:
    bench.session.max_frame_bytes = 77
    assert [a.message for a in bench.session.announce(MODELS) if isinstance(a, Send)] == [wire.Announce("w", 2, 77)] * 2
    bench.got(1, wire.Probe(55))
    assert [c.takes for c in bench.session.connections] == [limits.MESSAGE_BYTES, 55]


def test_an_idle_worker_sends_heartbeats(bench: Bench) -> None:
    assert bench.tick(0) == [Send(0, wire.Heartbeat(0, 0)), Send(1, wire.Heartbeat(0, 0))]
    assert bench.tick(0.9) == []
    assert bench.tick(0.1) == [Send(0, wire.Heartbeat(0, 0)), Send(1, wire.Heartbeat(0, 0))]


def test_it_wants_to_be_called_when_something_is_due(bench: Bench) -> None:
    bench.tick(0)
    assert bench.session.next_deadline() == bench.now + POLICY.heartbeat


# --- attempts -----------------------------------------------------------------------------------------------


def test_attempts_run_in_order_and_each_broker_gets_its_answers(bench: Bench) -> None:
    bench.dispatch(1, broker=0)
    bench.dispatch(2, broker=1)
    first, actions = bench.next()
    assert first is not None and actions == []
    assert (first.message.id, first.job) == (1, "job 1")
    done = bench.session.done(first, [b"out"], 0.5)
    assert done == Send(0, wire.Done(CLIENT, 1, 1, 500_000), [b"out"])
    second, _ = bench.next()
    assert second is not None
    failed = bench.session.failed_with(second, NotFound("gone"))
    assert failed == Send(1, wire.Failed(CLIENT, 2, 1, "NOT_FOUND", "gone"))


def test_a_revoked_attempt_is_answered_and_not_run(bench: Bench) -> None:
    bench.dispatch(1)
    bench.dispatch(2)
    bench.got(0, wire.Revoke(CLIENT, 1, 1))
    attempt, (answer,) = bench.next()
    assert attempt is not None and attempt.message.id == 2
    assert isinstance(answer, Send)
    assert answer.message == wire.Failed(CLIENT, 1, 1, "CANCELLED", "canceled before it could run")


def test_only_that_attempt_of_that_broker_is_revoked(bench: Bench) -> None:
    bench.dispatch(1, broker=0, attempt=2)
    bench.got(1, wire.Revoke(CLIENT, 1, 2))
    bench.got(0, wire.Revoke(CLIENT, 1, 1))
    attempt, actions = bench.next()
    assert attempt is not None and actions == []


def test_an_attempt_past_its_deadline_is_answered_and_not_run(bench: Bench) -> None:
    bench.dispatch(1, budget=1)
    bench.now += 1
    attempt, (answer,) = bench.next()
    assert attempt is None
    assert isinstance(answer, Send) and isinstance(answer.message, wire.Failed)
    assert answer.message.code == "DEADLINE_EXCEEDED"


def test_a_later_attempt_runs_alone(bench: Bench) -> None:
    bench.session.announce(MODELS, {("m", 1): Batching(8)})
    for number in (1, 2):
        bench.dispatch(number, attempt=2, group="g")
    assert bench.next()[0] is not None
    assert bench.next()[0] is not None


def test_an_error_can_be_sent_whatever_its_text(bench: Bench) -> None:
    bench.dispatch(1)
    attempt, _ = bench.next()
    assert attempt is not None
    failed = bench.session.failed(attempt, Status.INTERNAL, "\udcff" + "x" * 5000)
    assert isinstance(failed, Send) and isinstance(failed.message, wire.Failed)
    assert len(failed.message.text) == limits.MESSAGE_CHARS
    wire.decode(wire.encode(failed.message), wire.FROM_WORKER)


# --- brokers that go ----------------------------------------------------------------------------------------


def test_after_silence_the_worker_connects_again_and_drops_that_brokers_attempts(bench: Bench) -> None:
    bench.dispatch(1, broker=0)
    bench.dispatch(2, broker=1)
    bench.now += 2
    bench.got(1, wire.Probe())
    actions = bench.tick(1)
    assert actions[0] == Reconnect(0)
    assert isinstance(actions[1], Send) and isinstance(actions[1].message, wire.Announce)
    assert [attempt.message.id for attempt in bench.session.held] == [2]


def test_a_broker_that_is_heard_stays_connected(bench: Bench) -> None:
    for _ in range(10):
        bench.now += 1
        for broker in (0, 1):
            bench.got(broker, wire.Probe())
        assert not any(isinstance(action, Reconnect) for action in bench.tick())


def test_a_broker_whose_long_message_is_coming_stays_connected(bench: Bench) -> None:
    for _ in range(10):
        bench.now += 1
        for broker in (0, 1):
            bench.session.heard(broker, bench.now)
        assert not any(isinstance(action, Reconnect) for action in bench.tick())


# --- going --------------------------------------------------------------------------------------------------


def test_a_drain_says_goodbye_finishes_what_is_held_and_ends(bench: Bench) -> None:
    bench.dispatch(1)
    assert bench.session.drain(bench.now) == [Send(0, wire.Goodbye()), Send(1, wire.Goodbye())]
    assert bench.session.drain(bench.now) == [], "once"
    bench.got(0, wire.Farewell())
    bench.got(1, wire.Farewell())
    assert not bench.session.finished, "an attempt is held"
    attempt, _ = bench.next()
    assert attempt is not None
    assert bench.session.finished


def last_attempt(bench: Bench) -> Attempt:
    """The bench of a worker that has said goodbye and got its farewells."""
    bench.dispatch(1)
    bench.session.drain(bench.now)
    bench.got(0, wire.Farewell())
    bench.got(1, wire.Farewell())
    attempt, _ = bench.next()
    assert attempt is not None
    return attempt


def test_a_worker_goes_when_its_brokers_have_said_that_they_have_its_last_answers(bench: Bench) -> None:
    """If a broker sends to a closed connection, TCP drops what is in flight to the broker."""
    attempt = last_attempt(bench)
    bench.session.done(attempt, [b""], 0.1)
    assert not bench.session.finished
    assert bench.session.next_deadline() is not None
    assert bench.tick(0) == [Send(0, wire.Goodbye())], "the other one was not answered"
    assert bench.tick(1) == []
    bench.got(1, wire.Farewell())
    assert not bench.session.finished
    bench.got(0, wire.Farewell())
    assert bench.session.finished


def test_the_wait_for_a_broker_to_confirm_the_answers_ends(bench: Bench) -> None:
    attempt = last_attempt(bench)
    bench.session.failed(attempt, Status.INTERNAL, "?")
    bench.tick(0)
    bench.tick(9.9)
    assert not bench.session.finished
    bench.tick(0.1)
    assert bench.session.finished


def test_attempts_sent_before_the_broker_heard_of_the_drain_run(bench: Bench) -> None:
    bench.session.drain(bench.now)
    bench.dispatch(1)
    bench.got(0, wire.Farewell())
    attempt, actions = bench.next()
    assert attempt is not None and actions == []


def test_the_wait_for_a_farewell_ends(bench: Bench) -> None:
    bench.session.drain(bench.now)
    bench.got(0, wire.Farewell())
    for _ in range(9):
        bench.tick(1)
        assert not bench.session.finished
    bench.tick(1)
    assert bench.session.finished


def test_only_a_broker_that_was_heard_receives_the_last_messages(bench: Bench) -> None:
    bench.tick(1)
    bench.session.drain(bench.now)
    bench.got(0, wire.Farewell())
    bench.tick(10)
    assert bench.session.finished
    assert [bench.session.answers(broker) for broker in (0, 1)] == [True, False]


def test_a_worker_that_is_going_never_announces_itself_again(bench: Bench) -> None:
    """A restarted broker would give it requests, and lose them when it goes."""
    bench.session.drain(bench.now)
    assert bench.got(0, wire.Identify()) == [Send(0, wire.Goodbye())]
    actions = bench.tick(3)
    assert actions[:2] == [Reconnect(0), Send(0, wire.Goodbye())]


def test_a_farewell_without_a_goodbye_changes_nothing(bench: Bench) -> None:
    bench.got(0, wire.Farewell())
    assert Send(0, wire.Heartbeat(0, 0)) in bench.tick(1)
    bench.session.drain(bench.now)
    assert not bench.session.finished


def test_messages_about_unknown_attempts_change_nothing(bench: Bench) -> None:
    for message in (wire.Probe(), wire.Error(CLIENT, 0, "INTERNAL", "?"), wire.Revoke(CLIENT, 9, 9)):
        assert bench.got(0, message) == []
    assert not bench.session.held


def test_a_broker_that_is_not_there_is_not_waited_for_after_a_drain(bench: Bench) -> None:
    """The broker was silent before the stop, so the worker connects again. A new connection is not an answer."""
    bench.now += 1
    bench.got(1, wire.Probe())
    bench.session.drain(bench.now)
    bench.now += POLICY.patience - 1
    assert Reconnect(0) in bench.session.tick(bench.now)
    bench.now += 1
    bench.got(1, wire.Farewell())
    assert [bench.session.answers(broker) for broker in (0, 1)] == [False, True]
    bench.got(0, wire.Probe())
    assert bench.session.answers(0), "it came up"


def test_a_lost_connection_drops_what_its_broker_gave_and_a_new_one_is_introduced() -> None:
    session = WorkerSession.open("w", 4, 2, WorkerPolicy(), 0.0)
    session.announce([])
    for broker in (0, 1):
        session.given(broker, wire.Dispatch(bytes(16), 1, 1, "m", 1, 10_000_000), None, 0.0)
    session.lost(0)
    assert [attempt.broker for attempt in session.held] == [1]
    (action,) = session.connected(0)
    assert action.broker == 0 and type(action.message) is wire.Announce
    session.drain(1.0)
    (action,) = session.connected(0)
    assert type(action.message) is wire.Goodbye
    session.received(0, wire.Farewell(), 1.0)
    assert session.connected(0) == []


def heartbeats(actions: list[Action]) -> list[tuple[int, int]]:
    """(broker, elsewhere) of each Heartbeat."""
    sent = [action for action in actions if isinstance(action, Send)]
    return [(send.broker, send.message.elsewhere) for send in sent if isinstance(send.message, wire.Heartbeat)]


def test_brokers_are_told_what_a_worker_holds_for_others(bench: Bench) -> None:
    assert bench.session.tell() == []
    bench.dispatch(1, broker=0)
    bench.dispatch(2, broker=0)
    bench.dispatch(3, broker=1)
    (running, _) = bench.session.next(bench.now)
    assert heartbeats(bench.session.tell(running)) == [(0, 1), (1, 2)]
    assert bench.session.tell(running) == [], "they know"
    assert heartbeats(bench.session.tell()) == [(1, 1)]
    assert heartbeats(bench.tick(1)) == [(0, 1), (1, 1)]
    bench.session.connected(1)
    assert heartbeats(bench.session.tell()) == [(1, 1)], "a new connection knows nothing"


def test_a_broker_that_said_farewell_is_told_nothing(bench: Bench) -> None:
    bench.dispatch(1, broker=0)
    bench.session.drain(bench.now)
    bench.got(1, wire.Farewell())
    assert heartbeats(bench.session.tell()) == []
