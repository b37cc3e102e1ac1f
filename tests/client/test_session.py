"""The decisions of a client, as a specification. No sockets; time is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zmq_offload.client.session import Action, ClientSession, Complete, Fail, Reconnect, RetryPolicy, Send
from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
    Unauthenticated,
    Unavailable,
)
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

POLICY = RetryPolicy(heartbeat=0.5, patience=1.5, slowest_link=1e6)
TOKEN = b"t" * 16


class Bench:
    """A session and its clock. Every call must end exactly once."""

    def __init__(self, *endpoints: str) -> None:
        self.now = 100.0
        self.session = ClientSession(TOKEN, endpoints or ("tcp://a:1",), POLICY)
        self.begun: set[int] = set()
        self.ended: list[int] = []

    def note(self, actions: list[Action]) -> list[Action]:
        self.ended += [action.id for action in actions if isinstance(action, Complete | Fail)]
        return actions

    def request(self, timeout: float = 10, payload: Any = (b"head", b"x")) -> int:
        number, actions = self.session.request("m", payload, timeout, now=self.now)
        self.begun.add(number)
        assert [type(action) for action in actions] == [Send]
        return number

    def query(self, timeout: float = 10) -> int:
        number, _ = self.session.query("models", timeout, now=self.now)
        self.begun.add(number)
        return number

    def got(self, message: Any, payload: Any = ()) -> list[Action]:
        return self.note(self.session.received(message, payload, self.now))

    def after(self, seconds: float, *, alive: bool = False) -> list[Action]:
        """Let time pass and call `tick` at each deadline. If `alive`, the broker answers each Ping."""
        end, actions = self.now + seconds, list[Action]()
        while (due := self.session.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            new = self.note(self.session.tick(self.now))
            if alive and any(isinstance(action, Send) and isinstance(action.message, wire.Ping) for action in new):
                new += self.got(wire.Pong(TOKEN, []))
            actions += new
        self.now = end
        return actions


def result(number: int, token: bytes = TOKEN) -> wire.Result:
    return wire.Result(token, number, 1, 0, 0, 0)


def sent(actions: list[Action], kind: type) -> list[Any]:
    return [action.message for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]


def errors(actions: list[Action]) -> list[OffloadError]:
    return [action.error for action in actions if isinstance(action, Fail)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert len(bench.ended) == len(set(bench.ended)), "a call ended twice"
    assert set(bench.ended) <= bench.begun
    assert bench.session.outstanding == len(bench.begun - set(bench.ended))


@pytest.fixture
def several() -> Bench:
    return Bench("tcp://a:1", "tcp://b:1", "tcp://c:1")


# --- calls and replies --------------------------------------------------------------------------------------


def test_a_request_is_one_message_and_its_result_completes_it(bench: Bench) -> None:
    number = bench.request()
    assert bench.got(result(number), [b"out"]) == [Complete(number, result(number), [b"out"])]
    assert bench.session.next_deadline() is None


def test_the_brokers_time_budget_is_a_little_less_than_the_callers(bench: Bench) -> None:
    """So the broker's error, which says where the request was, arrives before the deadline."""
    _, (send,) = bench.session.request("m", (), 10, now=bench.now)
    assert isinstance(send, Send) and isinstance(send.message, wire.Request)
    assert send.message.budget_us == 9_980_000
    bench.begun.add(1)


def test_calls_have_numbers_of_their_own_and_end_in_any_order(bench: Bench) -> None:
    first, query, second = bench.request(), bench.query(), bench.request()
    assert len({first, query, second}) == 3
    bench.got(result(second))
    bench.got(wire.Answer(TOKEN, query), [b"\x90"])
    bench.got(result(first))
    assert bench.ended == [second, query, first]


def test_an_error_fails_the_call_as_its_class(bench: Bench) -> None:
    number = bench.request()
    (error,) = errors(bench.got(wire.Error(TOKEN, number, "NOT_FOUND", "no model 'm'")))
    assert isinstance(error, NotFound)
    assert error.message == "no model 'm'"


# --- unexpected replies -------------------------------------------------------------------------------------


def test_a_reply_to_a_call_that_ended_is_dropped(bench: Bench) -> None:
    number = bench.request()
    assert bench.session.holds(number)
    bench.got(result(number))
    assert not bench.session.holds(number)
    assert bench.got(result(number)) == []
    assert bench.got(wire.Error(TOKEN, number, "INTERNAL", "?")) == []


