"""HTTP/2 as RFC 9113 wants it, frame by frame."""

from __future__ import annotations

import hpack
import pytest

from tests.gateway.http2_peer import REQUEST, SETTINGS, Frame, Peer, block, data, headers, settings, split
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.connection import Connection
from zmq_offload.gateway.http2.errors import ErrorCode
from zmq_offload.gateway.http2.events import Begun, Data, Drained, Failed, Reset
from zmq_offload.gateway.http2.frames import LARGEST_ID, LARGEST_WINDOW, PREFACE, frame
from zmq_offload.gateway.http2.headers import encode
from zmq_offload.gateway.http2.settings import Limits

HEAD = encode([(":status", "200")])
TRAILERS = encode([("grpc-status", "0")])


def window_update(stream: int, increment: int) -> bytes:
    return frames.window_update(stream, increment)


def answer(peer: Peer, stream: int, *parts: bytes) -> None:
    peer.connection.headers(stream, HEAD)
    peer.connection.data(stream, parts)
    peer.connection.end(stream, TRAILERS)


def body(sent: list[Frame], stream: int) -> bytes:
    return b"".join(f.payload for f in sent if f.kind == frames.DATA and f.stream == stream)


# Greeting.


def test_the_greeting_tells_the_limits_and_confirms_the_settings():
    greeting = Peer(Limits(streams=7, window=100_000, frame=20_000, header_block=5000)).greeting
    assert [f.kind for f in greeting] == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]
    assert frames.read_settings(greeting[0].payload) == [(3, 7), (4, 100_000), (5, 20_000), (6, 5000)]
    assert greeting[1].stream == 0 and greeting[1].number + 65_535 == LARGEST_WINDOW
    assert greeting[2].flags == frames.ACK and not greeting[2].payload


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1", PREFACE + headers(1)])
def test_what_does_not_begin_as_http2_ends_the_connection(first):
    connection = Connection(lambda head: head, Limits())
    (failed,) = connection.receive(first)
    assert failed.code == ErrorCode.PROTOCOL_ERROR and isinstance(failed, Failed)


def test_a_confirmation_does_not_replace_the_first_settings():
    connection = Connection(lambda head: head, Limits())
    assert connection.receive(PREFACE + frame(frames.SETTINGS, frames.ACK, 0, b""))[0].code == ErrorCode.PROTOCOL_ERROR


# Requests and responses.


def test_a_request_and_its_response():
    peer = Peer()
    head, first, last = peer.send(headers(1), data(1, b"abc"), data(1, b"d", end=True))
    assert head == Begun(1, head.head, False) and (head.head.method, head.head.path) == ("POST", "/m")
    assert head.head.authority == "h" and head.head.fields == [("te", "trailers")]
    assert [(bytes(event.data), event.ended) for event in (first, last)] == [(b"abc", False), (b"d", True)]
    assert peer.connection.streams == 1
    answer(peer, 1, b"x", memoryview(b"yz"), b"")
    assert [(f.kind, f.flags, f.payload) for f in peer.frames()] == [
        (frames.HEADERS, frames.END_HEADERS, HEAD),
        (frames.DATA, 0, b"xyz"),
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, TRAILERS),
    ]
    assert peer.connection.streams == 0 and not peer.connection.finished


def test_a_response_without_data_has_no_data_frame():
    peer = Peer()
    peer.send(headers(1, end=True))
    answer(peer, 1)
    assert [f.kind for f in peer.frames()] == [frames.HEADERS, frames.HEADERS]


def test_a_request_that_ends_with_trailers():
    peer = Peer()
    assert peer.send(headers(1), headers(1, [("x", "y")], end=True))[1] == Data(1, b"", True)


def test_what_follows_on_a_stream_after_its_response_is_ignored_and_stopped_if_it_is_much():
    peer = Peer(Limits(streams=4))
    for number in (1, 3, 5, 7):
        peer.send(headers(number))
        answer(peer, number)
    peer.frames()
    assert peer.connection.streams == 0
    assert peer.break_stream(headers(9)) == ErrorCode.REFUSED_STREAM
    assert not peer.send(data(1, b"abc"), headers(1, [("x", "y")]), headers(1, [("x", "y")], end=True))
    assert not peer.send(data(3, b"abc"), frames.reset(3, ErrorCode.CANCEL), data(7, b"", end=True))
    peer.send(data(5, bytes(60_000)), frames.window_update(5, 5))
    assert not peer.frames()
    assert peer.break_stream(data(5, bytes(10_000))) == ErrorCode.NO_ERROR
    assert not peer.send(data(5, bytes(10_000)), headers(5, [("x", "y")], end=True)) and not peer.frames()
    assert len(peer.send(*(headers(number) for number in (11, 13, 15, 17)))) == 4
    assert peer.fault(data(1, b"abc")) == ErrorCode.STREAM_CLOSED


