"""Which thread drives a client's socket: the tables of states, and the pump's pauses."""

from __future__ import annotations

import pytest

from zmq_offload.client.lifecycle import GRACE, LIFE, TURN, Life, Lifecycle, Turn

NOW = 0.0
PUMP_DRIVES = {Turn.PUMPED, Turn.YIELDING}
LEADER_DRIVES = {Turn.LED, Turn.LED_AWAKE}


def after(*events: str) -> Lifecycle:
    lifecycle = Lifecycle()
    for event in events:
        lifecycle.step(event)
    return lifecycle


def test_every_state_is_reached_and_none_is_final_while_the_client_is_open() -> None:
    assert set(TURN) == set(Turn)
    reached, found = set[Turn](), {Turn.ASLEEP}
    while found:
        reached |= found
        found = {to for turn in found for to in TURN[turn].values()} - reached
    assert reached == set(Turn)
    assert all(TURN.values())


@pytest.mark.parametrize("turn", Turn)
def test_one_thread_at_a_time_drives(turn: Turn) -> None:
    events = TURN[turn]
    assert ("stop" in events) == (turn in PUMP_DRIVES)
    assert ("leave" in events) == (turn in LEADER_DRIVES)
    assert not (turn in PUMP_DRIVES and {"lead", "drive"} & events.keys())


def test_the_pump_sends_what_is_unsent_although_it_was_asked_to_stop() -> None:
    lifecycle = after("wake", "drive", "ask", "stop")
    assert lifecycle.pause(unsent=True, outstanding=True, now=NOW) == 0
    lifecycle.step("wake")
    lifecycle.step("drive")
    assert lifecycle.turn is Turn.YIELDING, "and stops again at once"


@pytest.mark.parametrize("events", [("lead",), ("lead", "wake")])
def test_a_leader_that_was_interrupted_keeps_nobody_from_driving(events: tuple[str, ...]) -> None:
    assert after(*events, "lead").is_led
    assert after(*events, "drive").turn is Turn.PUMPED


@pytest.mark.parametrize("turn", Turn)
def test_withdrawing_is_possible_in_any_state_and_never_changes_who_drives(turn: Turn) -> None:
    to = TURN[turn]["withdraw"]
    assert (to in PUMP_DRIVES, to in LEADER_DRIVES) == (turn in PUMP_DRIVES, turn in LEADER_DRIVES)


@pytest.mark.parametrize("turn", Turn)
def test_an_event_that_is_not_in_the_table_raises(turn: Turn) -> None:
    lifecycle = Lifecycle()
    lifecycle.turn = turn
    for event in {event for events in TURN.values() for event in events} - TURN[turn].keys():
        with pytest.raises(KeyError):
            lifecycle.step(event)
    assert lifecycle.turn is turn


def test_the_pump_makes_way_for_a_thread_that_asks() -> None:
    lifecycle = after("wake", "drive")
    assert lifecycle.turn is Turn.PUMPED
    lifecycle.step("ask")
    lifecycle.step("stop")
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW) == GRACE, "it does not take the socket back"
    lifecycle.step("lead")
    assert lifecycle.is_led


def test_the_pump_goes_on_if_the_thread_that_asked_gives_up() -> None:
    assert after("wake", "drive", "ask", "withdraw").turn is Turn.PUMPED


@pytest.mark.parametrize("events", [(), ("wake",), ("lead",), ("lead", "wake")])
def test_the_pump_sleeps_when_nothing_is_outstanding(events: tuple[str, ...]) -> None:
    assert after(*events).pause(unsent=False, outstanding=False, now=NOW) is None
    assert after(*events, "rest").pump_sleeps
    assert not after(*events, "rest", "wake").pump_sleeps


def test_the_pump_drives_at_once_when_something_is_unsent_or_a_thread_follows() -> None:
    lifecycle = after("lead")
    assert lifecycle.pause(unsent=True, outstanding=True, now=NOW) == 0
    lifecycle.leave(NOW)
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW) == GRACE
    lifecycle.followers.add(1)
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW) == 0


def test_the_pump_leaves_the_socket_for_a_moment_to_the_thread_that_led_last() -> None:
    lifecycle = after("lead")
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW) == GRACE
    lifecycle.leave(NOW)
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW + GRACE / 2) == pytest.approx(GRACE / 2)
    assert lifecycle.pause(unsent=False, outstanding=True, now=NOW + GRACE) == pytest.approx(0)


def test_a_client_is_closed_once_and_forgotten_in_every_child() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.is_open
    lifecycle.live("close")
    assert not lifecycle.is_open
    with pytest.raises(KeyError):
        lifecycle.live("close")
    for _ in range(2):
        lifecycle.live("fork")
    assert lifecycle.life is Life.FORGOTTEN
    assert set(LIFE) == set(Life)
