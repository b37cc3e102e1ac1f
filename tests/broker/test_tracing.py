"""Traced requests in the broker's core: what is noted, and the spans that are made of it. Time is passed in."""

from __future__ import annotations

import itertools

import pytest

from broker.events import Disconnected, FromClient, FromWorker, ToWorker
from broker.tracing import spans_of
from tests.broker.test_core import ALICE, Bench, dispatches, key_of
from zmq_offload.protocol import messages as wire
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.spans import Span

TRACE = context.joined(b"t" * 16, b"c" * 8, context.SAMPLED)


class Traced(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.core.ledger.tracing.enabled = True

    def ask(self, trace: bytes = TRACE, *, budget: float = 60.0, number: int = 1) -> list[ToWorker]:
        message = wire.Request(ALICE, number, "m", 0, int(budget * 1e6), 0, trace=trace)
        return dispatches(self.handle(FromClient(b"a", message, [b"head"])))

    def answer(self, dispatch: ToWorker, compute: float, rows: int = 3) -> None:
        message = wire.Done(*key_of(dispatch), int(compute * 1e6), rows, 1)
        self.handle(FromWorker(dispatch.peer, message, [b"out"]))

    def spans(self) -> list[Span]:
        """Those of the one request that ended. Their ids are numbered."""
        (record,) = self.core.ledger.tracing.take()
        numbers = itertools.count(1)
        spans = list(spans_of(record, lambda: next(numbers).to_bytes(8, "big")))
        assert {(span.trace_id, span.kind, span.attributes["zmq_offload.model"]) for span in spans} == {
            (b"t" * 16, "internal", "m")
        }
        assert len({span.id for span in spans}) == len(spans)
        for span in spans:
            around = {other.id: other for other in spans if other is not span}.get(span.parent)
            assert span.start <= span.end
            assert span.parent == b"c" * 8 if around is None else around.start <= span.start <= span.end <= around.end
        return spans


@pytest.fixture
def bench() -> Traced:
    return Traced()


def times(spans: list[Span]) -> list[tuple[str, float, float]]:
    return [(span.name, round(span.start - 100, 3), round(span.end - 100, 3)) for span in spans]


def test_a_request_that_waits_and_is_served(bench: Traced) -> None:
    assert bench.ask() == []
    bench.now += 0.5
    (dispatch,) = dispatches(bench.announce())
    bench.now += 1.0
    bench.answer(dispatch, 0.6)
    spans = bench.spans()
    assert times(spans) == [("queue", 0.0, 0.5), ("attempt", 0.5, 1.5), ("compute", 0.7, 1.3)]
    queue, attempt, compute = spans
    assert compute.parent == attempt.id
    assert attempt.attributes == {
        "zmq_offload.model": "m",
        "zmq_offload.version": 1,
        "zmq_offload.worker": "W1",
        "zmq_offload.attempt": 1,
        "zmq_offload.outcome": "served",
        "zmq_offload.rows": 3,
    }
    assert compute.attributes == {"zmq_offload.model": "m", "zmq_offload.version": 1, "zmq_offload.worker": "W1"}
    assert queue.attributes == {"zmq_offload.model": "m"}
    assert not any(span.error for span in spans)


def test_a_lost_worker_gives_two_attempts(bench: Traced) -> None:
    bench.announce(b"W1")
    (first,) = bench.ask()
    bench.now += 1.0
    bench.announce(b"W2")
    (second,) = dispatches(bench.handle(Disconnected(first.peer)))
    bench.now += 0.5
    bench.answer(second, 99.0)  # a worker's clock may be wrong
    spans = bench.spans()
    assert times(spans) == [
        ("queue", 0.0, 0.0),
        ("attempt", 0.0, 1.0),
        ("queue", 1.0, 1.0),
        ("attempt", 1.0, 1.5),
        ("compute", 1.0, 1.5),
    ]
    lost, served = spans[1], spans[3]
    assert (lost.error, lost.attributes["error.type"]) == ("worker W1 was lost", "lost")
    assert [span.attributes["zmq_offload.outcome"] for span in (lost, served)] == ["lost", "served"]
    assert [span.attributes["zmq_offload.attempt"] for span in (lost, served)] == [1, 2]
    assert [span.attributes["zmq_offload.worker"] for span in (lost, served)] == ["W1", "W2"]
    assert "zmq_offload.rows" not in lost.attributes


def test_a_poison_request_ends_in_the_queue(bench: Traced) -> None:
    bench.announce(b"W0")
    bench.ask()
    for number in range(3):
        bench.announce(f"W{number + 1}".encode())
        bench.handle(Disconnected(f"W{number}".encode()))
    spans = bench.spans()
    assert [span.name for span in spans] == ["queue", "attempt"] * 3 + ["queue"]
    assert spans[-1].attributes["error.type"] == "ABORTED" and "lost its worker 3 times" in spans[-1].error


def test_a_failure_of_the_worker(bench: Traced) -> None:
    bench.announce()
    (dispatch,) = bench.ask()
    bench.now += 1
    bench.handle(FromWorker(dispatch.peer, wire.Failed(*key_of(dispatch), "INVALID_ARGUMENT", "no such input"), []))
    _, attempt = bench.spans()
    assert (attempt.error, attempt.attributes["error.type"]) == ("no such input", "INVALID_ARGUMENT")
    assert attempt.attributes["zmq_offload.outcome"] == "failed"


def test_a_version_that_was_removed_meanwhile(bench: Traced) -> None:
    bench.announce(b"W1", ("m", 1))
    (dispatch,) = bench.ask()
    bench.announce(b"W1", ("m", 2))
    bench.now += 1
    failed = wire.Failed(*key_of(dispatch), "NOT_FOUND", "gone")
    (second,) = dispatches(bench.handle(FromWorker(dispatch.peer, failed, [])))
    bench.answer(second, 0.0)
    _, returned, _, served, _ = bench.spans()
    assert (returned.error, returned.attributes["error.type"]) == (
        "worker W1 has this version no longer", "returned",
    )  # fmt: skip
    assert [span.attributes["zmq_offload.version"] for span in (returned, served)] == [1, 2]


def test_a_deadline_revokes_the_attempt(bench: Traced) -> None:
    bench.announce()
    bench.ask(budget=2.0)
    bench.after(2.0)
    _, attempt = bench.spans()
    assert attempt.attributes["zmq_offload.outcome"] == "revoked"
    assert attempt.attributes["error.type"] == "DEADLINE_EXCEEDED" and "at worker W1" in attempt.error


def test_a_request_that_expires_in_the_queue(bench: Traced) -> None:
    bench.announce()
    bench.ask(b"")
    bench.ask(budget=2.0, number=2)
    bench.after(2.0)
    (queue,) = bench.spans()
    assert (queue.name, queue.attributes["error.type"]) == ("queue", "DEADLINE_EXCEEDED")


def test_a_client_that_sends_its_request_again_has_one_trace(bench: Traced) -> None:
    bench.announce()
    (dispatch,) = bench.ask()
    assert bench.ask() == []
    bench.answer(dispatch, 0.0)
    assert [span.name for span in bench.spans()] == ["queue", "attempt", "compute"]


@pytest.mark.parametrize("trace", [b"", b"t" * 24, context.joined(b"t" * 16, b"c" * 8, 0)])
def test_other_requests_leave_nothing(bench: Traced, trace: bytes) -> None:
    bench.announce()
    (dispatch,) = bench.ask(trace)
    bench.answer(dispatch, 0.0)
    assert bench.core.ledger.tracing.take() == [] and not bench.core.ledger.tracing.steps


def test_a_broker_without_a_collector_notes_nothing(bench: Traced) -> None:
    bench.core.ledger.tracing.enabled = False
    bench.announce()
    (dispatch,) = bench.ask()
    assert not bench.core.ledger.tracing.steps
    bench.answer(dispatch, 0.0)
    assert bench.core.ledger.tracing.take() == []


def test_outputs_that_their_client_does_not_take(bench: Traced) -> None:
    bench.announce()
    message = wire.Request(ALICE, 1, "m", 0, 10**6, 0, max_frame_bytes=2, trace=TRACE)
    (dispatch,) = dispatches(bench.handle(FromClient(b"a", message, [b"head"])))
    bench.answer(dispatch, 0.0)
    _, attempt = bench.spans()
    assert attempt.attributes["zmq_offload.outcome"] == "failed"
    assert attempt.attributes["error.type"] == "INVALID_ARGUMENT"


def test_an_error_without_a_text_is_an_error_all_the_same(bench: Traced) -> None:
    bench.announce()
    (dispatch,) = bench.ask()
    bench.handle(FromWorker(dispatch.peer, wire.Failed(*key_of(dispatch), "INTERNAL", ""), []))
    assert bench.spans()[-1].error == "INTERNAL"


def test_the_share_begins_traces_of_requests_without_one(bench: Traced) -> None:
    bench.core.ledger.tracing.share = 1.0
    bench.announce()
    bench.now += 1
    (dispatch,) = bench.ask(b"")
    bench.now += 2
    bench.answer(dispatch, 0.0)
    (record,) = bench.core.ledger.tracing.take()
    first, *others = spans_of(record, lambda: b"own-span")
    assert [span.name for span in others] == ["queue", "attempt", "compute"]
    assert (first.name, first.kind, first.parent, first.end - first.start, first.error) == (
        "infer m",
        "server",
        b"",
        2.0,
        "",
    )
    assert first.attributes == {
        "zmq_offload.model": "m",
        "zmq_offload.version": 1,
        "rpc.system.name": "zmq_offload",
        "rpc.response.status_code": "OK",
    }
    assert {span.trace_id for span in others} == {first.trace_id}
    assert [span.parent for span in others] == [first.id, first.id, b"own-span"]


def test_a_request_that_fails_before_it_runs_has_a_first_span_without_a_version(bench: Traced) -> None:
    bench.core.ledger.tracing.share = 1.0
    bench.ask(b"", budget=1.0)
    bench.after(3.0)
    (record,) = bench.core.ledger.tracing.take()
    first, queue = spans_of(record, lambda: b"own-span")
    assert first.error == queue.error != "" and first.attributes["rpc.response.status_code"] == record.reply[2]
    assert "zmq_offload.version" not in first.attributes


def test_the_callers_decision_comes_before_the_share(bench: Traced) -> None:
    tracing = bench.core.ledger.tracing
    tracing.share = 1.0
    key = wire.Key(ALICE, 1)
    assert tracing.wanted(context.joined(b"t" * 16, b"c" * 8, 0), key) == b""
    assert tracing.wanted(TRACE[:-1] + b"\xff", key) == TRACE  # flags of others mean nothing here
    assert tracing.wanted(b"", key) == tracing.wanted(b"", key) != tracing.wanted(b"", wire.Key(ALICE, 2))


def test_a_share_of_the_requests_of_each_session_begins_traces(bench: Traced) -> None:
    tracing = bench.core.ledger.tracing
    tracing.share = 0.01
    assert tracing.share == 0.01
    for session in (ALICE, bytes(16), b"\xff" * 16):
        traces = [trace for number in range(10_000) if (trace := tracing.wanted(b"", wire.Key(session, number)))]
        assert 95 <= len(traces) <= 105
        assert all(context.chosen(context.trace_id(trace), 0.01) for trace in traces), "other programs choose the same"
        assert len({trace[:-1] for trace in traces}) == len(traces)
