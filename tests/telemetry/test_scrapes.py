from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.telemetry import scrapes
from zmq_offload.telemetry.scrapes import HEAD_BYTES

TEXT = bytearray(b"up 1\n")


def answer(received: bytes, metrics: Callable[[], bytearray | None] = lambda: TEXT) -> bytes | None:
    got = scrapes.answer(received, metrics)
    return None if got is None else b"".join(got)


def status(received: bytes) -> int | None:
    got = answer(received)
    return None if got is None else int(got.split(b" ")[1])


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (b"GET /metrics HTTP/1.1", 200),
        (b"GET /metrics HTTP/1.0", 200),
        (b"GET /metrics?x=1 HTTP/1.1", 200),
        (b"HEAD /metrics HTTP/1.1", 200),
        (b"GET / HTTP/1.1", 404),
        (b"GET /metrics/ HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
        (b"get /metrics HTTP/1.1", 405),
        (b"PRI * HTTP/2.0", 400),
        (b"GET /metrics", 400),
        (b"\x16\x03\x01", 400),
        (b"", 400),
    ],
)
def test_the_first_line_decides(request_line: bytes, expected: int) -> None:
    assert status(request_line + b"\r\nHost: x\r\n\r\n") == expected


def test_an_answer() -> None:
    assert answer(b"GET /metrics HTTP/1.1\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 5\r\n"
        b"Connection: close\r\n\r\nup 1\n"
    )
    head = answer(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert head is not None and b"Content-Length: 5" in head and head.endswith(b"\r\n\r\n")


def test_other_methods_are_told_which_there_are() -> None:
    got = answer(b"DELETE /metrics HTTP/1.1\r\n\r\n")
    assert got is not None and b"Allow: GET, HEAD" in got


def test_metrics_that_cannot_be_made_are_an_error_of_the_server() -> None:
    got = answer(b"GET /metrics HTTP/1.1\r\n\r\n", lambda: None)
    assert got is not None and b" 500 " in got


def test_a_head_without_an_end_is_waited_for_up_to_a_limit() -> None:
    assert status(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES - 50)) is None
    assert status(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES) == 431


@given(st.binary(max_size=200))
def test_any_bytes_are_answered_or_waited_for(received: bytes) -> None:
    assert status(received) in (None, 200, 400, 404, 405)
    assert status(received + b"\r\n\r\n") is not None