def test_a_reply_to_another_session_is_dropped(bench: Bench) -> None:
    number = bench.request()
    assert bench.got(result(number, b"o" * 16)) == []
    assert bench.session.outstanding == 1


def test_a_reply_of_the_wrong_kind_fails_the_call(bench: Bench) -> None:
    number, query = bench.request(), bench.query()
    assert isinstance(errors(bench.got(wire.Answer(TOKEN, number), [b"\x90"]))[0], ProtocolError)
    assert isinstance(errors(bench.got(result(query)))[0], ProtocolError)


# --- time ---------------------------------------------------------------------------------------------------


def test_a_call_ends_at_its_deadline_even_if_the_broker_answers_pings(bench: Bench) -> None:
    number = bench.request(timeout=5)
    actions = bench.after(5, alive=True)
    (error,) = errors(actions)
    assert isinstance(error, DeadlineExceeded)
    assert wire.Cancel(TOKEN, number) in sent(actions, wire.Cancel)


def test_without_any_reply_the_error_says_that_no_broker_answered(bench: Bench) -> None:
    bench.request(timeout=5)
    (error,) = errors(bench.after(5))
    assert isinstance(error, Unavailable)
    assert "tcp://a:1" in error.message


def test_a_short_deadline_does_not_say_that_a_broker_is_silent_that_answered_before(bench: Bench) -> None:
    bench.got(result(bench.request()))
    bench.after(60)
    for _ in range(2):
        bench.request(timeout=0.01)
        assert [type(error) for error in errors(bench.after(0.01))] == [DeadlineExceeded]
    bench.request(timeout=1)  # it answers no Ping
    assert [type(error) for error in errors(bench.after(1))] == [Unavailable]
    bench.request(timeout=0.01)  # it is silent since then
    assert [type(error) for error in errors(bench.after(0.01))] == [Unavailable]
    bench.got(result(bench.request()))
    bench.request(timeout=0.01)
    assert [type(error) for error in errors(bench.after(0.01))] == [DeadlineExceeded]


def test_of_another_broker_nothing_is_known(several: Bench) -> None:
    several.got(result(several.request()))
    several.request(timeout=1.6)
    actions = several.after(1.6)
    assert Reconnect(1) in actions
    assert [type(error) for error in errors(actions)] == [Unavailable]


def test_cancelling_a_call_cancels_it_at_the_broker(bench: Bench) -> None:
    number = bench.request()
    send, fail = bench.note(bench.session.cancel(number))
    assert send == Send(wire.Cancel(TOKEN, number))
    assert isinstance(fail, Fail) and isinstance(fail.error, Cancelled)
    assert bench.session.cancel(number) == []


def test_closing_cancels_all_calls(bench: Bench) -> None:
    bench.request(), bench.query()
    assert [type(error) for error in errors(bench.note(bench.session.close()))] == [Cancelled, Cancelled]


def test_an_idle_client_sends_nothing(bench: Bench) -> None:
    bench.got(result(bench.request()))
    assert bench.session.next_deadline() is None
    bench.now += 3600
    bench.request()
    assert bench.after(0.4) == [], "silence does not count while nothing is outstanding"


def test_a_tick_before_anything_is_due_does_nothing(bench: Bench) -> None:
    bench.request()
    assert bench.session.tick(bench.now) == []


def test_an_error_that_belongs_to_no_call_is_reported_at_the_deadline(bench: Bench) -> None:
    """For instance, the broker cannot decode the messages of this client."""
    bench.request(timeout=1)
    assert bench.got(wire.Error(bytes(16), 0, "INVALID_ARGUMENT", "no such message")) == []
    assert bench.got(wire.Pong(b"o" * 16, [])) == [], "of another session"
    (error,) = errors(bench.after(1))
    assert error.message == "deadline exceeded after 1.000 s; the broker said: no such message"


# --- brokers that forget, are silent, or cannot serve -------------------------------------------------------


def test_pings_ask_about_outstanding_calls(bench: Bench) -> None:
    first = bench.request()
    bench.now += 0.3
    bench.request()
    assert sent(bench.after(0.2), wire.Ping) == [wire.Ping(TOKEN, [first])], "not about the call that was just sent"


def test_a_request_that_the_broker_does_not_hold_is_sent_again_with_the_remaining_time(bench: Bench) -> None:
    number = bench.request(timeout=10)
    bench.after(1)
    (again,) = sent(bench.got(wire.Pong(TOKEN, [number, 99])), wire.Request)
    assert again.id == number
    assert again.budget_us == pytest.approx(9e6, rel=0.01)


