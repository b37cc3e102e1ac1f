"""Which requests run together, and when: the worker's session, with the time passed in."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.policy import WorkerPolicy
from workers.session import Attempt, WorkerSession
from zmq_offload.artifacts.repository import Batching
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.tensors import TensorSpec

MODEL = ("m", 1)
ALICE = b"a" * 16


class Bench:
    def __init__(self, max_batch: int = 4, delay_us: int = 1000) -> None:
        self.now = 10.0
        self.session = WorkerSession.open("w", 2, 1, WorkerPolicy(), self.now)
        self.session.announce([], {MODEL: Batching(max_batch, delay_us)})
        self.count = 0

    def give(self, *, group: Hashable = "g", rows: int = 1, budget: float = 60, attempt: int = 1) -> int:
        self.count += 1
        message = wire.Dispatch(ALICE, self.count, attempt, *MODEL, int(budget * 1e6))
        self.session.given(0, message, None, self.now, group=group, rows=rows)
        return self.count

    def next(self, *, ahead: bool = False) -> list[int]:
        batch, _ = self.session.next(self.now, ahead=ahead)
        return [attempt.message.id for attempt in batch]


def test_a_request_alone_runs_at_once() -> None:
    bench = Bench()
    for _ in range(3):
        number = bench.give()
        assert bench.session.ready_at() == bench.now
        assert bench.next() == [number]
        assert bench.next() == []


def test_requests_that_wait_together_run_together() -> None:
    bench = Bench(delay_us=0)
    numbers = [bench.give() for _ in range(3)]
    assert bench.next() == numbers


def test_a_batch_waits_for_more_until_its_delay_is_over() -> None:
    bench = Bench()
    first, second = bench.give(), bench.give()
    assert bench.next() == []
    assert bench.session.ready_at() == pytest.approx(bench.now + 0.001)
    bench.now += 0.0011
    third = bench.give()
    assert bench.next() == [first, second, third]


def test_a_full_batch_does_not_wait_and_the_rest_stays() -> None:
    bench = Bench(max_batch=4)
    numbers = [bench.give(rows=rows) for rows in (2, 1, 2, 1)]
    assert bench.next() == numbers[:2], "the third would make five rows"
    bench.now += 1
    assert bench.next() == numbers[2:]


def test_after_a_batch_of_several_even_a_lone_request_waits_once() -> None:
    bench = Bench()
    bench.give(), bench.give()
    bench.now += 1
    assert len(bench.next()) == 2
    number = bench.give()
    assert bench.next() == []
    bench.now += 0.0011
    assert bench.next() == [number]
    number = bench.give()
    assert bench.next() == [number]


def test_while_others_run_only_those_are_taken_that_gain_nothing_by_waiting() -> None:
    bench = Bench(max_batch=2, delay_us=0)
    bench.give()
    assert bench.next(ahead=True) == [], "another may join it until the others end"
    alone = bench.give(group=None)
    assert bench.next(ahead=True) == [alone]
    bench.give()
    assert bench.next(ahead=True) == [1, 3]
    assert bench.next(ahead=True) == bench.next() == []


def test_an_attempt_after_the_first_is_not_taken_while_others_run() -> None:
    """Nor is it overtaken for ever: what comes after it waits, too."""
    bench = Bench()
    repeated, later = bench.give(group=None, attempt=2), bench.give(group=None)
    assert bench.next(ahead=True) == []
    assert (bench.next(), bench.next(ahead=True)) == ([repeated], [later])
    gathering, repeated = bench.give(), bench.give(group=None, attempt=2)
    assert bench.next(ahead=True) == []
    assert (bench.next(), bench.next()) == ([gathering], [repeated])


def test_shapes_that_cannot_be_combined_never_wait_for_each_other() -> None:
    bench = Bench()
    bench.give(group="g"), bench.give(group="g")
    other = bench.give(group="h")
    alone = bench.give(group=None)
    assert bench.next() == [other]
    assert bench.next() == [alone]
    assert bench.next() == []


def test_an_attempt_that_expires_while_it_waits_is_not_run() -> None:
    bench = Bench(delay_us=10_000_000)
    first, second = bench.give(budget=1), bench.give()
    bench.now += 2
    batch, actions = bench.session.next(bench.now)
    assert [a.message[:5] for a in actions] == [(ALICE, first, 1, "DEADLINE_EXCEEDED", actions[0].message.text)]
    assert [attempt.message.id for attempt in batch] == [second], "it is alone now"


def test_an_attempt_that_is_revoked_while_it_waits_is_not_run() -> None:
    bench = Bench(delay_us=0)
    first, second = bench.give(), bench.give()
    bench.session.received(0, wire.Revoke(ALICE, first, 1), bench.now)
    batch, actions = bench.session.next(bench.now)
    assert [attempt.message.id for attempt in batch] == [second]
    assert actions[0].message.code == "CANCELLED"


def test_a_draining_worker_does_not_wait_for_more() -> None:
    bench = Bench()
    numbers = [bench.give(), bench.give()]
    bench.session.drain(bench.now)
    assert bench.next() == numbers


def test_there_are_slots_for_the_batch_that_runs_and_the_one_that_gathers() -> None:
    bench = Bench(max_batch=16)
    (announcement,) = bench.session.announce([], {MODEL: Batching(16), ("n", 1): Batching(3)})
    assert announcement.message.slots == 32
    (announcement,) = bench.session.announce([])
    assert announcement.message.slots == 2
    bench.session.device = "cuda:0"  # where a third is copied
    (announcement,) = bench.session.announce([], {MODEL: Batching(16)})
    assert announcement.message.slots == 48


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("give"), st.sampled_from(["g", "h", None]), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.none(), st.integers(0, 1500)),
        st.tuples(st.just("next"), st.none(), st.just(0)),
    ),
    max_size=80,
)


@given(STEPS)
def test_every_attempt_runs_once_in_its_groups_order_and_never_too_many_rows(steps: list[tuple]) -> None:
    bench = Bench(max_batch=4)
    given_rows: dict[int, tuple[Hashable, int]] = {}
    ran: list[int] = []

    def run() -> None:
        batch: list[Attempt]
        batch, actions = bench.session.next(bench.now)
        assert not actions
        assert len({a.group for a in batch}) <= 1
        assert sum(a.rows for a in batch) <= 4
        assert len(batch) <= 1 or batch[0].group is not None
        ran.extend(a.message.id for a in batch)

    for what, group, value in steps:
        if what == "give":
            given_rows[bench.give(group=group, rows=value)] = group, value
        elif what == "wait":
            bench.now += value / 1e6
        else:
            run()
        ready_at = bench.session.ready_at()
        assert ready_at is None or ready_at <= bench.now + 0.001
    bench.now += 1
    while bench.session.held:
        run()
    assert sorted(ran) == sorted(given_rows)
    for wanted in ("g", "h"):
        own = [number for number in ran if given_rows[number][0] == wanted]
        assert own == sorted(own)


@pytest.mark.parametrize(("max_batch", "delay"), [(0, 0), (-1, 0), (1.5, 0), (True, 0), (4, -1), (4, 0.5)])
def test_impossible_batching_is_refused(max_batch: object, delay: object) -> None:
    with pytest.raises(InvalidArgument):
        Batching(max_batch, delay)  # type: ignore[arg-type]


def test_a_model_without_a_symbolic_batch_cannot_batch() -> None:
    with pytest.raises(InvalidArgument, match=r"x FP32\[1,3\] has no symbolic batch dimension"):
        Batching(4).check([TensorSpec("y", "FP32", (-1,)), TensorSpec("x", "FP32", (1, 3))])
