"""Streams on real sockets: with each other, and with libzmq."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest
import zmq

from zmq_offload.net.stream import Ended, Stream
from zmq_offload.net.zmtp import HELLO, Broken, Peer

MOST = 64 << 20


def stream(
    connected: socket.socket, kind: bytes = b"DEALER", *, most: int = 256, most_bytes: int | None = None
) -> Stream:
    return Stream(connected, Peer(MOST, 258, 1.0, kind), most, most_bytes)


@pytest.fixture
def ends() -> Iterator[tuple[Stream, Stream]]:
    """Both ends of a connection after the handshake."""
    pair = socket.socketpair()
    both = stream(pair[0], b"ROUTER", most_bytes=1 << 20), stream(pair[1])
    for end in both:
        assert end.flush()
    for end in (*both, *both):
        assert end.receive() == []
    assert all(end.peer.is_ready for end in both)
    yield both
    for end in both:
        end.close()


def everything(reader: Stream, writer: Stream) -> list[list[bytes]]:
    """All messages that the writer has queued."""
    got: list[list[bytes]] = []
    while True:
        done = writer.flush()
        messages = reader.receive()
        got += [[bytes(frame) for frame in message] for message in messages]
        if done and not messages and not select.select([reader], [], [], 0)[0]:
            return got


def test_messages_of_all_sizes_arrive(ends: tuple[Stream, Stream]) -> None:
    messages = [[b"a"], [b"", b"b" * 300, b""], [b"c" * 10, b"d" * 3_000_000, b"", b"e" * 100_000], [b"x"] * 258]
    for message in messages:
        assert ends[1].put([memoryview(frame) for frame in message])
    messages.append(messages.pop(2))  # a long message is overtaken
    assert everything(*ends) == messages and ends[1].queued == 0


def test_what_follows_the_rest_of_a_frame_comes_with_it(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    messages = [[b"%d" % number, b"x" * 38_400] for number in range(9)]
    for message in messages:
        assert writer.put(message)
    writer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    assert writer.flush()
    turns, filled = [], []
    for _ in range(2):
        turns.append(reader.receive())
        filled.append(reader.filled)
    assert filled == [True, False]
    assert [len(turn) for turn in turns] == [6, 3], "the seventh was complete with the second turn, as the others were"
    assert [[bytes(frame) for frame in message] for turn in turns for message in turn] == messages


def test_short_messages_wait_for_a_piece_of_a_long_one(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    long = [b"long", bytes(20_000_000)]
    assert writer.put(long)
    assert not writer.flush() and writer.blocked
    got = [reader.receive() for _ in range(3)]
    assert not any(got) and writer.queued > 15_000_000
    assert writer.put([b"short", b"one"])
    where = writer.position
    assert writer.put([b"what is to become of the others"])
    behind = writer.position
    while not (messages := reader.receive()):
        writer.flush()
    assert messages == [[b"short", b"one"]] and writer.queued > 15_000_000
    assert writer.has_written(where) and not writer.has_written(behind)
    assert everything(reader, writer) == [long, [b"what is to become of the others"]]
    assert writer.has_written(behind) and not writer.blocked and writer.queued == 0
    assert writer.put([b"at last"]) and everything(reader, writer) == [[b"at last"]]


def test_long_messages_follow_each_other(ends: tuple[Stream, Stream]) -> None:
    sizes = [3_000_000, 1_000_000, 524_288, 5_000_000, 600_000]
    for number, size in enumerate(sizes):
        assert ends[1].put([b"%d" % number, bytes(size), b"", bytes(20_000), b"end"])
    got = everything(*ends)
    assert [(int(first), len(frame)) for first, frame, *_ in got] == list(enumerate(sizes))


def test_a_long_message_that_is_written_is_so_while_the_next_one_is_sent(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    positions = []
    for number in range(3):
        assert writer.put([b"%d" % number, bytes(5_000_000)])
        positions.append(writer.position)
    for number, position in enumerate(positions):
        assert not any(writer.has_written(later) for later in positions[number:])
        while not reader.receive():
            writer.flush()
        assert writer.has_written(position), "its memory is free: it came"


def test_what_is_not_much_is_sent_whole(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    messages = [[b"1", bytes(1_500_000)], [b"2", b""], [b"3", bytes(1_000_000)], [b"4", b""]]
    for message in messages:
        assert writer.put(message)
    assert everything(reader, writer) == [messages[at] for at in (0, 1, 3, 2)]


def test_long_messages_count_as_queued(ends: tuple[Stream, Stream]) -> None:
    writer = ends[0]  # which has a limit of bytes
    assert writer.put([b"1", bytes(2_000_000)])
    assert not writer.put([b"2", b""])


def test_a_peer_that_takes_no_pieces_gets_none() -> None:
    pair = socket.socketpair()
    reader, writer = stream(pair[0], b"ROUTER"), stream(pair[1])
    for end in (reader, writer, reader, writer):
        end.flush()
        end.receive()
    writer.peer.takes_pieces = False
    messages = [[b"1", bytes(3_000_000)], [b"2", b""]]
    for message in messages:
        assert writer.put(message)
    assert everything(reader, writer) == messages
    reader.close()
    writer.close()


def test_a_peer_that_does_not_read_gets_so_many_messages(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    taken = 0
    while writer.put([b"%d" % taken, bytes(20_000)]):
        taken += 1
        writer.flush()
    assert writer.blocked and taken > 256
    before = writer.queued
    assert not writer.put([b"no"]) and writer.queued == before
    got = everything(reader, writer)
    assert [int(message[0]) for message in got] == list(range(taken))
    assert writer.put([b"yes"]) and everything(reader, writer) == [[b"yes"]]


def test_a_slow_reader_is_not_full_for_what_it_has_read(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    got = 0
    for _ in range(3000):  # never empty, and never more than 100 messages behind
        assert writer.put([bytes(3000)])
        writer.flush()
        if writer.queued > 100 * 3009:
            while writer.queued > 50 * 3009:
                got += len(reader.receive())
                writer.flush()
    assert writer.queued
    assert got + len(everything(reader, writer)) == 3000


def test_bytes_are_bounded_too(ends: tuple[Stream, Stream]) -> None:
    writer, reader = ends
    taken = 0
    while writer.put([bytes(400_000)]):
        taken += 1
        writer.flush()
    assert 1 << 20 <= writer.queued < (1 << 20) + 400_100
    assert len(everything(reader, writer)) == taken


def test_pings_of_a_peer_that_does_not_read_fill_nothing(ends: tuple[Stream, Stream]) -> None:
    reader, writer = ends
    ping = b"\x04\x17\x04PING\0\0" + bytes(16)
    sending = writer.socket
    for _ in range(400):
        sending.send(ping * 100)
        while select.select([reader], [], [], 0)[0]:
            reader.receive()
    assert reader.blocked
    assert reader.queued < 1 << 18


def test_the_end_and_other_protocols_are_told_apart(ends: tuple[Stream, Stream]) -> None:
    ends[0].put([b"last"])
    ends[0].flush()
    ends[0].close()
    assert ends[1].receive() == [[b"last"]], "what came before the end is read first"
    with pytest.raises(Ended):
        ends[1].receive()
    ends[1].put([b"late"])
    with pytest.raises(BrokenPipeError):
        ends[1].flush()
    mine, others = socket.socketpair()
    with mine, others:
        others.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(Broken):
            stream(mine).receive()


def test_a_silent_peer_is_gone_after_three_intervals(ends: tuple[Stream, Stream]) -> None:
    one, other = ends
    for _ in range(5):
        assert one.tick() and one.tick() and not one.blocked
        other.receive()
        one.receive()
    assert [one.tick() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("theirs", "mine"), [(zmq.DEALER, b"ROUTER"), (zmq.REQ, b"ROUTER"), (zmq.ROUTER, b"DEALER")])
def test_libzmq_at_the_other_end(theirs: int, mine: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, zmq.Context() as context:
        other: zmq.Socket[bytes] = context.socket(theirs)
        other.linger = 0
        other.setsockopt(zmq.HEARTBEAT_IVL, 50)
        other.setsockopt(zmq.HEARTBEAT_TIMEOUT, 500)
        other.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        monitor = other.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        accepted = stream(server.accept()[0], mine)
        assert accepted.flush()
        end = time.monotonic() + 10
        while not accepted.peer.is_ready:
            assert time.monotonic() < end
            select.select([accepted], [], [], 1)
            assert accepted.receive() == []
        if theirs == zmq.ROUTER:
            assert accepted.put([b"hello", b"x" * 200_000])
            accepted.flush()
            name, *frames = other.recv_multipart()
            assert frames == [b"hello", b"x" * 200_000]
            other.send_multipart([name, b"", b"y" * 200_000])
        else:
            other.send_multipart([b"y" * 200_000])
        got: list[list[bytes]] = []
        heartbeats = 0
        while not got or heartbeats < 12:  # longer than libzmq waits for PONGs
            assert time.monotonic() < end
            select.select([accepted], [], [], 1)
            heartbeats += 1
            got += [[bytes(frame) for frame in message] for message in accepted.receive()]
        assert got == [[b"", b"y" * 200_000]] if theirs != zmq.DEALER else got == [[b"y" * 200_000]]
        assert not monitor.poll(0), "heartbeats are answered"
        other.disable_monitor()
        monitor.close()
        other.close()
        accepted.close()


def test_what_came_before_the_end_is_returned_though_a_ping_cannot_be_answered() -> None:
    pair = socket.socketpair()
    ours, theirs = stream(pair[0], b"ROUTER"), pair[1]
    ours.flush()
    other = Peer(MOST, 258, 1.0)
    theirs.sendall(HELLO)
    ours.receive()
    other.received(theirs.recv_into(other.buffer()))
    theirs.sendall(b"".join(other.answers))
    ours.receive()
    other.answers.clear()
    other.received(theirs.recv_into(other.buffer()))
    theirs.sendall(b"".join(other.answers))
    ours.receive()
    assert ours.peer.is_ready
    theirs.sendall(b"\x04\x07\x04PING\x00\x00" + b"\x00\x04last")
    theirs.shutdown(socket.SHUT_RD)  # what this end writes now fails
    assert ours.receive() == [[b"last"]]
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.receive()
    ours.close()
