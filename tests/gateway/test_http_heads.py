"""Heads of HTTP requests, and bodies in chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.gateway.http.chunks import Chunks
from zmq_offload.gateway.http.heads import Head, Heads, Refused, check_complete, check_incomplete, parse_head
from zmq_offload.gateway.http.limits import Limits, Progress

LIMITS = Limits(body_bytes=1000, held_bytes=5000, header_bytes=10_000, connections=9, idle=1.0, receive=0.01)


def parse(*lines: str) -> Head:
    return parse_head("".join([f"{line}\r\n" for line in [*lines, ""]]).encode(), LIMITS)


def refusal(*lines: str) -> int:
    with pytest.raises(Refused) as error:
        parse(*lines)
    return error.value.status


def test_a_head_is_parsed() -> None:
    head = parse("POST /v2/models/a%20b/infer?x=1#f HTTP/1.1", "HOST: x", "Content-Length: 12", "X: 1", "x: 2")
    assert head == Head(
        "POST",
        "/v2/models/a%20b/infer",
        "x=1",
        {"host": "x", "content-length": "12", "x": "1, 2"},
        12,
        keep_alive=True,
        expects=False,
        version="1.1",
    )


@pytest.mark.parametrize(
    ("line", "header", "keep_alive"),
    [
        ("GET / HTTP/1.1", "A: b", True),
        ("GET / HTTP/1.1", "Connection: close", False),
        ("GET / HTTP/1.0", "A: b", False),
        ("GET / HTTP/1.0", "Connection: keep-alive", True),
    ],
)
def test_a_connection_is_kept_if_both_sides_agree(line: str, header: str, keep_alive: bool) -> None:
    assert parse(line, "Host: x", header).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a/b", "/a/b"), ("http://x:1/a", "/a"), ("https://x", "/"), ("/a//b", "/a//b")],
)
def test_a_target_is_a_path_or_an_address(target: str, path: str) -> None:
    assert parse(f"GET {target} HTTP/1.1", "Host: x").path == path


def test_the_server_itself_has_options() -> None:
    assert parse("OPTIONS * HTTP/1.1", "Host: x").path == "*"
    assert refusal("GET * HTTP/1.1", "Host: x") == 400


def test_the_offer_of_another_protocol_is_not_taken() -> None:
    assert parse("GET / HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: h2c").method == "GET"


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (400, ["POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Content-Length: 1"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Transfer-Encoding: chunked"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Content-Length: 1"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked, gzip"]),
        (400, ["POST / HTTP/1.0", "Transfer-Encoding: chunked"]),
        (501, ["POST / HTTP/1.1", "Host: x", "Transfer-Encoding: gzip, chunked"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Content-Length: -1"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Content-Length: 99999999999999999999"]),
        (413, ["POST / HTTP/1.1", "Host: x", "Content-Length: 1001"]),
        (400, ["POST / HTTP/1.1", "Host: x\n"]),
        (400, ["POST / HTTP/1.1", "Host: x", " folded"]),
        (400, ["POST / HTTP/1.1", "Host : x"]),
        (400, ["POST / HTTP/1.1", "Host: x", "Host: y"]),
        (400, ["POST / HTTP/1.1"]),
        (400, ["FETCH / HTTP/1.1"]),
        (400, ["GET ftp://x/ HTTP/1.1", "Host: x"]),
        (417, ["POST / HTTP/1.1", "Host: x", "Expect: cake"]),
        (431, ["GET / HTTP/1.1", "Host: x", *["A: b"] * 100]),
        (400, ["CONNECT x:1 HTTP/1.1", "Host: x"]),
        (505, ["GET / HTTP/2.0", "Host: x"]),
    ],
)
def test_a_head_is_refused(status: int, lines: list[str]) -> None:
    assert refusal(*lines) == status


def test_a_body_may_be_announced() -> None:
    assert parse("POST / HTTP/1.1", "Host: x", "Expect: 100-Continue").expects
    assert not parse("POST / HTTP/1.0", "Expect: 100-continue").expects
    assert parse("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: Chunked").length is None


@pytest.mark.parametrize(
    ("status", "text"), [(414, b"x" * 8193), (431, b"x\r\n" * 3334), (None, b"x\r\n" * 3333), (None, b"x" * 8192)]
)
def test_a_head_is_refused_before_it_is_complete(status: int | None, text: bytes) -> None:
    def check() -> int | None:
        try:
            check_incomplete(bytearray(text), LIMITS)
        except Refused as error:
            return error.status
        return None

    assert check() == status


def test_a_complete_head_is_refused_if_it_is_too_long() -> None:
    check_complete(b"x\r\n\r\n", LIMITS)
    check_complete(b"x" * 8192 + b"\r\n\r\n", LIMITS)
    with pytest.raises(Refused, match="the request line is too long; send at most 8192 bytes"):
        check_complete(b"x" * 8193 + b"\r\n\r\n", LIMITS)
    with pytest.raises(Refused, match="the headers are too long; send at most 10000 bytes"):
        check_complete(b"x\r\n" * 3334, LIMITS)


def test_heads_are_remembered_within_bounds() -> None:
    heads = Heads(LIMITS)
    first = heads.parse(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert heads.parse(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\n") is first
    for number in range(1000):
        assert heads.parse(f"GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).path == f"/{number}"
    long = f"GET /{'x' * 2000} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert heads.parse(long) is not heads.parse(long)
    assert len(heads._known) <= 256
    with pytest.raises(Refused):
        heads.parse(b"x" * 8193 + b"\r\n\r\n")


@given(
    chunks=st.lists(st.sampled_from([b"a", b"\r\n\r\n", b"0\r\n\r\n", b"x" * 30]), max_size=6),
    trailer=st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
    after=st.sampled_from([b"", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"junk"]),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_chunks_end_where_they_end_however_they_arrive(
    chunks: list[bytes], trailer: bytes, after: bytes, cuts: list[int]
) -> None:
    coded = b"".join([b"%x;e=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]) + b"0\r\n" + trailer + b"\r\n"
    data = bytearray(coded + after)
    body = Chunks(1000)
    taken = 0
    for cut in [*sorted(cuts), len(data)]:
        if not body.complete:
            assert body.feed(data, taken, taken) == taken
            taken = body.feed(data, taken, max(min(cut, len(data)), taken))
    assert body.complete
    assert bytes(body.body) == b"".join(chunks)
    assert taken == len(coded)


def test_chunks_are_refused() -> None:
    for text, status in [(b"zz\r\n", 400), (b"400\r\n" + b"x" * 1024, 413), (b"1\r\nxy", 400)]:
        with pytest.raises(Refused) as error:
            Chunks(1000).feed(bytearray(text), 0, len(text))
        assert error.value.status == status


def test_progress_is_asked_for_in_each_window() -> None:
    progress = Progress()
    assert [progress.made(count, LIMITS) for count in (11, 21, 32, 32)] == [True, False, True, False]


def test_a_handshake_of_tls_is_refused_at_its_first_byte() -> None:
    with pytest.raises(Refused, match="has no TLS; use http://"):
        check_incomplete(bytearray(b"\x16\x03\x01"), LIMITS)
