"""A client accepts no endpoint that libzmq refuses, and none that can never reach a broker."""

from __future__ import annotations

from typing import Any

import pytest
import zmq

from zmq_offload import AsyncClient, Client
from zmq_offload.errors import InvalidArgument
from zmq_offload.net.endpoints import check_brokers, check_connectable

GOOD = [
    "tcp://127.0.0.1:1",
    "tcp://0.0.0.0:5555",
    "tcp://edge:65535",
    "tcp://my_service.local:5555",
    "tcp://3com.example:5555",
    "tcp://[::1]:5555",
    "ipc:///tmp/broker",
    "ipc://relative/path",
    "ipc://@abstract",
    "ipc:///" + "x" * 106,
]
BAD = [
    ("tcp://127.0.0.1:*", r"cannot connect to tcp://127\.0\.0\.1:\*: \* is for the end that listens"),
    ("tcp://*:5555", "is for the end that listens"),
    ("tcp://edge:0", "port 0 is not from 1 to 65535"),
    ("tcp://edge:65536", "use tcp://HOST:PORT"),
    ("tcp://edge", "use tcp://HOST:PORT"),
    ("edge:5555", "use tcp://HOST:PORT"),
    ("tcp://-edge:5555", "with a letter or digit first"),
    ("tcp://bücher:5555", "xn-- form"),
    ("tcp://user@edge:5555", "letters, digits"),
    ("tcp://eth0;edge:5555", "letters, digits"),
    ("tcp://lo:5555", "lo is a network interface, which is for the end that listens"),
    ("tcp://256.1.1.1:5555", "is not an IPv4 address"),
    ("tcp://[1::2::3]:5555", "is not an IPv6 address"),
    ("tcp://[127.0.0.1]:5555", "is not an IPv6 address"),
    ("tcp://" + "x" * 64 + ":5555", "host name is too long"),
    ("tcp://" + "x." * 127 + "x:5555", "host name is too long"),
    ("ipc:///" + "x" * 107, "the path has 108 bytes; use at most 107"),
    ("ipc:///" + "é" * 54, "the path has 109 bytes"),
    ("ipc://*", "is for the end that listens"),
    ("inproc://broker", "use tcp:// or ipc://"),
    ("tcp://one:1,tcp://two:2", "is several endpoints; give them as a list"),
    (b"tcp://edge:5555", "is not a string"),
    (None, "is not a string"),
    (5555, "is not a string"),
]


@pytest.mark.parametrize("endpoint", GOOD)
def test_accepted_endpoints_are_accepted_by_libzmq(endpoint: str) -> None:
    assert check_connectable(endpoint) == endpoint
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)


@pytest.mark.parametrize(("endpoint", "says"), BAD)
def test_a_wrong_endpoint_is_refused_at_any_place_in_the_list(endpoint: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check_brokers(["tcp://127.0.0.1:5555", endpoint])
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match=says):
            kind(["tcp://127.0.0.1:5555", endpoint])


@pytest.mark.parametrize("broker", [[], None, 5555, b"tcp://edge:5555", {"tcp://edge:5555"}])
def test_a_value_that_is_not_an_endpoint_or_list_is_refused(broker: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"at least one endpoint|or a list of endpoints"):
        check_brokers(broker)
