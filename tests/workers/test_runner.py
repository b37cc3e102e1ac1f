"""What is run, in which order, and what is answered, without sockets. The executor begins a run before the last ended,
as one with a GPU does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.workers.test_shortpath import KIND, ROW, SESSION, Recorder, X
from workers.policy import WorkerPolicy
from workers.runner import Runner
from workers.serving import DeviceLost, Job, Served
from workers.session import Attempt, WorkerSession
from workers.shortpath import ShortPath
from zmq_offload.artifacts.repository import ModelVersion
from zmq_offload.errors import ResourceExhausted
from zmq_offload.protocol import messages as wire


class Links(Recorder):
    settled = 0

    def settle(self) -> None:
        self.settled += 1


class Bench:
    """A runner over one model, which doubles. Each run computes for a second of a clock that only it moves. Requests
    arrive when the runner asks for those that follow."""

    model = ModelVersion("m", 1, (ROW,), (ROW,), None, "", "")

    def __init__(self, brokers: int = 1) -> None:
        self.now = 100.0
        self.links = Links()
        self.session = WorkerSession.open("w", 4, brokers, WorkerPolicy(), self.now)
        self.path = ShortPath(self.session, self.links, None, lambda: self.now)  # type: ignore[arg-type]
        self.runner = Runner(self.session, self.links, self.path, lambda: self.now)  # type: ignore[arg-type]
        self.runner.serve({KIND: Served(self, None)})
        self.story: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.arrives: list[list[Attempt]] = []

    def attempt(self, number: int, attempt: int = 1, executor: Any = None, broker: int = 0) -> Attempt:
        message = wire.Dispatch(SESSION, number, attempt, "m", 1, 10_000_000)
        return Attempt(broker, message, self.now, self.now + 10, Job(executor or self, {"x": X * number}))

    def note(self, what: str) -> None:
        self.story.append(what)
        if what in self.faults:
            raise self.faults[what]

    def run(self, requests: Sequence[Sequence[Any]]) -> list[list[Any]]:
        self.note(f"run {requests[0][0][0]:g}")
        self.now += 1
        return [[2 * x for x in request] for request in requests]

    def begin(self, requests: Sequence[Sequence[Any]]) -> Callable[[], list[list[Any]]]:
        number = f"{requests[0][0][0]:g}"
        assert self.links.lent, "the connections are another thread's during a run"
        self.note(f"begin {number}")

        def end() -> list[list[Any]]:
            self.note(f"end {number}")
            self.now += 1
            return [[2 * x for x in request] for request in requests]

        return end

    def following(self) -> list[Attempt]:
        return self.arrives.pop(0) if self.arrives else []

    def run_all(self, *attempts: list[Attempt], until: float = 1e9) -> float:
        first, *self.arrives = attempts
        return self.runner.run_overlapped(first, self.following, until)

    def done(self) -> list[tuple[int, float]]:
        """The answers: number and seconds. They are right."""
        for _, message, tensors in self.links.sent:
            np.testing.assert_array_equal(tensors["x"], 2 * X * message.id)
        return [(message.id, message.compute_us / 1e6) for _, message, _ in self.links.sent]


def test_the_next_begins_before_the_last_ends() -> None:
    bench = Bench()
    assert bench.run_all(*([bench.attempt(number)] for number in (1, 2, 3))) == 103
    assert bench.story == ["begin 1", "begin 2", "end 1", "begin 3", "end 2", "end 3"]
    assert bench.done() == [(1, 1), (2, 1), (3, 1)], "together they take as long as the GPU is busy"
    assert bench.path.deadline == float("inf")


def test_after_a_while_nothing_more_begins() -> None:
    bench = Bench()
    bench.run_all(*([bench.attempt(number)] for number in (1, 2, 3, 4)), until=101)
    assert bench.story == ["begin 1", "begin 2", "end 1", "end 2"]


def test_one_that_cannot_begin_ahead_runs_in_its_turn() -> None:
    bench = Bench()

    class Plain:
        model = Bench.model

        def run(self, requests: Sequence[Sequence[Any]]) -> list[list[Any]]:
            return bench.run(requests)

    bench.run_all([bench.attempt(1)], [bench.attempt(2, executor=Plain())], [bench.attempt(3)])
    assert bench.story == ["begin 1", "end 1", "begin 3", "run 2", "end 3"]
    assert [number for number, _ in bench.done()] == [1, 2, 3]


@pytest.mark.parametrize("step", ["begin 2", "end 2"])
def test_an_error_is_the_answer_of_its_own_request(step: str) -> None:
    bench = Bench()
    bench.faults[step] = bench.faults["run 2"] = ResourceExhausted("too little memory")
    bench.run_all(*([bench.attempt(number)] for number in (1, 2, 3)))
    answers = [message for _, message, _ in bench.links.sent]
    assert [type(answer) for answer in answers] == [wire.Done, wire.Failed, wire.Done]
    assert (answers[1].code, answers[1].text) == ("RESOURCE_EXHAUSTED", "too little memory")


@pytest.mark.parametrize("step", ["begin 2", "end 2"])
def test_those_of_a_batch_that_fails_run_alone(step: str) -> None:
    bench = Bench()
    bench.faults[step] = ValueError("one is at fault")
    bench.faults["run 3"] = ResourceExhausted("it is this one")
    bench.run_all([bench.attempt(1)], [bench.attempt(2), bench.attempt(3)])
    answers = [(type(message), message.id) for _, message, _ in bench.links.sent]
    assert answers == [(wire.Done, 1), (wire.Done, 2), (wire.Failed, 3)]


@pytest.mark.parametrize(("step", "answered"), [("begin 1", []), ("begin 2", []), ("end 1", []), ("end 2", [1])])
def test_a_lost_device_ends_all_without_an_answer(step: str, answered: list[int]) -> None:
    bench = Bench()
    bench.faults[step] = DeviceLost("it is gone")
    with pytest.raises(DeviceLost):
        bench.run_all(*([bench.attempt(number)] for number in (1, 2, 3)))
    assert [message.id for _, message, _ in bench.links.sent] == answered
    assert not bench.links.lent
    bench.faults["run 4"] = DeviceLost("it is gone")
    with pytest.raises(DeviceLost):
        bench.runner.run([bench.attempt(4)])
    assert not bench.links.lent


def test_an_attempt_after_the_first_begins_alone_when_all_answers_have_left() -> None:
    bench = Bench()
    assert bench.runner.overlaps([bench.attempt(1)]) and not bench.runner.overlaps([bench.attempt(1, attempt=2)])
    bench.runner.run([bench.attempt(1, attempt=2)])
    assert (bench.story, bench.links.settled) == (["run 1"], 1)
    bench.runner.serve({})
    assert not bench.runner.overlaps([bench.attempt(1)]), "it is not served any more"
    bench.runner.run([bench.attempt(2)])
    assert [number for number, _ in bench.done()] == [1, 2], "those that were taken are answered"


def test_other_brokers_are_told_of_what_runs_and_what_is_copied_meanwhile() -> None:
    bench = Bench(brokers=2)
    bench.run_all([bench.attempt(1)], [bench.attempt(2)], [bench.attempt(3)])
    beats = [(broker, message.elsewhere) for broker, message, _ in bench.links.sent if type(message) is wire.Heartbeat]
    assert beats == [(1, 2), (1, 1)], "from the second run, when it is known how long they take"
