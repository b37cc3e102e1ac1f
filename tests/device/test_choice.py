"""Choosing between workers and this machine: a simulated clock and latencies that the test dictates."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from zmq_offload.device.choice import BETTER, EVERY, HOLD, KNOWN, LEAST, MISSES, SHARE, UNKNOWN, Choice

LOST = float("inf")

Latency = Callable[[float], float]


class Device:
    """Calls one after the other; what a call takes is a function of the time at which it begins."""

    def __init__(self, worker: Latency, here: Latency, pause: float = 0.0) -> None:
        self.choice = Choice()
        self.now = 0.0
        self.worker, self.here, self.pause = worker, here, pause
        self.calls: list[tuple[float, str, float]] = []
        """When each began, how it ended, what it took."""
        self.changes: list[float] = []

    def call(self) -> None:
        began = self.now
        decision = self.choice.decide(began)
        how = "local"
        if decision.remote:
            needed = self.worker(began)
            if needed <= decision.patience:
                self.now += needed
                how = "offloaded"
                changed = self.choice.took(decision, needed, self.now)
            else:
                self.now += decision.patience
                changed = self.choice.missed(decision, decision.patience, self.now)
                needed = self.here(began)
                self.now += needed
                self.choice.fell_back(needed)
                how = "fell back"
        else:
            self.now += self.here(began)
            changed = self.choice.took(decision, self.here(began), self.now)
        if changed:
            self.changes.append(self.now)
        self.calls.append((began, how, self.now - began))
        self.now += self.pause

    def until(self, end: float) -> Device:
        while self.now < end:
            self.call()
        return self

    def between(self, start: float, end: float) -> list[str]:
        return [how for began, how, _ in self.calls if start <= began < end]


def always(seconds: float) -> Latency:
    return lambda _: seconds


def test_a_faster_worker_is_used_and_this_machine_probed_seldom() -> None:
    device = Device(always(0.02), always(0.2)).until(60)
    assert device.changes == []
    calls = device.between(5, 60)
    assert set(calls) == {"offloaded", "local"}
    cost = calls.count("local") * 0.18
    assert 0 < cost <= 1.5 * SHARE * 55


def test_a_slower_worker_is_left_after_a_while_and_not_at_once() -> None:
    device = Device(always(0.1), always(0.02)).until(30)
    assert len(device.changes) == 1
    assert HOLD <= device.changes[0] < 4 * HOLD
    late = device.between(10, 30)
    assert late.count("local") > 0.9 * len(late)


def test_what_is_not_clearly_better_changes_nothing() -> None:
    assert Device(always(0.1), always(0.1 * BETTER + 0.001)).until(60).changes == []


def test_what_is_better_for_a_moment_only_changes_nothing() -> None:
    slow_for_a_moment: Latency = lambda t: 0.09 if 20 <= t < 20 + HOLD / 2 else 0.05  # noqa: E731
    assert Device(slow_for_a_moment, always(0.06)).until(60).changes == []


def test_one_call_that_a_worker_fails_changes_nothing_nor_do_several_that_one_moment_hits() -> None:
    hiccup: Latency = lambda t: LOST if 20 <= t < 20.03 else 0.02  # noqa: E731
    device = Device(hiccup, always(0.1)).until(60)
    assert device.changes == [] and device.between(0, 60).count("fell back") == 1
    choice = Device(always(0.02), always(0.1)).until(5).choice
    in_flight = [choice.decide(5.0)._replace(remote=True, probe=False) for _ in range(4)]
    assert not any(choice.missed(one, 0.1, 5.1) for one in in_flight)


def test_a_link_that_gets_slow_is_left_and_taken_again_when_it_is_fast() -> None:
    slow: Latency = lambda t: 0.5 if 20 <= t < 60 else 0.02  # noqa: E731
    device = Device(slow, always(0.1)).until(120)
    assert len(device.changes) == 2
    assert 20 < device.changes[0] < 21  # it is so slow that it counts as lost
    assert 60 + HOLD <= device.changes[1] < 60 + 12 * HOLD


def test_a_lost_link_costs_a_few_calls_their_patience_and_no_more() -> None:
    lost: Latency = lambda t: LOST if 20 <= t < 40 else 0.02  # noqa: E731
    device = Device(lost, always(0.1)).until(60)
    during = device.between(20, 40)
    assert during[:MISSES] == ["fell back"] * MISSES
    # From then on a worker is only tried now and then, and each try takes no longer than computing it here.
    assert during[MISSES] == "local"
    assert during.count("fell back") <= MISSES + 20 / EVERY
    assert max(took for began, _, took in device.calls if 21 <= began < 40) <= 0.2 + 1e-9
    assert 20 < device.changes[0] < 21 and 40 + HOLD <= device.changes[1] < 40 + 6 * HOLD
    assert set(device.between(50, 60)) <= {"offloaded", "local"}


def test_errors_that_come_at_once_do_not_make_it_try_at_once_again() -> None:
    choice, now, tried = Choice(), 0.0, 0
    for _ in range(1000):
        decision = choice.decide(now)
        now += 0.01
        if decision.remote:
            tried += 1
            choice.missed(decision, 0.0, now)
            choice.fell_back(0.01)
        else:
            choice.took(decision, 0.01, now)
    assert tried <= MISSES + 10 / EVERY + 1


def test_before_anything_is_known_a_worker_gets_the_time_of_a_first_packet() -> None:
    choice = Choice()
    probe, first = choice.decide(0.0), choice.decide(0.0)
    assert not probe.remote and probe.probe
    assert first.remote and first.patience == UNKNOWN
    for at in range(10):
        choice.took(choice.decide(at / 1000)._replace(remote=True, probe=False), 0.001, at / 1000)
    assert choice.decide(0.01).patience == LEAST


def test_one_call_at_a_time_probes() -> None:
    choice = Choice()
    assert [choice.decide(0.0).probe for _ in range(5)] == [True, False, False, False, False]
    choice.abandoned(choice.decide(0.0))
    assert not choice.decide(0.0).probe, "the abandoned call did not probe"
    choice.abandoned(choice.decide(0.0)._replace(probe=True))
    assert choice.decide(0.0).probe


def test_both_ways_are_known_soon() -> None:
    device = Device(always(0.05), always(0.05))
    for _ in range(2 * KNOWN + 2):
        device.call()
    assert device.between(0, 9).count("local") >= KNOWN


@settings(max_examples=60, deadline=None)
@given(
    worker=st.floats(0.002, 0.5),
    here=st.floats(0.002, 0.5),
    noise=st.lists(st.floats(0.9, 1.1), min_size=7, max_size=7),
    outage=st.tuples(st.floats(5, 20), st.floats(0.1, 20)),
)
def test_whatever_happens_every_call_is_answered_and_the_better_way_wins(
    worker: float, here: float, noise: list[float], outage: tuple[float, float]
) -> None:
    start, length = outage

    def wobble(t: float) -> float:
        return noise[int(t * 1000) % 7]

    device = Device(
        lambda t: LOST if start <= t < start + length else worker * wobble(t), lambda t: here * wobble(t + 1), 0.001
    ).until(110)
    assert len(device.changes) <= 6  # it does not flap
    # Nothing takes longer than waiting in vain and then computing it.
    assert max(took for _, _, took in device.calls) <= UNKNOWN + max(worker * 4, here) + here * 1.2
    late = device.between(90, 110)
    if worker < 0.7 * here:
        assert late.count("offloaded") > 0.5 * len(late)
    elif here < 0.7 * worker:
        assert late.count("local") > 0.5 * len(late)
