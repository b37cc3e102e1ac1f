"""Frames that are copied, frames that are lent, and when lent memory is free again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from random import Random

import pytest
import zmq

from tests.support.processes import eventually
from zmq_offload.net import transport
from zmq_offload.net.transport import LENT, Inbox, Poll, Wake

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of an inproc connection, which passes the memory of a message on without a copy."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    one.bind("inproc://pair")
    other.connect("inproc://pair")
    yield one, other
    context.destroy(linger=0)


def received(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(5000)
    frames = transport.receive(socket)
    assert frames is not None
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("size", [1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, LENT - 1])
def test_a_short_frame_is_copied_and_may_change_at_once(pair: Pair, size: int) -> None:
    memory = bytearray(b"a" * size)
    assert transport.send(pair[0], [b"envelope", memoryview(memory)], track=True) == []
    memory[:] = b"b" * size
    assert received(pair[1]) == [b"envelope", b"a" * size]


@pytest.mark.parametrize("size", [LENT, 4 * LENT])
def test_a_long_frame_is_sent_from_its_own_memory(pair: Pair, size: int) -> None:
    memory = bytearray(b"a" * size)
    (tracker,) = transport.send(pair[0], [b"envelope", memoryview(memory)], track=True)
    memory[-1:] = b"b"
    assert received(pair[1])[1].endswith(b"ab"), "the frame was copied"
    eventually(lambda: tracker.done)


def test_each_long_frame_is_tracked_and_not_only_the_last(pair: Pair) -> None:
    long, short = [memoryview(bytearray(LENT)) for _ in range(3)], memoryview(bytearray(8))
    trackers = transport.send(pair[0], [b"envelope", b"header", *long, short], track=True)
    assert len(trackers) == 3
    assert pair[1].poll(5000)
    frames = transport.receive(pair[1])
    assert frames is not None and len(frames) == 6
    for at, tracker in enumerate(trackers):
        assert not tracker.done, "libzmq still has it"
        frames[2 + at] = None
        eventually(lambda tracker=tracker: tracker.done)


def test_lent_memory_is_free_after_its_connection_is_closed() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect("tcp://127.0.0.1:1")  # nobody is there
    (tracker,) = transport.send(socket, [memoryview(bytearray(LENT))], track=True)
    assert not tracker.done
    socket.close(linger=0)
    eventually(lambda: tracker.done)
    context.term()


@pytest.mark.parametrize("most", [1, 3, 64])
def test_an_inbox_returns_all_messages_in_order_and_at_most_the_given_number(pair: Pair, most: int) -> None:
    inbox = Inbox(pair[1])
    for burst in (1, 5, 1, 70, 2):
        for number in range(burst):
            transport.send(pair[0], [b"%d" % number])
        seen: list[bytes] = []
        while len(seen) < burst:
            assert pair[1].poll(5000)
            taken = [frames[0] for frames in inbox.take(most)]
            assert 0 < len(taken) <= most
            assert len(taken) == most or inbox.emptied
            seen += taken
        assert seen == [b"%d" % number for number in range(burst)]
        assert not inbox.waiting()
        assert list(inbox.take(most)) == []
        assert inbox.emptied


def test_a_poll_finds_every_message_whatever_was_done_with_its_sockets_before(pair: Pair) -> None:
    """Sending, too, reads from a socket's descriptor what tells of messages that came in."""
    near, far = pair
    inbox = Inbox(near)
    poll = Poll([inbox], [])
    random = Random(0)
    sent = seen = 0
    for _ in range(300):
        for _ in range(random.randint(1, 3)):
            far.send(b"%d" % sent)
            sent += 1
        if random.random() < 0.5:
            near.send(b"there")
        if random.random() < 0.2:
            time.sleep(0.001)  # from then on libzmq looks at its commands when it sends
            near.send(b"there")
        if random.random() < 0.3:
            assert poll.wait(5000) == [inbox]
            for frames in inbox.take_after(poll, random.choice((1, 3, 64))):
                assert frames == [b"%d" % seen]
                seen += 1
    while seen < sent:
        assert poll.wait(5000) == [inbox]
        for frames in inbox.take_after(poll, 64):
            assert frames == [b"%d" % seen]
            seen += 1
    assert poll.wait(0) == []
    assert poll.waits > 0


def test_a_poll_finds_descriptors_beside_messages(pair: Pair) -> None:
    inbox, wake = Inbox(pair[0]), Wake()
    poll = Poll([inbox], [wake.fileno()])
    assert poll.wait(0) == []
    wake.set()
    assert poll.wait(5000) == [wake.fileno()]
    pair[1].send(b"a")
    pair[1].send(b"b")
    eventually(inbox.waiting)
    assert poll.wait(5000) == [wake.fileno(), inbox]
    assert poll.waits == 0
    assert inbox.take_after(poll, 64) == [[b"a"], [b"b"]]
    wake.close()


def test_messages_that_come_one_by_one_are_taken_without_a_look_for_others(pair: Pair) -> None:
    inbox = Inbox(pair[0])
    poll = Poll([inbox], [])
    for _ in range(6):
        assert poll.wait(1) == []
    pair[1].send(b"a")
    pair[1].send(b"b")
    eventually(lambda: poll._poll.poll(0))  # the descriptor tells of both, and the socket was not asked
    assert poll.waits > 4
    assert inbox.take_after(poll, 64) == [[b"a"]]
    assert poll.wait(0) == [inbox]
    assert poll.waits == 0
    assert inbox.take_after(poll, 64) == [[b"b"]]
    assert inbox.emptied


LISTEN_OFTEN = """
import zmq
from zmq_offload.net import transport
with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
    events = transport.monitor(router, zmq.EVENT_LISTENING)
    for _ in range(2500):  # libzmq's limits of both sides together are 2000
        router.bind("tcp://127.0.0.1:0")
        router.unbind(router.getsockopt_string(zmq.LAST_ENDPOINT))
    read = 0
    while transport.receive(events):
        read += 1
    router.disable_monitor()
    events.close()
print(read)
"""


def test_unread_monitor_events_do_not_block() -> None:
    """libzmq's I/O thread, which serves all connections, reports events as the binding thread does here. This runs in a
    process of its own, because a thread that is blocked there stays blocked."""
    done = subprocess.run([sys.executable, "-c", LISTEN_OFTEN], stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"2500\n"
