"""Hosts of endpoints: which are loopback, which need IPv6, and which address is bound."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import zmq

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net import addresses, transport
from zmq_offload.net.addresses import is_loopback, needs_ipv6, to_bind
from zmq_offload.testing.link.relay import _address, _resolved

TABLE = {"four": ["10.0.0.1"], "six": ["2001:db8::1"], "both": ["2001:db8::2", "10.0.0.2"]}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows TABLE."""

    def getaddrinfo(host: str, port: Any, type: int = 0) -> list[Any]:
        if host not in TABLE:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address) for address in TABLE[host]]
        return [(family, type, 6, "", (address, port or 0)) for family, address in families]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "_families", {})


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.9.10:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://[0:0:0:0:0:0:0:1]:5555", True),
        ("tcp://[::1%lo]:5555", True),
        ("tcp://[::ffff:127.0.0.1]:5555", True),
        ("ipc:///tmp/x", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://[::ffff:0.0.0.0]:5555", False),
        ("tcp://[::ffff:10.0.0.1]:5555", False),
        ("tcp://[fe80::1%eth0]:5555", False),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://lo:5555", False),
        ("tcp://127.example.org:5555", False),
    ],
)
def test_loopback_endpoints(endpoint: str, loopback: bool) -> None:
    assert transport.check_endpoint(endpoint) == endpoint
    assert is_loopback(endpoint) is loopback


@pytest.mark.parametrize(
    "endpoint", ["tcp://[::1:5555", "tcp://::1:5555", "tcp://[fe80::1%]:1", "tcp://[x]:1", "tcp://a]:1"]
)
def test_a_wrong_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgument, match="use tcp://HOST:PORT"):
        transport.check_endpoint(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        ("", "it is empty"),
        ("localhost:5555", "the transport is missing"),
        ("TCP://localhost:5555", "transport 'TCP' is not known, write tcp"),
        ("http://localhost:5555", "transport 'http' is not known, use tcp or ipc"),
        ("ipc://", "the path is missing"),
        ("ipc://a b", "it has a space"),
        ("tcp://localhost", "the port is missing"),
        ("tcp://localhost:", "the port is missing"),
        ("tcp://[::1]", "the port is missing"),
        ("tcp://:5555", "the host is missing"),
        ("tcp://localhost:5555/", "a path or slash does not belong there"),
        ("tcp://localhost: 5555", "it has a space"),
        ("tcp://::1:5555", "an IPv6 address needs brackets"),
        ("tcp://localhost:65536", "the port is not a number from 0 to 65535"),
        ("tcp://localhost:" + "9" * 5000, "the port is not a number from 0 to 65535"),
        ("tcp://localhost:-1", "the port is not a number from 0 to 65535"),
        ("tcp://localhost:\u0663", "the port is not a number from 0 to 65535"),
    ],
)
def test_the_error_says_what_is_wrong_with_an_endpoint(endpoint: str, fault: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        transport.check_endpoint(endpoint)
    assert caught.value.message == f"endpoint {endpoint!r}: {fault}; use tcp://HOST:PORT (or ipc://PATH)"


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("endpoint", "needed"),
    [
        ("tcp://four:1", False),
        ("tcp://six:1", True),
        ("tcp://both:1", False),
        ("tcp://unknown:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://[2001:db8::1]:1", True),
        ("tcp://[fe80::1%eth0]:1", True),
        ("tcp://*:1", False),
        ("ipc:///tmp/x[1]", False),
    ],
)
def test_names_with_only_an_ipv6_address_need_the_option(endpoint: str, needed: bool) -> None:
    assert needs_ipv6(endpoint) is needed


@pytest.mark.usefixtures("names")
def test_a_name_is_bound_to_by_its_address() -> None:
    assert to_bind("tcp://four:5") == "tcp://10.0.0.1:5"
    assert to_bind("tcp://six:*") == "tcp://[2001:db8::1]:*"
    for same in ("tcp://*:1", "tcp://lo:1", "tcp://[::1]:1", "tcp://unknown:1", "ipc:///tmp/x"):
        assert to_bind(same) == same


@pytest.mark.usefixtures("names")
def test_a_link_connects_to_a_name() -> None:
    assert _resolved(_address("tcp://both:7")) == ("10.0.0.2", 7)
    assert _resolved(_address("tcp://six:7")) == ("2001:db8::1", 7)
    with pytest.raises(FailedPrecondition, match="'unknown' cannot be looked up"):
        _resolved(_address("tcp://unknown:7"))


def test_a_slow_look_up_does_not_delay_a_connection_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        assert go.wait(20)
        return [(socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "_families", {})
    monkeypatch.setattr(addresses, "LOOKUP_S", 0.01)
    assert not needs_ipv6("tcp://slow.example:1")
    (thread,) = [t for t in threading.enumerate() if t.name == "look up"]
    go.set()
    thread.join(20)
    assert needs_ipv6("tcp://slow.example:1"), "the next connection knows"


@pytest.mark.parametrize("endpoint", ["tcp://lo:*", "tcp://localhost:*", "tcp://[::1%lo]:*", "tcp://[::]:*"])
def test_interfaces_names_and_zones_are_bound_to(endpoint: str) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        client.linger = 0
        try:
            bound, _ = transport.bind(server, endpoint)
        except FailedPrecondition:
            if "[" in endpoint and not socket.has_dualstack_ipv6():
                pytest.skip("no IPv6 here")
            raise
        transport.connect(client, bound.replace("[::]", "127.0.0.1"))  # [::] accepts IPv4, too
        client.send(b"x")
        assert server.poll(10_000)
