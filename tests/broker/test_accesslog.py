"""The broker's access log: served, failed and refused requests, with the worker that had them."""

from __future__ import annotations

import pytest

from broker.events import Disconnected, FromClient, FromWorker, Tick, ToWorker
from tests.broker.test_core import ALICE, Bench, dispatches, key_of
from zmq_offload.common.accesslog import AccessLog
from zmq_offload.protocol import messages as wire

TRACE = b"t" * 24 + b"\1"


class Logged(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.core.ledger.tracing.enabled = True
        self.core.ledger.access = self.access = AccessLog(0.0)

    def ask(self, number: int = 1, budget: float = 60.0) -> list[ToWorker]:
        message = wire.Request(ALICE, number, "m", 0, int(budget * 1e6), 0, trace=TRACE)
        return dispatches(self.handle(FromClient(b"a", message, [b"head"])))

    def logged(self) -> dict[str, object]:
        (line,) = self.access.take()
        return line.fields


@pytest.fixture
def bench() -> Logged:
    return Logged()


def test_a_served_request(bench: Logged) -> None:
    bench.ask()
    bench.now += 0.5
    (dispatch,) = dispatches(bench.announce())
    bench.now += 1.0
    bench.handle(FromWorker(dispatch.peer, wire.Done(*key_of(dispatch), 250_000, 1, 1), [b"out", b"put"]))
    assert bench.logged() == {
        "request": f"{ALICE.hex()[:8]}/1",
        "model": "m",
        "version": 1,
        "status": "OK",
        "total": 1.5,
        "queue": 0.5,
        "compute": 0.25,
        "worker": "W1",
        "attempts": 1,
        "bytes_in": 4,
        "bytes_out": 6,
        "trace": TRACE[:16].hex(),
    }


def test_a_failed_request_names_the_worker_that_was_lost(bench: Logged) -> None:
    bench.announce()
    (dispatch,) = bench.ask(budget=2.0)
    bench.handle(Disconnected(dispatch.peer))
    bench.now += 3.0
    bench.handle(Tick())
    found = bench.logged()
    assert found["status"] == "DEADLINE_EXCEEDED" and found["worker"] == "W1" and found["attempts"] == 1
    assert "compute" not in found and "bytes_out" not in found


def test_a_refused_request(bench: Logged) -> None:
    bench.announce()
    bench.core.ledger.stopping = True
    bench.ask()
    found = bench.logged()
    assert found["model"] == "m" and found["status"] == "UNAVAILABLE" and found["total"] == 0
