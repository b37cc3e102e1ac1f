"""URLs of servers."""

from __future__ import annotations

import pytest

from zmq_offload.errors import InvalidArgument
from zmq_offload.transports.url import parse, scheme_of


def test_all_parts_are_read() -> None:
    url = parse("GRPC://[::1]:8001/a%20b/?key=board&empty=")
    assert url[1:] == ("grpc", "::1", 8001, "/a b", {"key": "board", "empty": ""})
    assert url.address == "[::1]:8001"
    assert url.only("key", "empty", path=True) is url
    assert parse("https://edge:1?ca=/c++/a%20b%2F").query == {"ca": "/c++/a b/"}
    plain = parse("tvmrpc://edge-1.lan:9090")
    assert (plain.address, plain.path, plain.query) == ("edge-1.lan:9090", "", {})
    assert plain.only() is plain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (5, "5 is not a string"),
        ("edge:5555", "is not a URL"),
        ("://edge:1", "is not a URL"),
        ("grpc://a:1,grpc://b:2", "is several URLs"),
    ],
)
def test_what_is_no_url_says_so(text: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        scheme_of(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("grpc://edge", "has no host and port; use grpc://HOST:PORT"),
        ("grpc://ed_ge:1@", "'grpc://...' has no host and port"),
        ("grpc://ed ge:1", "'grpc://ed ge:1' has a space in its URL; write %20 for one"),
        ("https://edge:1?ca=/my files/ca.crt", "'https://edge:1' has a space in its URL"),
        ("http://edge:0", "port 0 is not from 1 to 65535"),
        ("http://edge:65536", "port 65536 is not"),
        ("http://edge:1?key", "is not KEY=VALUE"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse(text)


def test_a_transport_takes_only_what_it_knows() -> None:
    with pytest.raises(InvalidArgument, match="has a path; use grpc://HOST:PORT"):
        parse("grpc://edge:1/x").only()
    with pytest.raises(InvalidArgument, match="has 'kye' after the question mark; known are key"):
        parse("grpc://edge:1?kye=1").only("key")
    with pytest.raises(InvalidArgument, match="has 'key' after the question mark; use grpc://"):
        parse("grpc://edge:1?key=1").only()
