"""Keys in the broker's core: which requests they allow, and what a revocation ends. No sockets."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission import QueueLimits
from broker.core import Core
from broker.events import Action, Authorized, FromClient, FromWorker, ToClient, ToWorker, Undelivered
from broker.invariants import validate
from broker.liveness import LivenessPolicy
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body, encode_body

SESSION, OTHER = b"s" * 16, b"o" * 16
CLIENTS = {"alice": Grant("alice"), "bob": Grant("bob", frozenset({"n"}))}
WORKERS = {"worker": Grant("worker")}


class Bench:
    def __init__(self) -> None:
        self.core = Core(LivenessPolicy(), 0.0)
        self.handle(Authorized(CLIENTS, WORKERS))

    def handle(self, event: Any) -> list[Action]:
        actions = self.core.handle(event, 10.0)
        validate(self.core)
        return actions

    def announce(self, user: str = "worker", peer: bytes = b"W") -> list[Action]:
        body = [{"name": name, "version": 1, "inputs": [], "outputs": []} for name in ("m", "n")]
        return self.handle(FromWorker(peer, wire.Announce("W", 1), [encode_body(body)], user))

    def client(self, user: str, message: Any) -> list[Action]:
        return self.handle(FromClient(user.encode(), message, [], user))

    def request(self, user: str, number: int = 1, model: str = "m", session: bytes = SESSION) -> list[Action]:
        return self.client(user, wire.Request(session, number, model, 0, 10**7, 0))


def codes(actions: list[Action]) -> list[tuple[bytes, str]]:
    return [(a.peer, a.message.code) for a in actions if isinstance(a.message, wire.Error)]


def dispatches(actions: list[Action]) -> list[Action]:
    return [a for a in actions if isinstance(a.message, wire.Dispatch)]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.announce()
    return bench


def test_who_is_authorized_is_served(bench: Bench) -> None:
    assert dispatches(bench.request("alice"))


def test_the_log_names_a_key_as_its_list_does(bench: Bench) -> None:
    bench.handle(Authorized({"k" * 40: Grant("gate camera", frozenset({"n"}))}, {"w" * 40: Grant("shed", frozenset())}))
    bench.core.ledger.notes.take()
    bench.request("k" * 40, model="m")
    bench.announce("w" * 40, b"V")
    client, worker = [text for _, text in bench.core.ledger.notes.take()][:2]
    assert client == f"key {'k' * 40} (gate camera) of a client is refused: this key is not for model 'm'"
    assert worker.startswith(f"key {'w' * 40} (shed) of worker W: this key is not for 'm', 'n'")


def test_a_key_for_some_models_is_denied_the_others_and_does_not_see_them(bench: Bench) -> None:
    assert codes(bench.request("bob", model="m")) == [(b"bob", "PERMISSION_DENIED")]
    assert dispatches(bench.request("bob", model="n"))
    (answer,) = bench.client("bob", wire.Query(SESSION, 9, "models"))
    assert isinstance(answer, ToClient)
    assert [model["name"] for model in decode_body(answer.payload, "")] == ["n"]


@pytest.mark.parametrize(
    "message",
    [
        wire.Request(OTHER, 1, "m", 0, 10**7, 0),
        wire.Query(OTHER, 1, "models"),
        wire.Cancel(OTHER, 1),
        wire.Ping(OTHER, []),
    ],
)
def test_what_a_revoked_key_still_sends_is_refused(bench: Bench, message: Any) -> None:
    bench.handle(Authorized({}, WORKERS))
    assert codes(bench.client("alice", message)) == [(b"alice", "UNAUTHENTICATED")]


def test_what_a_revoked_client_waits_for_ends(bench: Bench) -> None:
    bench.request("alice", 1)
    bench.request("alice", 2)
    actions = bench.handle(Authorized({"bob": CLIENTS["bob"]}, WORKERS))
    assert codes(actions) == [(b"alice", "UNAUTHENTICATED")] * 2
    assert [type(a.message) for a in actions if isinstance(a, ToWorker)] == [wire.Revoke]


def test_what_a_client_may_not_ask_for_any_more_ends(bench: Bench) -> None:
    bench.request("alice", 1, "m")
    bench.request("alice", 2, "n")
    actions = bench.handle(Authorized({"alice": Grant("alice", frozenset({"n"}))}, WORKERS))
    assert codes(actions) == [(b"alice", "PERMISSION_DENIED")]


def test_a_revoked_worker_is_lost_and_its_requests_run_elsewhere(bench: Bench) -> None:
    (dispatch,) = dispatches(bench.request("alice"))
    bench.handle(Authorized(CLIENTS, {"worker": Grant("worker"), "second": Grant("second")}))
    bench.announce("second", b"W2")
    (again,) = dispatches(bench.handle(Authorized(CLIENTS, {"second": Grant("second")})))
    assert (dispatch.peer, again.peer) == (b"W", b"W2")
    late = bench.handle(FromWorker(b"W", wire.Done(SESSION, 1, 1, 0), [], "worker"))
    assert codes(late) == [(b"W", "UNAUTHENTICATED")]
    assert [type(a.message) for a in bench.announce("worker")] == [wire.Error]


def test_a_session_belongs_to_the_key_that_opened_it(bench: Bench) -> None:
    """A peer with the session's token and another key can neither read, nor cancel, nor redirect its requests."""
    bench.handle(Authorized({**CLIENTS, "thief": Grant("thief")}, WORKERS))
    bench.request("alice")
    assert codes(bench.request("thief")) == [(b"thief", "PERMISSION_DENIED")]
    assert bench.client("thief", wire.Cancel(SESSION, 1)) == []
    assert bench.client("thief", wire.Ping(SESSION, [1])) == [ToClient(b"thief", wire.Pong(SESSION, [1]))]
    (reply,) = bench.handle(FromWorker(b"W", wire.Done(SESSION, 1, 1, 0), [], "worker"))
    assert (reply.peer, type(reply.message)) == (b"alice", wire.Result)