def test_pings_ask_about_any_number_of_calls(bench: Bench) -> None:
    numbers = [bench.request() for _ in range(limits.PING_IDS + 10)]
    pings = sent(bench.after(0.5), wire.Ping)
    assert [number for ping in pings for number in ping.ids] == numbers
    for ping in pings:
        wire.decode(wire.encode(ping), wire.FROM_CLIENT)


def test_a_silent_broker_is_left_for_the_next_and_all_calls_are_sent_there(several: Bench) -> None:
    numbers = [several.request(), several.query()]
    actions = several.after(1.6)
    at = actions.index(Reconnect(1))
    assert [m.id for a in actions[at:] if isinstance(a, Send) and (m := a.message)][:2] == numbers
    assert Reconnect(2) in several.after(1.6)
    assert Reconnect(0) in several.after(1.6)


def test_with_one_endpoint_the_client_reconnects(bench: Bench) -> None:
    bench.request()
    assert Reconnect(0) in bench.after(1.6)


def test_a_long_upload_does_not_count_as_silence(bench: Bench) -> None:
    bench.request(payload=(b"x" * 3_000_000,))
    assert not any(isinstance(action, Reconnect) for action in bench.after(4.4))
    assert any(isinstance(action, Reconnect) for action in bench.after(0.2))


def test_a_broker_that_answers_is_not_left(several: Bench) -> None:
    several.request(timeout=60)
    assert not any(isinstance(action, Reconnect) for action in several.after(30, alive=True))


def test_a_broker_that_cannot_serve_a_call_is_left_for_one_that_may(several: Bench) -> None:
    first, second = several.request(), several.request()
    actions = several.got(wire.Error(TOKEN, first, "UNAVAILABLE", "the broker is shutting down"))
    assert actions[0] == Reconnect(1)
    assert [message.id for message in sent(actions, wire.Request)] == [first, second]
    assert several.got(result(first)) != []


def test_if_no_broker_can_serve_a_call_it_fails(several: Bench) -> None:
    number = several.request(timeout=60)
    for endpoint in (1, 2):
        assert several.got(wire.Error(TOKEN, number, "UNAVAILABLE", "?"))[0] == Reconnect(endpoint)
        several.after(POLICY.patience, alive=True)
    (error,) = errors(several.got(wire.Error(TOKEN, number, "UNAVAILABLE", "no worker")))
    assert isinstance(error, Unavailable)


def test_calls_that_nobody_can_serve_do_not_move_the_others_again_and_again(several: Bench) -> None:
    first, second = several.request(), several.request()
    several.got(wire.Error(TOKEN, first, "UNAVAILABLE", "?"))
    assert errors(several.got(wire.Error(TOKEN, second, "UNAVAILABLE", "?"))), "too soon after the last switch"


def test_a_broker_that_refuses_the_key_is_left_for_the_next(several: Bench) -> None:
    number = several.request()
    for endpoint in (1, 2):
        actions = several.note(several.session.refused("does not know this key", several.now))
        assert actions[0] == Reconnect(endpoint)
        assert [message.id for message in sent(actions, wire.Request)] == [number]
    actions = several.note(several.session.refused("does not know this key", several.now))
    assert isinstance(errors(actions)[0], Unauthenticated)
    assert any(isinstance(action, Reconnect) for action in actions), "the next call tries again"


def test_a_message_resets_the_count_of_refusals(several: Bench) -> None:
    several.request(timeout=60)
    for _ in range(3):
        assert not errors(several.note(several.session.refused("?", several.now)))
        several.got(wire.Pong(TOKEN, []))


def test_after_a_new_connection_all_calls_are_sent_again(bench: Bench) -> None:
    numbers = [bench.request(), bench.request()]
    assert [message.id for message in sent(bench.session.reconnected(bench.now), wire.Request)] == numbers


def test_with_one_endpoint_unavailable_fails_at_once(bench: Bench) -> None:
    number = bench.request()
    assert errors(bench.got(wire.Error(TOKEN, number, "UNAVAILABLE", "?")))


# --- frames that are too large ------------------------------------------------------------------------------

LARGE = [b"head", bytes(limits.UNASKED_BYTES + 1)]


def begin(bench: Bench, payload: Any) -> list[Action]:
    number, actions = bench.session.request("m", payload, 10, now=bench.now)
    bench.begun.add(number)
    return bench.note(actions)


