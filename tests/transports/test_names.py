"""Addresses of host names, within a time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from zmq_offload.errors import Unavailable
from zmq_offload.net.addresses import Lookup
from zmq_offload.transports.names import looked_up

SIX = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 7, 0, 0))
FOUR = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 7))


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hosts of three kinds. `slow` has an address as soon as this is set."""
    release = threading.Event()
    system = socket.getaddrinfo

    def getaddrinfo(host: str, port: Any, **options: Any) -> Any:
        if host == "slow":
            release.wait(20)
        if host == "none":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [SIX, FOUR] if host in ("slow", "both") else system(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield release
    release.set()


def test_all_addresses_are_tried_of_either_family(release: threading.Event) -> None:
    assert looked_up("both", 7, 10) == [(socket.AF_INET6, SIX[-1]), (socket.AF_INET, FOUR[-1])]
    assert looked_up("::1", 7, 10)[0][0] == socket.AF_INET6
    assert looked_up("127.0.0.1", 7, 10) == [(socket.AF_INET, ("127.0.0.1", 7))]


def test_a_host_without_an_address_is_unavailable(release: threading.Event) -> None:
    with pytest.raises(Unavailable, match="the host 'none' has no address: Name or service not known"):
        looked_up("none", 7, 10)
    with pytest.raises(Unavailable, match=r"the host '.*' has no address: .*label"):
        looked_up("a" * 70, 7, 10)


def test_a_slow_look_up_does_not_outlive_its_time(release: threading.Event) -> None:
    with pytest.raises(Unavailable, match=r"looking up the host 'slow' takes more than 0\.050 s"):
        looked_up("slow", 7, 0.05)
    lookup = Lookup("slow", 7)
    assert lookup.found is None
    release.set()
    assert lookup.wait(10) and lookup.found == [(socket.AF_INET, FOUR[-1])], "libzmq takes one family"


def test_without_a_thread_there_is_no_address(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(Unavailable, match="the host 'both' has no address: can't start new thread"):
        looked_up("both", 7, 10)
