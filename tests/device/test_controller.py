"""Which split a controller chooses, in time that the test makes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from zmq_offload.device.controller import HERE, Chosen, Controller, Objective, Sample, SplitFacts

SENT = (100_000, 20_000, 1_000)
DEVICE, SERVER = (0.001, 0.010, 0.030), (0.006, 0.004, 0.001)
"""Seconds of the splits: the deeper, the longer the device works."""


@dataclass
class World:
    """A device, a link and a server, and what an item takes there."""

    controller: Controller
    bandwidth: float = 12.5e6
    round_trip: float = 0.004
    queue: float = 0.0
    slower: float = 1.0
    here: float = 0.050
    cut: bool = False
    now: float = 0.0
    noise: random.Random = field(default_factory=lambda: random.Random(1))
    chosen: list[Chosen] = field(default_factory=list)

    def item(self) -> Chosen:
        chosen = self.controller.choose(self.now)
        self.chosen.append(chosen)
        if chosen.split == HERE:
            self._here(chosen)
            return chosen
        split, varied = chosen.split, self.noise.uniform(0.97, 1.03)
        device, compute = DEVICE[split] * self.slower * varied, SERVER[split] * varied
        total = self.round_trip + SENT[split] / self.bandwidth + self.queue + compute
        self.now += device
        if self.cut:
            self.now += chosen.patience
            self.controller.missed(chosen, chosen.patience, self.now)
            self._here(chosen)
            return chosen
        self.now += total
        self.controller.took(chosen, Sample(device, total, self.queue, compute, 0.0), self.now)
        return chosen

    def _here(self, chosen: Chosen) -> None:
        self.now += self.here
        self.controller.ran_here(chosen, self.here, self.now)

    def items(self, count: int) -> list[int]:
        return [self.item().split for _ in range(count)]


def world(objective: Objective = "latency", predicted: bool = True, local: Any = False, **conditions: Any) -> World:
    facts = [
        SplitFacts(f"s{n}", sent, 0, device if predicted else None, server if predicted else None)
        for n, (sent, device, server) in enumerate(zip(SENT, DEVICE, SERVER, strict=True))
    ]
    return World(Controller(facts, objective, local=local), **conditions)


def mostly(splits: list[int]) -> int:
    return Counter(splits).most_common(1)[0][0]


@pytest.mark.parametrize("predicted", [True, False])
@pytest.mark.parametrize(("bandwidth", "best"), [(100e6, 0), (2.5e6, 1), (0.25e6, 2)])
def test_the_split_that_takes_least_is_found(predicted: bool, bandwidth: float, best: int) -> None:
    subject = world(predicted=predicted, bandwidth=bandwidth)
    subject.items(30)
    assert mostly(subject.items(50)) == best
    assert subject.controller.explain(subject.now).split == f"s{best}"


def test_a_step_in_bandwidth_is_followed_and_a_steady_link_changes_nothing() -> None:
    subject = world(bandwidth=100e6)
    subject.items(400)
    splits = [chosen.split for chosen in subject.chosen[40:] if not chosen.explores]
    assert set(splits) == {0}
    subject.bandwidth = 0.5e6
    subject.items(15)
    assert mostly(subject.items(20)) == 2


def test_few_items_explore() -> None:
    subject = world(local=None)
    subject.items(3000)
    assert sum(chosen.explores for chosen in subject.chosen[50:]) < 0.04 * 3000


def test_a_queue_moves_work_to_the_device_and_a_slow_device_to_the_workers() -> None:
    subject = world(bandwidth=100e6, local=0.05)
    assert mostly(subject.items(60)) == 0
    subject.queue = 0.2
    subject.items(20)
    assert mostly(subject.items(30)) == HERE
    subject = world(bandwidth=0.5e6, slower=1.0)
    subject.items(30)
    subject.slower, subject.bandwidth = 30.0, 5e6
    subject.items(30)
    assert mostly(subject.items(30)) == 0


def test_objectives() -> None:
    subject = world("device-time", bandwidth=0.25e6)
    subject.items(30)
    assert mostly(subject.items(30)) == 0
    subject = world("throughput", bandwidth=2.5e6)
    subject.items(30)
    assert mostly(subject.items(30)) == 1
    assert world("throughput", predicted=False).controller.choose(0.0).explores


def test_lost_workers_are_left_tried_rarely_and_used_again() -> None:
    subject = world(bandwidth=100e6, local=None)
    subject.items(60)
    subject.cut = True
    began = subject.now
    subject.items(60)
    assert {chosen.split for chosen in subject.chosen[90:] if not chosen.explores} == {HERE}
    assert "workers are lost" in subject.controller.explain(subject.now).why
    assert subject.controller.explain(subject.now).split == ""
    missed = [chosen for chosen in subject.chosen[60:] if chosen.split != HERE]
    assert len(missed) <= 2 + (subject.now - began)
    subject.cut = False
    subject.now += 60
    subject.items(20)
    assert mostly(subject.items(20)) == 0


def test_workers_that_never_replied() -> None:
    subject = world(predicted=False, local=None, cut=True)
    assert mostly(subject.items(20)) == HERE
    only = world(cut=True)
    for _ in range(5):  # without a place of its own, the device goes on trying
        only.item()
    assert {chosen.split for chosen in only.chosen} != {HERE}


def test_one_event_that_fails_several_items_is_one_miss() -> None:
    subject = world(local=0.05)
    subject.items(10)
    several = [subject.controller.choose(subject.now) for _ in range(3)]
    for chosen in several:
        subject.controller.missed(chosen, 0.1, subject.now + 0.1)
    subject.now += 0.2
    assert subject.item().split != HERE


def test_what_is_abandoned_may_be_explored_again() -> None:
    controller = world(predicted=False).controller
    first = controller.choose(0.0)
    assert first.explores and not controller.choose(0.0).explores
    controller.abandoned(first)
    second = controller.choose(0.0)
    assert second.explores
    controller.abandoned(first._replace(explores=False))  # another item
    assert not controller.choose(0.0).explores


def test_a_split_alone_is_used_and_never_explored_for_long() -> None:
    controller = Controller([SplitFacts("only", 10, 10, None, None)])
    for number in range(9):
        chosen = controller.choose(float(number))
        assert chosen.split == 0
        controller.took(chosen, Sample(0.001, 0.002, 0.0, 0.001, 0.0), float(number))
    found = controller.explain(9.0)
    assert found.split == "only" and found.measured == pytest.approx(0.003) and found.error < 1
    assert found.predicted == pytest.approx(0.003, rel=0.1)


def test_patience_follows_what_replies_take() -> None:
    subject = world(local=0.05)
    assert subject.item().patience == 1.0
    subject.items(40)
    chosen = subject.item()
    assert 0.05 <= chosen.patience < 0.2
    subject.round_trip = 0.3
    subject.items(40)
    explored = [chosen for chosen in subject.chosen[41:] if chosen.split != HERE]
    assert explored[-1].patience > 0.3


def test_a_late_miss_of_an_event_that_was_counted_counts_no_more() -> None:
    controller = world(local=0.05).controller
    chosen = controller.choose(0.0)
    controller.missed(chosen, 0.1, 1.0)
    controller.missed(chosen, 0.5, 1.2)  # it began before the first had failed
    assert "workers are lost" not in controller.explain(1.2).why
    controller.missed(chosen, 0.1, 1.4)
    assert "workers are lost" in controller.explain(1.4).why


def test_without_a_measured_link_an_explanation_says_nothing_of_it() -> None:
    controller = Controller([SplitFacts("a", 1000, 100, 0.001, 0.002)])
    assert controller.explain(0.0).why == "0.0 ms expected"
    controller.choose(0.0)
    assert "round trip" not in controller.explain(1.0).why


@pytest.mark.parametrize(("waited", "slower"), [(0.0001, False), (1.0, True)])
def test_a_missed_item_that_explored_tells_how_long_the_link_takes_at_least(waited: float, slower: bool) -> None:
    controller = Controller([SplitFacts("a", 1000, 100, 0.001, 0.002)], local=0.05)
    chosen = controller.choose(0.0)
    controller.took(chosen, Sample(0.001, 0.012, 0.0, 0.002, 0.0), 0.1)
    before = controller.explain(0.1).round_trip
    controller.missed(chosen._replace(explores=True), waited, 0.2)
    assert (controller.explain(0.2).round_trip > before) is slower