def test_all_sessions_of_a_key_have_one_share() -> None:
    core = Core(LivenessPolicy(worker_grace=100), 0.0, queue_limits=QueueLimits(max_queued_per_model=4))
    core.handle(Authorized(CLIENTS, WORKERS), 0.0)
    for number in range(4):
        core.handle(FromClient(b"a", wire.Request(bytes([number]) * 16, 1, "n", 0, 10**8, 0), [], "alice"), 1.0)
    actions = core.handle(FromClient(b"b", wire.Request(OTHER, 1, "n", 0, 10**8, 0), [], "bob"), 1.0)
    assert codes(actions) == [(b"a", "RESOURCE_EXHAUSTED")]
    assert wire.Key(OTHER, 1) in core.ledger.requests


def test_a_worker_serves_only_what_its_key_is_for(bench: Bench) -> None:
    bench.handle(Authorized(CLIENTS, {"worker": Grant("worker", frozenset({"n"}))}))
    assert bench.core.ledger.workers == {}, "it served more models before"
    assert codes(bench.announce()) == [(b"W", "PERMISSION_DENIED")]
    assert bench.core.ledger.workers[b"W"].models.keys() == {("n", 1)}
    assert dispatches(bench.request("alice", 1, "n"))
    assert not dispatches(bench.request("alice", 2, "m"))


def test_a_key_for_some_models_hears_of_no_others(bench: Bench) -> None:
    (answer,) = bench.client("bob", wire.Query(SESSION, 1, "status"))
    status = decode_body(answer.payload, "")
    assert [model["name"] for model in status["models"]] == ["n"]
    assert status["workers"][0]["models"] == ["n:1"]
    bench.handle(Authorized({**CLIENTS, "bob": Grant("bob", frozenset({"n", "x"}))}, WORKERS))
    (error,) = bench.request("bob", 2, "x")
    assert "served are: n (version 1)" in error.message.text and "m (" not in error.message.text


def test_what_became_of_a_request_is_told_to_the_key_that_asked(bench: Bench) -> None:
    bench.handle(Authorized({**CLIENTS, "thief": Grant("thief")}, WORKERS))
    bench.request("alice")
    for peer in (b"W", b"W2", b"W3"):
        bench.announce("worker", peer)
        (worker,) = [w for w in bench.core.ledger.workers.values() if w.held] or [None]
        if worker is not None:
            actions = bench.handle(Undelivered(ToWorker(worker.peer, wire.Probe()), False))
    bench.announce("worker", b"W4")
    while not (told := codes(actions)):
        (worker,) = [w for w in bench.core.ledger.workers.values() if w.held]
        actions = bench.handle(Undelivered(ToWorker(worker.peer, wire.Probe()), False))
    assert told == [(b"alice", "ABORTED")]
    assert codes(bench.request("alice")) == [(b"alice", "ABORTED")], "it is not run again"
    bench.announce("worker", b"W5")
    assert (b"thief", "ABORTED") not in codes(bench.request("thief"))