def test_a_large_request_waits_for_the_brokers_limit(bench: Bench) -> None:
    assert [action.message for action in begin(bench, LARGE) if isinstance(action, Send)] == [wire.Ping(TOKEN, [])]
    assert begin(bench, LARGE) == [], "one Ping is enough"
    (small,) = sent(begin(bench, [b"head", b"x"]), wire.Request)
    assert small.id == 3, "a small request does not wait"
    requests = sent(bench.got(wire.Pong(TOKEN, [], 1 << 30)), wire.Request)
    assert [request.id for request in requests] == [1, 2]
    assert sent(begin(bench, LARGE), wire.Request), "the limit is known now"
    for number in (1, 2, 3, 4):
        bench.got(result(number))


def test_a_request_over_the_brokers_limit_fails_at_once_and_names_both_limits(bench: Bench) -> None:
    begin(bench, LARGE)
    (error,) = errors(bench.got(wire.Pong(TOKEN, [], 1000)))
    assert isinstance(error, InvalidArgument)
    assert f"a frame of {len(LARGE[1])} bytes; the broker at tcp://a:1 takes at most 1000" in error.message
    assert f"this client {limits.MESSAGE_BYTES} (max_frame_bytes)" in error.message
    (error,) = errors(begin(bench, [b"head", bytes(1001)]))
    assert "a frame of 1001 bytes" in error.message
    (request,) = sent(begin(bench, [b"head" * 200, bytes(1000)]), wire.Request)
    bench.got(result(request.id))


def test_the_limit_is_asked_again_at_the_next_broker_and_after_a_restart() -> None:
    bench = Bench("tcp://a:1", "tcp://b:1")
    begin(bench, LARGE)
    bench.got(wire.Pong(TOKEN, [], 1 << 30))
    actions = bench.after(POLICY.patience + (len(LARGE[1]) + 4) / POLICY.slowest_link)
    at = next(at for at, action in enumerate(actions) if isinstance(action, Reconnect))
    assert [type(action.message) for action in actions[at + 1 :] if isinstance(action, Send)] == [wire.Ping]
    (again,) = sent(bench.got(wire.Pong(TOKEN, [], 1 << 30)), wire.Request)
    # The broker has restarted with a lower limit; the next Pong says so.
    assert [type(error) for error in errors(bench.got(wire.Pong(TOKEN, [again.id], 5000)))] == [InvalidArgument]


def test_a_lost_question_for_the_limit_is_asked_again(bench: Bench) -> None:
    begin(bench, LARGE)
    assert sent(bench.after(POLICY.heartbeat), wire.Ping)
    assert [r.id for r in sent(bench.got(wire.Pong(TOKEN, [1], 1 << 30)), wire.Request)] == [1], "once, not twice"
    bench.got(result(1))


def test_a_large_request_leaves_a_silent_broker_as_fast_as_a_small_one() -> None:
    """The request was not sent, so the Ping did not wait for it."""
    bench = Bench("tcp://a:1", "tcp://b:1")
    begin(bench, [b"head", bytes(20_000_000)])
    assert [action.endpoint for action in bench.after(POLICY.patience) if isinstance(action, Reconnect)] == [1]
    assert sent(bench.got(wire.Pong(TOKEN, [], 1 << 30)), wire.Request)
    bench.got(result(1))


def test_long_inputs_give_a_broker_no_more_time_while_there_is_no_connection_to_it() -> None:
    bench = Bench("tcp://a:1", "tcp://b:1")
    bench.got(wire.Pong(TOKEN, [], 1 << 30))
    bench.request(60, [b"head", bytes(20_000_000)])
    assert not any(isinstance(action, Reconnect) for action in bench.after(10))
    bench.session.may_send = False
    assert [action.endpoint for action in bench.after(0.1) if isinstance(action, Reconnect)] == [1]
    bench.session.may_send = True
    bench.got(result(1))


def test_numbers_go_on_after_those_of_another_session() -> None:
    one, other = (ClientSession(b"t" * 16, ["a"], POLICY) for _ in range(2))
    for _ in range(3):
        one.request("m", [b""], 1.0, now=0.0)
    other.number_after(one)
    assert other.request("m", [b""], 1.0, now=0.0)[0] == 4
    one.number_after(ClientSession(b"t" * 16, ["a"], POLICY))
    assert one.request("m", [b""], 1.0, now=0.0)[0] == 4


def test_a_broker_that_may_be_back_is_given_less_time_than_one_that_is_left() -> None:
    assert RetryPolicy().probe_seconds == 0.75
    assert RetryPolicy(patience=60.0).probe_seconds == 1.0
