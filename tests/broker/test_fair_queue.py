"""Invariants: a queue hands out each request once, the most urgent first. Within a priority, no client has its second
turn before every other waiting client had one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.queues import FairQueue
from broker.state import PendingRequest, Wanted
from zmq_offload.protocol.messages import Key

ARRIVALS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), max_size=40)
STEPS = st.lists(st.one_of(st.tuples(st.integers(0, 4), st.integers(-1, 1)), st.just("pop"), st.just("remove")))


def make(number: int, owner: int, priority: int) -> PendingRequest:
    session = bytes([owner]) * 16
    return PendingRequest(Key(session, number), b"", session, Wanted("m"), priority, 0.0, 0.0, (), owner, number % 3)


def pop(queue: FairQueue, turn: int, most: int = 10) -> PendingRequest | None:
    request = queue.first(most)
    if request is not None:
        queue.pop(request, turn)
    return request


def drain(queue: FairQueue, turn: int) -> list[PendingRequest]:
    taken = []
    while len(queue):
        turn += 1
        request = pop(queue, turn)
        assert request is not None
        taken.append(request)
    return taken


@given(ARRIVALS)
def test_what_goes_in_comes_out_by_priority_in_turns_and_in_order(arrivals: list[tuple[int, int]]) -> None:
    queue = FairQueue()
    requests = [make(n, *arrival) for n, arrival in enumerate(arrivals)]
    for turn, request in enumerate(requests):
        queue.push(request, turn)
    taken = drain(queue, len(requests))
    assert sorted(r.key for r in taken) == sorted(r.key for r in requests)
    assert [r.priority for r in taken] == sorted((r.priority for r in requests), reverse=True)
    for priority in (-1, 0, 1):
        level = [r for r in taken if r.priority == priority]
        for owner in {r.owner for r in level}:
            own = [r.key.id for r in level if r.owner == owner]
            assert own == sorted(own), "a client's requests keep their order"
        for at, request in enumerate(level):
            waiting = {r.owner for r in level[at:]}
            turns = [r.owner for r in level[at : at + len(waiting)]]
            assert len(set(turns)) == len(waiting), f"{request.key}: a client had two turns"


@given(STEPS)
def test_it_agrees_with_a_plain_collection(steps: list[tuple[int, int] | str]) -> None:
    queue, there = FairQueue(), dict[Key, PendingRequest]()
    for number, step in enumerate(steps):
        turn = number + 1
        if isinstance(step, tuple):
            request = make(number, *step)
            queue.push(request, turn, again=number % 7 == 0)
            there[request.key] = request
        elif there and step == "pop":
            most = number % 3
            taken = pop(queue, turn, most)
            fit = [r for r in there.values() if r.longest <= most]
            assert (taken is None) is (not fit)
            if taken is not None:
                assert taken.longest <= most
                assert taken.priority == max(r.priority for r in fit)
                del there[taken.key]
        elif there:
            request = there.pop(next(iter(there)))
            assert request in queue
            queue.remove(request)
            assert request not in queue
        assert len(queue) == len(there) == queue.shares.count
        assert queue.nbytes == sum(r.nbytes for r in there.values())
        assert {r.key for r in queue} == set(there)
