"""Requests that are served as they come, and those that are left to the session, without sockets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from workers.policy import WorkerPolicy
from workers.serving import Echo, Served
from workers.session import WorkerSession
from workers.shortpath import SHORT, ShortPath
from zmq_offload.artifacts.repository import Batching, ModelVersion
from zmq_offload.errors import Status
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import TensorSpec

SESSION = bytes(range(16))
ROW = TensorSpec("x", "FP32", (2,))
KIND = "m", 1
X = np.array([1, 2], np.float32)


class Recorder:
    """Notes what is sent, as (broker, message, tensors)."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any, dict[str, Any]]] = []
        self.lent: list[Hashable] = []
        self.flushes = 0

    def lend(self, kind: Hashable) -> None:
        self.lent.append(kind)

    def take_back(self, kind: Hashable, seconds: float) -> None:
        assert self.lent.pop() == kind

    def send(self, broker: int, message: Any, payload: Sequence[Any] = ()) -> None:
        self.sent.append((broker, message, decode_tensors(payload) if payload else {}))

    def answer(self, broker: int, frames: list[Any]) -> None:
        assert not self.lent, "the connections are another thread's during a run"
        self.send(broker, wire.decode(frames[0], wire.FROM_WORKER), frames[1:])

    def flush(self) -> None:
        self.flushes += 1


class Bench:
    """The short path over one model, which doubles, and takes `lasts` seconds of a clock that only it moves."""

    model = ModelVersion("m", 1, (ROW,), (ROW,), None, "", "")

    def __init__(self, batching: Batching | None = None) -> None:
        self.now, self.lasts = 100.0, 0.0
        self.deadlines: list[float] = []
        self.links = Recorder()
        self.session = WorkerSession.open("w", 4, 2, WorkerPolicy(), self.now)
        self.path = ShortPath(self.session, self.links, None, lambda: self.now)  # type: ignore[arg-type]
        self.served = {KIND: Served(self, batching), ("echo", 1): Served(Echo(), None)}
        for served in self.served.values():
            served.ran(0.0)

    def run(self, requests: Sequence[Sequence[Any]]) -> list[list[Any]]:
        self.deadlines.append(self.path.deadline)
        self.now += self.lasts
        if requests[0][0][0] < 0:
            raise ArithmeticError("negative")
        return [[inputs[0] * 2] for inputs in requests]

    def serve(self, *messages: Any, broker: int = 1) -> int:
        return self.path.serve(broker, messages, self.served)


def request(number: int, x: Any = X, attempt: int = 1, model: str = "m", budget_us: int = 1_000_000) -> list[Any]:
    return [wire.encode(wire.Dispatch(SESSION, number, attempt, model, 1, budget_us)), *encode_tensors({"x": x})]


def test_requests_are_answered_in_order_as_they_come() -> None:
    bench = Bench()
    bench.lasts = 0.0001
    assert bench.serve(request(1), request(2, X + 1)) == 2
    (_, first, outputs), (broker, second, _) = bench.links.sent
    assert (broker, first) == (1, wire.Done(SESSION, 1, 1, 100, 1, 1))
    assert second.id == 2
    np.testing.assert_array_equal(outputs["x"], X * 2)
    assert bench.session.connections[1].heard_at == 100.0
    assert bench.deadlines == [101.0, 101.0]
    assert bench.path.deadline == math.inf


def test_the_echo_model_returns_the_frames_that_came() -> None:
    bench = Bench()
    large = np.arange(5000, dtype=np.float32)
    assert bench.serve(request(1, large, model="echo"), request(2, large, model="echo")) == 2
    for _, _, outputs in bench.links.sent:
        np.testing.assert_array_equal(outputs["x"], large)


def test_faulty_requests_fail_alone() -> None:
    bench = Bench()
    wrong = request(2, np.zeros(3, np.float32))
    assert bench.serve(request(1, -X), wrong, wrong, request(3)) == 4
    statuses = [getattr(message, "code", "") for _, message, _ in bench.links.sent]
    assert statuses == [Status.INTERNAL.value, *[Status.INVALID_ARGUMENT.value] * 2, ""]
    assert "has shape [3]" in bench.links.sent[1][1].text


def test_outputs_over_the_limit_of_a_broker_are_an_error() -> None:
    bench = Bench()
    bench.session.connections[1].takes = 8
    assert bench.serve(request(1)) == 1
    assert "the outputs have a frame" in bench.links.sent[0][1].text


@pytest.mark.parametrize(
    "other",
    [
        [wire.encode(wire.Probe())],
        [b"nonsense"],
        [wire.encode(wire.Dispatch(SESSION, 2, 1, "m", 1, 1))[:-1]],
        request(2, attempt=2),
        request(2, model="n"),
        request(2, budget_us=0),
    ],
    ids=["a message", "nonsense", "cut", "a second attempt", "another model", "no time"],
)
def test_other_messages_and_what_follows_are_left(other: list[Any]) -> None:
    bench = Bench()
    assert bench.serve(request(1), other, request(3)) == 1
    assert [message.id for _, message, _ in bench.links.sent] == [1]


def test_nothing_overtakes_attempts_that_are_held() -> None:
    bench = Bench()
    message = wire.decode(request(1)[0], wire.TO_WORKER)
    bench.session.given(0, message, bench.served[KIND].job(request(1)[1:]), bench.now)  # type: ignore[arg-type]
    assert bench.serve(request(2)) == 0


def test_a_worker_that_drains_takes_the_long_way() -> None:
    bench = Bench()
    bench.session.drain(bench.now)
    assert bench.serve(request(1)) == 0


def test_a_model_whose_requests_run_together_takes_the_long_way() -> None:
    assert Bench(Batching(4)).serve(request(1)) == 0


def test_after_a_long_run_the_session_decides() -> None:
    bench = Bench()
    bench.lasts = 0.001
    assert bench.serve(request(1), request(2)) == 1
    bench.served[KIND].lasted = math.inf  # nothing has run yet
    assert bench.serve(request(3)) == 0


def test_answers_do_not_wait_for_long_and_neither_does_the_loop() -> None:
    bench = Bench()
    bench.lasts = 0.9 * SHORT
    served = bench.serve(*(request(number) for number in range(1000)))
    assert 250 < served < 300
    assert served / 3 < bench.links.flushes < served


def test_what_requests_have_in_common_is_forgotten_when_there_is_much_of_it() -> None:
    served = Served(Echo(), None)
    for rows in range(600):
        job = served.job(encode_tensors({"x": np.zeros(rows % 300, np.int8)}))  # type: ignore[arg-type]
        assert len(job.tensors["x"]) == rows % 300