def test_padding_and_priority_are_taken_off():
    peer = Peer()
    flags = frames.END_HEADERS | frames.PADDED | frames.PRIORITY_FLAG
    padded = frame(frames.HEADERS, flags, 1, b"\3" + bytes(5) + block(REQUEST) + bytes(3))
    (begun,) = peer.send(padded)
    assert begun.head.path == "/m"
    (event,) = peer.send(frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\2abc\0\0"))
    assert (bytes(event.data), event.ended) == (b"abc", True)
    assert peer.connection.allowed(1) == Limits().window - 6
    peer.send(headers(3))
    assert not peer.send(frame(frames.DATA, frames.PADDED, 3, b"\2\0\0"))


def test_a_header_block_may_come_in_pieces():
    peer = Peer()
    whole = block(REQUEST)
    pieces = [frame(frames.HEADERS, frames.END_STREAM, 1, whole[:3]), frame(frames.CONTINUATION, 0, 1, whole[3:5])]
    (begun,) = peer.send(*pieces, frame(frames.CONTINUATION, frames.END_HEADERS, 1, whole[5:]))
    assert begun.ended and begun.head.path == "/m"


def test_data_is_passed_on_before_its_frame_is_whole():
    peer = Peer()
    long = frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\1" + bytes(range(100)) + b"\0")
    peer.send(headers(1))
    assert [bytes(e.data) for e in peer.send(long[:19])] == [bytes(range(9))]
    assert peer.connection.arriving() == (1, 91)
    assert peer.connection.arrived(41) == [] and peer.connection.arriving() == (1, 50)
    assert peer.connection.arrived(50) == [] and peer.connection.arriving() is None
    assert peer.send(long[-1:]) == [Data(1, b"", True)]
    peer.send(headers(3), data(3, bytes(10))[:10])
    assert peer.connection.arrived(9) == []
    peer.send(data(3, bytes(10), end=True)[:10])
    assert peer.connection.arrived(9) == [Data(3, b"", True)]


def test_unknown_frames_and_settings_are_ignored():
    peer = Peer()
    assert not peer.send(frame(200, 255, 0, bytes(70_000)), frame(201, 0, 9, b""), settings(unknown=1, table=0, push=1))
    assert [f.flags for f in peer.frames()] == [frames.ACK]
    assert not peer.send(frame(frames.PRIORITY, 0, 7, bytes(5)), frames.goaway(0, ErrorCode.NO_ERROR))
    assert not peer.send(frame(frames.SETTINGS, frames.ACK, 0, b"")) and not peer.connection.finished


def test_a_ping_is_answered():
    peer = Peer()
    peer.send(frame(frames.PING, 0, 0, b"12345678"), frame(frames.PING, frames.ACK, 0, b"abcdefgh"))
    assert peer.frames() == [Frame(frames.PING, frames.ACK, 0, b"12345678")]


# The end of streams and connections.


def test_a_client_cancels():
    peer = Peer()
    peer.send(headers(1), data(1, bytes(10))[:12])
    assert peer.connection.arriving() == (1, 7)
    peer.send(bytes(7))
    assert peer.send(frames.reset(1, ErrorCode.CANCEL)) == [Reset(1, ErrorCode.CANCEL)]
    answer(peer, 1, b"late")
    peer.connection.reset(1, ErrorCode.CANCEL)
    peer.connection.allow(1, 10)
    assert not peer.frames() and peer.connection.streams == 0 and peer.connection.allowed(1) == 0
    assert not peer.send(frames.reset(1, ErrorCode.CANCEL))


def test_a_stream_is_reset_in_the_midst_of_its_data():
    peer = Peer()
    peer.send(headers(1), data(1, bytes(10))[:12])
    peer.connection.reset(1, ErrorCode.CANCEL)
    assert peer.connection.arriving() is None
    assert peer.frames() == [Frame(frames.RST_STREAM, 0, 1, bytes([0, 0, 0, ErrorCode.CANCEL]))]
    assert not peer.send(bytes(7)) and len(peer.send(headers(3))) == 1


def test_draining_serves_what_was_on_its_way_and_nothing_else():
    peer = Peer()
    peer.send(headers(1, end=True))
    peer.connection.drain()
    notice, ping = peer.frames()
    assert notice.payload == LARGEST_ID.to_bytes(4, "big") + bytes(4) and ping.kind == frames.PING
    peer.send(headers(3, end=True), frame(frames.PING, frames.ACK, 0, ping.payload))
    assert peer.frames() == [Frame(frames.GOAWAY, 0, 0, bytes([0, 0, 0, 3, 0, 0, 0, 0]))]
    assert peer.break_stream(headers(5, end=True)) == ErrorCode.REFUSED_STREAM
    peer.connection.drain()
    peer.connection.close(ErrorCode.NO_ERROR)
    answer(peer, 1)
    assert not peer.connection.finished
    answer(peer, 3)
    assert peer.connection.finished and [f.kind for f in peer.frames()] == [frames.HEADERS] * 4
    assert peer.fault(frame(frames.PING, 0, 0, b"")) == ErrorCode.FRAME_SIZE_ERROR


def test_streams_that_were_reset_are_remembered_for_a_while():
    peer = Peer(Limits(resets=5000))
    for number in range(1, 2053, 2):
        peer.send(headers(number))
        peer.connection.reset(number, ErrorCode.CANCEL)
    assert not peer.send(data(5, b"x")) and not peer.connection.failed
    assert peer.fault(data(1, b"x")) == ErrorCode.STREAM_CLOSED


# Flow control.


def test_a_large_response_goes_out_as_views_of_its_parts():
    peer = Peer(first=settings(window=1 << 20, frame=1 << 20))
    peer.send(headers(1, end=True), window_update(0, 1 << 20))
    large = bytes(range(256)) * 2000
    answer(peer, 1, b"12345", large)
    assert peer.connection.size == 5 + len(large)
    sent = peer.connection.take()
    assert any(part is large for part in sent) and peer.connection.size == 0
    assert body(split(b"".join(sent)), 1) == b"12345" + large


def test_data_waits_for_the_stream_and_for_the_connection():
    peer = Peer(first=settings(window=10))
    peer.send(headers(1, end=True), headers(3, end=True))
    assert not peer.connection.data(1, [b"0123456789", memoryview(b"abcdefghij")])
    assert body(peer.frames(), 1) == b"0123456789"
    assert peer.send(window_update(1, 4)) == []
    assert not peer.connection.data(1, [b"!"])
    assert body(peer.frames(), 1) == b"abcd"
    assert peer.send(window_update(1, 100)) == [Drained(1)]
    assert body(peer.frames(), 1) == b"efghij!"
    assert peer.connection.data(1, [b"x"]) and peer.connection.data(99, [b"x"])
    answer(peer, 3, bytes(12))
    assert body(peer.frames(), 3) == bytes(10)
    assert peer.connection.held(3) == 2
    assert peer.send(window_update(3, 2)) == [Drained(3)] and peer.connection.held(3) == 0
    assert [f.kind for f in peer.frames()] == [frames.DATA, frames.HEADERS] and peer.connection.streams == 1


def test_frames_are_as_large_as_the_peer_takes():
    peer = Peer(first=settings(window=1 << 20, frame=20_000))
    peer.send(headers(1, end=True))
    assert peer.connection.data(1, [bytes(50_000)])
    assert [len(f.payload) for f in peer.frames()] == [20_000, 20_000, 10_000]


def test_streams_take_turns_when_the_connection_is_the_bottleneck():
    peer = Peer(first=settings(window=LARGEST_WINDOW, frame=1 << 20))
    peer.send(headers(1, end=True), headers(3, end=True), headers(5, end=True))
    for number in (1, 3, 5):
        answer(peer, number, bytes(600_000))
    assert len(body(peer.frames(), 1)) == 65_535
    peer.send(settings(window=0), window_update(3, 500_000), window_update(5, 500_000), window_update(1, 500_000))
    for number in (1, 3, 5, 1, 3, 5):
        peer.send(window_update(0, 100_000))
        assert {f.stream for f in peer.frames() if f.kind == frames.DATA} == {number}
    peer.send(window_update(0, 10_000_000))
    assert peer.connection.streams == 3  # each waits for its own window
    peer.send(settings(window=10_000_000))
    assert peer.connection.streams == 0


def test_a_stream_that_waits_for_the_connection_alone_is_drained_by_it():
    peer = Peer(first=settings(window=1 << 20))
    peer.send(headers(1, end=True))
    assert not peer.connection.data(1, [bytes(70_000)])
    assert peer.send(window_update(0, 70_000)) == [Drained(1)]
    assert peer.connection.data(1, [bytes(65_535)])


def test_settings_change_the_windows_of_open_streams():
    peer = Peer(first=settings(window=10))
    peer.send(headers(1, end=True), headers(3, end=True), headers(5, end=True))
    peer.connection.data(1, [bytes(15)])
    peer.connection.data(3, [bytes(10)])
    answer(peer, 5, bytes(12))
    peer.send(settings(window=0))
    assert body(peer.frames(), 1) == bytes(10)
    peer.send(window_update(1, 10))  # 10 below 0 before
    assert body(peer.frames(), 1) == b""
    assert peer.send(settings(window=3)) == []
    assert body(peer.frames(), 1) == bytes(3)
    assert peer.send(settings(window=12)) == [Drained(1), Drained(5)]
    assert body(peer.frames(), 5) == bytes(2) and peer.connection.streams == 2


def test_the_owner_lets_a_stream_send_more():
    peer = Peer(Limits(window=1000))
    peer.send(headers(1), data(1, bytes(600)))
    peer.connection.allow(1, 400)
    assert not peer.frames() and peer.connection.allowed(1) == 400
    peer.connection.allow(1, 5000)
    assert peer.frames() == [Frame(frames.WINDOW_UPDATE, 0, 1, (4600).to_bytes(4, "big"))]
    assert len(peer.send(data(1, bytes(5000), end=True))) == 1
    peer.connection.allow(1, 5000)
    assert not peer.frames()


def test_the_window_of_the_connection_is_never_used_up():
    peer = Peer(Limits(window=LARGEST_WINDOW))
    peer.send(headers(1))
    connection = peer.connection
    large = (1 << 24) - 1
    for _ in range(64):
        peer.send(frames.HEAD.pack(large << 8, 0, 1))
        connection.arrived(large)
    assert not peer.frames()
    peer.send(frames.HEAD.pack(large << 8, 0, 1))
    (update,) = peer.frames()
    assert update.stream == 0 and update.number == 65 * large


# Broken rules.

BROKEN_CONNECTIONS = {
    "DATA on stream 0": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA before HEADERS": (data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on an even stream": (headers(3) + data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA that is all padding": (headers(1) + frame(0, frames.PADDED, 1, b"\3ab"), ErrorCode.PROTOCOL_ERROR),
    "padded DATA without length": (headers(1) + frame(0, frames.PADDED, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
    "DATA beyond the largest frame": (headers(1) + frames.HEAD.pack(20_001 << 8, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS on stream 0": (headers(0), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on an even stream": (headers(2), ErrorCode.PROTOCOL_ERROR),
    "HEADERS that are all padding": (frame(1, frames.PADDED | 4, 1, b"\2a"), ErrorCode.PROTOCOL_ERROR),
    "padded HEADERS without length": (frame(1, frames.PADDED | 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "HEADERS shorter than their priority": (frame(1, 0x24, 1, b"abcd"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS beyond the limit": (frames.HEAD.pack(9000 << 8 | 1, 4, 1), ErrorCode.ENHANCE_YOUR_CALM),
    "no header block of HPACK": (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "an index of HPACK's that is not there": (frame(1, 4, 1, b"\xfe"), ErrorCode.COMPRESSION_ERROR),
    "a header list beyond the limit": (headers(1, [*REQUEST, ("x", "y" * 8000)]), ErrorCode.ENHANCE_YOUR_CALM),
    "a header block that DATA interrupts": (frame(1, 0, 1, b"") + data(1, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION on another stream": (frame(1, 0, 1, b"") + frame(9, 4, 3, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION without HEADERS": (frame(9, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION beyond the limit": (
        frame(1, 0, 1, bytes(5000)) + frame(9, 0, 1, bytes(5000)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "PRIORITY on stream 0": (frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY of 4 bytes": (frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    "RST_STREAM on stream 0": (frames.reset(0, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM before HEADERS": (frames.reset(1, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of 3 bytes": (headers(1) + frame(3, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(4, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS of 5 bytes": (frame(4, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS that confirm and set": (frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "ENABLE_PUSH 2": (settings(push=2), ErrorCode.PROTOCOL_ERROR),
    "INITIAL_WINDOW_SIZE too large": (settings(window=1 << 31), ErrorCode.FLOW_CONTROL_ERROR),
    "INITIAL_WINDOW_SIZE and an open stream": (
        headers(1) + window_update(1, 1 << 30) + settings(window=LARGEST_WINDOW),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "MAX_FRAME_SIZE too small": (settings(frame=16_383), ErrorCode.PROTOCOL_ERROR),
    "MAX_FRAME_SIZE too large": (settings(frame=1 << 24), ErrorCode.PROTOCOL_ERROR),
    "PUSH_PROMISE": (headers(1) + frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "PING on a stream": (frame(6, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "PING of 7 bytes": (frame(6, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(7, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY of 7 bytes": (frame(7, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE before HEADERS": (window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE by 0": (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too large": (window_update(0, LARGEST_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE of 3 bytes": (frame(8, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", BROKEN_CONNECTIONS)
def test_a_broken_rule_ends_the_connection(name):
    wire, code = BROKEN_CONNECTIONS[name]
    assert Peer(Limits(frame=20_000, header_block=8000)).fault(wire) == code


def request(*more: tuple[str, str], without: str = "") -> bytes:
    return headers(1, [*(field for field in REQUEST if field[0] != without), *more])


BROKEN_STREAMS = {
    "no method": (request(without=":method"), ErrorCode.PROTOCOL_ERROR),
    "no scheme": (request(without=":scheme"), ErrorCode.PROTOCOL_ERROR),
    "no path": (request(without=":path"), ErrorCode.PROTOCOL_ERROR),
    "an empty path": (headers(1, [*REQUEST[:2], (":path", "")]), ErrorCode.PROTOCOL_ERROR),
    "two methods": (headers(1, [REQUEST[0], *REQUEST]), ErrorCode.PROTOCOL_ERROR),
    "a late pseudo-header": (headers(1, [("x", "y"), *REQUEST]), ErrorCode.PROTOCOL_ERROR),
    "an unknown pseudo-header": (headers(1, [(":x", "y"), *REQUEST]), ErrorCode.PROTOCOL_ERROR),
    "a pseudo-header of responses": (headers(1, [(":status", "200"), *REQUEST]), ErrorCode.PROTOCOL_ERROR),
    "an upper-case name": (request(("X", "y")), ErrorCode.PROTOCOL_ERROR),
    "an empty name": (request(("", "y")), ErrorCode.PROTOCOL_ERROR),
    "a line end in a value": (request(("x", "a\r\nb")), ErrorCode.PROTOCOL_ERROR),
    "a space after a value": (request(("x", "a ")), ErrorCode.PROTOCOL_ERROR),
    "a field of connections": (request(("connection", "keep-alive")), ErrorCode.PROTOCOL_ERROR),
    "te that is not trailers": (request(("te", "gzip")), ErrorCode.PROTOCOL_ERROR),
    "content-length is no number": (request(("content-length", "-1")), ErrorCode.PROTOCOL_ERROR),
    "two content-lengths": (
        request(("content-length", "1"), ("content-length", "2")),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "less data than content-length": (
        request(("content-length", "5")) + data(1, b"abc", end=True),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "more data than content-length": (request(("content-length", "2")) + data(1, b"abc"), ErrorCode.PROTOCOL_ERROR),
    "trailers before content-length": (
        request(("content-length", "5")) + data(1, b"abc") + headers(1, [], end=True),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "content-length and no data": (
        headers(1, [*REQUEST, ("content-length", "5")], end=True),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "trailers that do not end": (headers(1) + headers(1, [("x", "y")]), ErrorCode.PROTOCOL_ERROR),
    "trailers with a pseudo-header": (headers(1) + headers(1, [(":path", "/")], end=True), ErrorCode.PROTOCOL_ERROR),
    "DATA after the end": (headers(1, end=True) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "HEADERS after the end": (headers(1, end=True) + headers(1, [], end=True), ErrorCode.STREAM_CLOSED),
    "DATA beyond the window": (headers(1) + data(1, bytes(10_001)), ErrorCode.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE by 0": (headers(1) + window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too large": (headers(1) + window_update(1, LARGEST_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "too many streams": (headers(1) + headers(3) + headers(5), ErrorCode.REFUSED_STREAM),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_broken_rule_ends_the_stream_alone(name):
    wire, code = BROKEN_STREAMS[name]
    peer = Peer(Limits(window=10_000, streams=2))
    assert peer.break_stream(wire) == code
    assert not peer.connection.finished
    assert not peer.send(data(1, b"on its way")) or name == "too many streams"


def test_frames_after_the_end_of_both_sides_end_the_connection():
    for late in (data(1, b"x"), headers(1, [("x", "y")], end=True)):
        peer = Peer()
        peer.send(headers(1, end=True))
        answer(peer, 1)
        peer.frames()
        assert not peer.send(window_update(1, 1), frames.reset(1, ErrorCode.CANCEL), frame(2, 0, 1, bytes(5)))
        assert peer.fault(late) == ErrorCode.STREAM_CLOSED


# Floods.


@pytest.mark.parametrize(
    "wasted",
    [
        frame(frames.PING, 0, 0, bytes(8)),
        SETTINGS,
        data(1, b""),
        frame(77, 0, 0, b""),
        frame(frames.PRIORITY, 0, 1, bytes(5)),
        window_update(1, 1),
        frames.goaway(0, ErrorCode.NO_ERROR),
    ],
)
def test_frames_that_do_no_work_end_the_connection_when_they_flood_it(wasted):
    peer = Peer(Limits(idle_frames=20), settings(window=1))
    peer.connection.tick()
    peer.send(headers(1))
    peer.connection.data(1, [bytes(100)])
    for _ in range(3):
        assert not peer.send(wasted * 20) and not peer.connection.failed
        peer.connection.tick()
    assert peer.fault(wasted * 21) == ErrorCode.ENHANCE_YOUR_CALM


def test_continuations_without_end_end_the_connection():
    peer = Peer(Limits(idle_frames=20))
    assert peer.fault(frame(1, 0, 1, b""), frame(9, 0, 1, b"") * 21) == ErrorCode.ENHANCE_YOUR_CALM


def test_streams_that_are_reset_at_once_end_the_connection():
    """The "rapid reset", CVE-2023-44487."""
    peer = Peer(Limits(resets=20))

    def wave(first: int, count: int) -> bytes:
        numbers = range(first, first + 2 * count, 2)
        return b"".join(headers(n, end=True) + frames.reset(n, ErrorCode.CANCEL) for n in numbers)

    peer.send(wave(1, 20))
    assert not peer.connection.failed
    peer.connection.tick()
    assert peer.fault(wave(101, 21)) == ErrorCode.ENHANCE_YOUR_CALM


# Header blocks.


def test_a_repeated_header_block_is_interpreted_once_until_the_table_changes():
    heads = []

    def interpret(head):
        heads.append(head)
        return head.path

    connection = Connection(interpret, Limits())
    connection.receive(PREFACE + SETTINGS)
    encoder = hpack.Encoder()

    def send(number: int, path: str) -> str:
        fields = [*REQUEST[:2], (":path", path), ("x", "y")]
        (begun,) = connection.receive(frame(1, 5, number, encoder.encode(fields)))
        return begun.head

    assert [send(n, "/a") for n in (1, 3, 5, 7)] == ["/a"] * 4 and len(heads) == 2
    assert [send(n, "/b") for n in (9, 11, 13)] == ["/b"] * 3 and len(heads) == 4
    assert [send(n, "/a") for n in (15, 17)] == ["/a"] * 2 and len(heads) == 5
    encoder.header_table_size = 0
    assert [send(n, "/a") for n in (19, 21)] == ["/a"] * 2 and len(heads) == 6 + 1


def test_only_some_blocks_are_remembered():
    seen = []
    connection = Connection(lambda head: seen.append(head.path), Limits())
    connection.receive(PREFACE + SETTINGS)
    for number in range(1, 201, 2):
        connection.receive(headers(number, [*REQUEST[:2], (":path", f"/{number % 40}")], end=True))
    assert len(seen) == 100
    long = [*REQUEST[:2], (":path", "/" + "x" * 2000)]
    connection.receive(headers(201, long, end=True) + headers(203, long, end=True))
    assert len(seen) == 102


def test_a_short_block_of_many_bytes_is_not_remembered():
    """A block of a few bytes may name a long entry of the table again and again."""
    seen = []
    connection = Connection(lambda head: seen.append(head.path), Limits())
    connection.receive(PREFACE + SETTINGS)
    encoder = hpack.Encoder()
    blocks = [encoder.encode([*REQUEST, *[("x", "y" * 2000)] * 3]) for _ in range(3)]
    assert blocks[1] == blocks[2] and len(blocks[2]) < 20
    for number, fields in zip((1, 3, 5), blocks, strict=True):
        connection.receive(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, fields))
    assert len(seen) == 3


def test_our_header_blocks_leave_the_table_alone():
    fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-message", "%25")]
    decoder = hpack.Decoder()
    for _ in range(2):
        assert decoder.decode(encode(fields)) == fields
    assert not decoder.header_table.dynamic_entries
